"""Stopping without losing anything: on Ctrl-C, on SIGTERM, and when a loss became NaN."""

import contextlib
import os
import re
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer

from transformer.training.checkpoints import AfterSteps

INTERRUPTED = "interrupted.ckpt"


class Interrupted(Exception):
    """Training was stopped by signal `signum`, in epoch `epoch`, after `checkpoint` was written."""

    def __init__(self, signum: int, checkpoint: Path, step: int, epoch: int) -> None:
        super().__init__(f"stopped by signal {signum} at step {step}")
        self.signum, self.checkpoint, self.step, self.epoch = signum, checkpoint, step, epoch


class StopSafely(AfterSteps):
    """On Ctrl-C or SIGTERM: finish the optimizer step, save everything, stop. A second one kills.

    Several processes stop at the same step, the one after that in which any of them got the
    signal. It watches the signals inside of `with stop: trainer.fit(...)`. Before the first step
    and after the last one there is nothing to finish: either signal stops at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signum = 0
        #: The optimizer step after which training began; None before it has.
        self.began: int | None = None
        self._originals: dict[int, Any] = {}
        self._training = False
        self._process = os.getpid()
        self._votes: _Votes | None = None

    def __enter__(self) -> "StopSafely":
        # Before there are data workers, for they inherit the handler.
        self._originals = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        for signum in self._originals:
            signal.signal(signum, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        """Give the signals back; Lightning's own restoring would leave ours."""
        for signum, handler in self._originals.items():
            signal.signal(signum, handler)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Watch for SIGTERM in Lightning's place, which may act in the middle of a step."""
        super().on_train_start(trainer, pl_module)
        signal.signal(signal.SIGTERM, self._note)
        self._training = True
        self.began = trainer.global_step
        if trainer.world_size > 1:
            self._votes = _Votes()
            # Lightning asks the GPUs before every batch whether it saw the SIGTERM that it does
            # not get any more, and waits for the answer until they have nothing left to do.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def after_step(self, trainer: Trainer, validated: bool) -> None:
        if signum := self._votes.cast(self.signum) if self._votes else self.signum:
            self._stop(trainer, signum)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stops for a signal during the last validation: no final model is made."""
        self._training = False
        if self._votes:
            self._votes.cast(self.signum)
        if signum := self._votes.count() if self._votes else self.signum:
            self._stop(trainer, signum)

    def _stop(self, trainer: Trainer, signum: int) -> None:
        path = self.folder / INTERRUPTED
        trainer.save_checkpoint(path)
        raise Interrupted(signum, path, trainer.global_step, trainer.current_epoch + 1)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        here = os.getpid() == self._process
        if not here and signum == signal.SIGTERM:  # whoever started a process can end it
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        again, self.signum = self.signum, signum
        # Data workers get Ctrl-C, too, but must outlive the step.
        if again or (here and not self._training):
            signal.signal(signum, signal.SIG_DFL)
            raise KeyboardInterrupt
        if here and int(os.environ.get("LOCAL_RANK", 0)) == 0:
            # Not print(): the handler may have interrupted one.
            with contextlib.suppress(OSError):
                os.write(2, b"\nStopping after this step (a second Ctrl-C stops at once) ...\n")


class _Votes:
    """Votes of all processes on stopping: the number of a signal, or 0 for going on.

    They vote on the hosts, where nobody waits for a GPU; a vote travels during the next step.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")
        self._vote = torch.tensor(0, device="cpu")
        self._travelling: dist.Work | None = None

    def cast(self, signum: int) -> int:
        """Vote; returns the outcome of the vote before this one."""
        before = self.count()
        self._vote = torch.tensor(signum, device="cpu")
        self._travelling = dist.all_reduce(
            self._vote, dist.ReduceOp.MAX, self._group, async_op=True
        )
        return before

    def count(self) -> int:
        """The outcome of the last vote: the highest number of all processes."""
        if self._travelling:
            self._travelling.wait()
        return int(self._vote)


def is_of_a_lost_process(error: Exception) -> bool:
    """Whether an error is how NCCL or gloo says that another process ended or does not answer."""
    gloo = "gloo" in str(error) and re.search("by peer|timed? ?out", str(error), re.IGNORECASE)
    return isinstance(error, dist.DistError) or bool(gloo)
