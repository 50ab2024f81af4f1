"""One life of a run: forked processes that tell what they do, and may be killed meanwhile."""

import hashlib
import math
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, Trainer

from transformer.commands.fit import prepared
from transformer.errors import Done
from transformer.training.logging import of_training, stepped
from transformer.training.train import train
from transformer.writing import is_part

PATIENCE = 5.0  # seconds between SIGTERM and SIGKILL for those whose companion has died
BATCH = "micro-batch"
#: A kill in a micro-batch is one in the middle of an accumulation; its last one is the step.
PHASES = ("preparation", BATCH, "step", "validation", "save", "test")


class Aim(NamedTuple):
    """When to kill: so many seconds after the `nth` beginning of a phase."""

    phase: str
    nth: int
    delay: float
    ranks: tuple[int, ...]


@dataclass
class Life:
    """What the processes of one life told, and how it ended.

    Attributes:
        phases: Of rank 0: each phase that began, and when it did, in seconds.
        moments: Each micro-batch, with the digest of its pair ids and its loss, and each
            validation, with its scores, in their order.
        first: The number of the micro-batch that it went on with; None if it did not train.
        device: Where it trained: cpu or cuda.
        killed: The phase in which a kill fell; None if it ended before.
        code: The exit code of the process that ended badly first; 0 if none did.
        ended: When, in seconds.
        words: The last line of the log.
    """

    phases: list[tuple[str, float]] = field(default_factory=list)
    moments: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    first: int | None = None
    device: str = ""
    killed: str | None = None
    code: int = 0
    ended: float = 0.0
    words: str = ""

    def hear(self, kind: str, *values: Any) -> None:
        """Keeps what a process told."""
        if kind == "phase":
            self.phases.append((values[0], time.monotonic()))
        elif kind == "moment":
            self.moments.append((values[0], values[1]))
        else:
            self.device, self.first = values

    def begun(self, phase: str) -> list[float]:
        """When each phase of this name began, in seconds."""
        return [at for name, at in self.phases if name == phase]


class Tell(Callback):
    """Tells through a pipe which phase begins, and what each batch and each validation gave.

    Messages of several processes do not mix: each is short, and written at once.
    """

    def __init__(self, pipe: Connection, rank: int) -> None:
        self.pipe, self.rank = pipe, rank
        self._phase("preparation")
        sys.addaudithook(self._audit)

    def _phase(self, name: str) -> None:
        self.phase = name
        if not self.rank:
            self.pipe.send(("phase", name))

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        path = args[0] if event == "open" else None
        if isinstance(path, str) and ".ckpt." in path and is_part(Path(path)):
            self._phase("save")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.pipe.send(("start", pl_module.device.type, pl_module.micro_batches + 1))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self._phase("step" if stepped(trainer) else BATCH)
        self._name = f"{BATCH} {pl_module.micro_batches + 1} of rank {self.rank}"
        ids = batch.batch.indices.cpu().numpy().tobytes()
        self._pairs = hashlib.sha256(ids).hexdigest()[:16]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        found = {"pairs": self._pairs, "loss": float(outputs["loss"])}
        self.pipe.send(("moment", self._name, found))

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if of_training(trainer):
            self._phase("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if of_training(trainer) and not self.rank:
            name = f"validation at step {trainer.global_step}"
            self.pipe.send(("moment", name, pl_module.scorer.scores))

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._phase("test")

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self.phase != "test":  # a life that had only the test left did not train
            self._phase("test")


def live(args: Sequence[str], ranks: int, log: Path, aim: Aim | None = None) -> Life:
    """Runs `fit` with these arguments, in one process for each rank, and kills some of them.

    Nothing is imported again: the processes are copies of this one, which must not have computed
    with several threads or on a GPU before.
    """
    forked = multiprocessing.get_context("fork")
    ear, mouth = forked.Pipe(duplex=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        given = args, ranks, server.getsockname()[1], mouth, log
    processes = [forked.Process(target=_be, args=(*given, rank)) for rank in range(ranks)]
    for process in processes:
        process.start()
    with ear, mouth:
        try:
            life = _heard(ear, processes, aim)
        finally:
            for process in processes:  # those that an interrupt has left
                process.kill()
                process.join()
    life.words = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    return life


def _be(args: Sequence[str], ranks: int, port: int, pipe: Connection, log: Path, rank: int) -> None:
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    for stream in (1, 2):
        os.dup2(sys.stdout.fileno(), stream)
    if ranks > 1:  # as torchrun does, so that Lightning starts none
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "MASTER_PORT": port}
        numbers |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ.update({name: str(number) for name, number in numbers.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="verify-resume")
    tell, code = Tell(pipe, rank), 0
    with suppress(Done), prepared(args) as run:
        callbacks: Any = run.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.insert(0, tell)  # a batch is told before it is saved
        code = train(run)
    sys.exit(code)


def _heard(ear: Connection, processes: Sequence[BaseProcess], aim: Aim | None) -> Life:
    """Hears processes until all have ended, and kills some of them when it is time."""
    life, fell = Life(), False
    due = alone = math.inf  # when to kill: those that are aimed at, those whose companion has died
    while any(process.exitcode is None for process in processes):
        if ear.poll(max(0.0, min(0.02, due - time.monotonic()))):
            life.hear(*ear.recv())
        if aim and len(begun := life.begun(aim.phase)) >= aim.nth:
            due = begun[aim.nth - 1] + aim.delay
        now = time.monotonic()
        if aim and now >= due:
            for rank in aim.ranks:
                processes[rank].kill()
            aim, due, fell = None, math.inf, True
        codes = [code for process in processes if (code := process.exitcode)]
        if codes and not life.code:
            life.code, alone = min(codes), now + PATIENCE  # a kill, if any
            for process in processes:
                process.terminate()  # as torchrun does
        if now >= alone:
            for process in processes:
                process.kill()
    while ear.poll():
        life.hear(*ear.recv())  # what they told before they died
    life.ended = time.monotonic()
    if fell and life.code == -signal.SIGKILL:
        life.killed = life.phases[-1][0]
    return life
