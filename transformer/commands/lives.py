"""One life of a run: forked processes that tell what they do, and may be killed meanwhile."""

import hashlib
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, Trainer

from transformer.commands.fit import lightning_errors, prepared
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
        first: The number of its first micro-batch; None if it had none.
        device: Where it trained: cpu or cuda.
        killed: The phase in which a kill fell; None if it ended before.
        code: The exit code of the process that ended badly first; 0 if none did.
        ended: When, in seconds.
    """

    phases: list[tuple[str, float]] = field(default_factory=list)
    moments: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    first: int | None = None
    device: str = ""
    killed: str | None = None
    code: int = 0
    ended: float = 0.0

    def hear(self, rank: int, kind: str, *values: Any) -> None:
        """Keeps what a process told."""
        if kind == "batch":
            number, ids, loss = values
            if self.first is None:
                self.first = number + 1
            found = {"pairs": ids, "loss": float.fromhex(loss)}
            self.moments.append((f"{BATCH} {number + 1} of rank {rank}", found))
        elif kind == "validation" and not rank:
            self.moments.append((f"validation at step {values[0]}", values[1]))
        elif kind == "device":
            self.device = values[0]
        elif kind == "phase" and not rank:
            self.phases.append((values[0], time.monotonic()))

    def begun(self, phase: str) -> list[float]:
        """When each phase of this name began, in seconds."""
        return [at for name, at in self.phases if name == phase]


class Tell(Callback):
    """Tells through a pipe which phase begins, and what each batch and each validation gave."""

    def __init__(self, pipe: int, rank: int) -> None:
        self.pipe, self.rank = pipe, rank
        self._phase("preparation")
        sys.addaudithook(self._audit)

    def _tell(self, *values: Any) -> None:
        # Short lines of several processes do not mix.
        os.write(self.pipe, json.dumps([self.rank, *values]).encode() + b"\n")

    def _phase(self, name: str) -> None:
        self.phase = name
        self._tell("phase", name)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        path = args[0] if event == "open" else None
        if isinstance(path, str) and ".ckpt." in path and is_part(Path(path)):
            self._phase("save")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        self._phase("step" if stepped(trainer) else BATCH)
        ids = batch.batch.indices.cpu().numpy().tobytes()
        self._batch = pl_module.micro_batches, hashlib.sha256(ids).hexdigest()[:16]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self._tell("batch", *self._batch, float(outputs["loss"]).hex())

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._tell("device", pl_module.device.type)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if of_training(trainer):
            self._phase("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if of_training(trainer):
            self._tell("validation", trainer.global_step, pl_module.scorer.scores)

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
    source, sink = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    be = partial(_be, args, ranks, port, sink, log)
    pids = {_fork(partial(be, rank)): rank for rank in range(ranks)}
    os.close(sink)
    try:
        return _Watch(source, pids, aim).until_the_end()
    finally:
        os.close(source)
        for pid in pids:  # those that an interrupt has left
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _fork(work: Callable[[], int]) -> int:
    """A child that does some work and is gone; returns its number."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _be(args: Sequence[str], ranks: int, port: int, pipe: int, log: Path, rank: int) -> int:
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    for stream in (1, 2):
        os.dup2(sys.stdout.fileno(), stream)
    if ranks > 1:  # as torchrun does, so that Lightning starts none
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "MASTER_PORT": port}
        numbers |= {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ.update({name: str(number) for name, number in numbers.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="verify-resume")
    tell = Tell(pipe, rank)
    with suppress(Done), lightning_errors(), prepared(args) as run:
        callbacks: Any = run.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.insert(0, tell)  # a batch is told before it is saved
        return train(run)
    return 0


@dataclass
class _Watch:
    """Hears the processes of a life, and kills some of them when it is time."""

    pipe: int
    pids: dict[int, int]  # process -> rank
    aim: Aim | None
    life: Life = field(default_factory=Life)
    _left: bytes = b""
    _due: float | None = None  # when to kill
    _dead: float | None = None  # when the first process ended badly

    def until_the_end(self) -> Life:
        while self.pids:
            wait = 0.02 if self._due is None else min(0.02, self._due - time.monotonic())
            if select.select([self.pipe], [], [], max(wait, 0))[0]:
                self._hear()
            now = time.monotonic()
            if self._due is not None and now >= self._due:
                self._send(signal.SIGKILL, self.aim.ranks if self.aim else ())
                self._due, self.aim = None, None
            if self._dead and now > self._dead + PATIENCE:
                self._send(signal.SIGKILL, self.pids.values())
            self._reap()
        while select.select([self.pipe], [], [], 0)[0] and self._hear():
            pass  # what they told before they died
        self.life.ended = time.monotonic()
        if self.life.code == -signal.SIGKILL:
            self.life.killed = self.life.phases[-1][0]
        return self.life

    def _hear(self) -> bool:
        found = os.read(self.pipe, 1 << 16)
        *lines, self._left = (self._left + found).split(b"\n")
        for line in lines:
            self.life.hear(*json.loads(line))
        if self.aim and self._due is None:
            begun = self.life.begun(self.aim.phase)
            if len(begun) >= self.aim.nth:
                self._due = begun[self.aim.nth - 1] + self.aim.delay
        return bool(found)

    def _send(self, signum: int, ranks: Iterable[int]) -> None:
        for pid, rank in self.pids.items():
            if rank in ranks:
                os.kill(pid, signum)

    def _reap(self) -> None:
        for pid in list(self.pids):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            del self.pids[pid]
            code = os.waitstatus_to_exitcode(status)
            if code and self._dead is None:
                self._dead, self.life.code = time.monotonic(), code
                self._send(signal.SIGTERM, self.pids.values())  # as torchrun does
