"""Stopping without losing anything: on Ctrl-C, on the signals of a cluster, and early."""

import atexit
import contextlib
import os
import re
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer, callbacks

from transformer.training.checkpoints import AfterSteps
from transformer.training.logging import of_training
from transformer.training.module import SELECTION
from transformer.training.runs import speaks_for_its_machine

INTERRUPTED = "interrupted.ckpt"
#: Ctrl-C, and what a cluster sends before it kills.
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
PATIENCE = 15  # seconds at the exit of a run that was stopped: a cluster kills soon
#: How far a validation has come that Lightning shall repeat: its first batch was begun.
BEGUN = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class Interrupted(Exception):
    """Training was stopped by signal `signum`, in epoch `epoch`, after `checkpoint` was written."""

    def __init__(self, signum: int, checkpoint: Path, step: int, epoch: int) -> None:
        super().__init__(f"stopped by signal {signum} at step {step}")
        self.signum, self.checkpoint, self.step, self.epoch = signum, checkpoint, step, epoch


class StopSafely(AfterSteps):
    """On a signal: finish the optimizer step, save everything, stop. A second one kills.

    Several processes stop at the same step, the one after that in which any of them got the
    signal. A validation is left, and repeated by the run that goes on. It watches the signals
    inside of `with stop: trainer.fit(...)`. Before the first step and after the last one there is
    nothing to finish: a signal stops at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signum = 0
        #: The optimizer step after which training began; None before it has.
        self.began: int | None = None
        self._originals: dict[int, Any] = {}
        self._training = False
        self._process = os.getpid()
        self._left_validation = False
        self._max_steps: int | None = None  # while Lightning must not see that they are done

    def __enter__(self) -> "StopSafely":
        # Before there are data workers, for they inherit the handler.
        self._originals = {signum: signal.getsignal(signum) for signum in SIGNALS}
        for signum in self._originals:
            signal.signal(signum, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        """Give the signals back."""
        for signum, handler in self._originals.items():
            signal.signal(signum, handler)

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Watch the signals in Lightning's place.

        It may act in the middle of a step, does not end a test, and calls other processes inside
        of a handler; under SLURM it would queue the job again itself.
        """
        super().setup(trainer, pl_module, stage)
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._training = True
        self.began = trainer.global_step
        self._votes = _Votes(trainer.world_size)
        # Lightning asks the GPUs before every batch whether it saw the SIGTERM that it does not get
        # any more, and waits for the answer until they have nothing left to do.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def after_step(self, trainer: Trainer, validated: bool) -> None:
        if signum := self._votes.cast(self.signum):
            self._stop(trainer, signum)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stops for a signal during the last validation: no final model is made."""
        self._training = False
        if signum := self._votes.cast(self.signum, now=True):
            self._stop(trainer, signum)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Go to the end of the validation."""
        if self.signum and of_training(trainer):
            raise StopIteration  # as the loader at its end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop before anything is computed of a validation that any process has left."""
        if of_training(trainer) and (signum := self._votes.cast(self.signum, now=True)):
            self._left_validation = True
            self._stop(trainer, signum)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Of a validation that was left the checkpoint is one of its beginning."""
        if self._left_validation:
            zero = dict.fromkeys(BEGUN, 0)
            progress = {"total": dict(BEGUN), "current": zero, "is_last_batch": False}
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = progress

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Repeat the validation also after the last step, where Lightning would not begin."""
        loops, epoch_loop = checkpoint["loops"]["fit_loop"], trainer.fit_loop.epoch_loop
        left = loops["epoch_loop.val_loop.batch_progress"]["total"] == BEGUN
        if left and checkpoint["global_step"] == epoch_loop.max_steps:
            self._max_steps, epoch_loop.max_steps = epoch_loop.max_steps, -1

    def _stop(self, trainer: Trainer, signum: int) -> None:
        path = self.folder / INTERRUPTED
        trainer.save_checkpoint(path)
        raise Interrupted(signum, path, trainer.global_step, trainer.current_epoch + 1)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        here = os.getpid() == self._process
        if not here and signum == signal.SIGTERM:  # whoever started a process can end it
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        again, self.signum = self.signum, self.signum or signum
        if again:
            signal.signal(signum, signal.SIG_DFL)
        # Data workers get Ctrl-C, too, but must outlive the step.
        if again or (here and not self._training):
            raise KeyboardInterrupt
        if here and speaks_for_its_machine():
            # Not print(): the handler may have interrupted one.
            with contextlib.suppress(OSError):
                os.write(2, b"\nStopping after this step (a second Ctrl-C stops at once) ...\n")


def end_soon(signum: int) -> int:
    """Lets a stopped process end even if W&B still waits for the network; gives its exit code."""
    exits = threading.Event()

    def end() -> None:
        exits.wait()
        time.sleep(PATIENCE)
        line = b"transformer: not all of W&B's records are uploaded: `wandb sync` does it later\n"
        os.write(2, line)
        os._exit(128 + signum)

    threading.Thread(target=end, daemon=True).start()  # none can be started at the exit
    atexit.register(exits.set)
    return 128 + signum


class EarlyStopping(callbacks.EarlyStopping):
    """Stops when BLEU has not risen for so many validations, counted over interruptions."""

    def __init__(self, patience: int) -> None:
        super().__init__(SELECTION, mode="max", patience=patience, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, with the patience of this run."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Train no further where patience had ended when the run was killed."""
        if self.wait_count >= max(self.patience, 1):
            trainer.should_stop = True


class _Votes:
    """Votes of all processes on stopping: the number of a signal, or 0 for going on.

    They vote on the hosts, where nobody waits for a GPU; a vote travels during the next step.
    """

    def __init__(self, processes: int) -> None:
        self._group = dist.new_group(backend="gloo") if processes > 1 else None
        self._vote = torch.tensor(0, device="cpu")
        self._travelling: dist.Work | None = None

    def cast(self, signum: int, now: bool = False) -> int:
        """Vote; returns the outcome of the vote before this one, or waits for that of this one."""
        if self._group is None:
            return signum
        before, self._vote = self._outcome(), torch.tensor(signum, device="cpu")
        self._travelling = dist.all_reduce(
            self._vote, dist.ReduceOp.MAX, self._group, async_op=True
        )
        return self._outcome() if now else before

    def _outcome(self) -> int:
        """The highest number of all processes in the last vote."""
        if self._travelling:
            self._travelling.wait()
        return int(self._vote)


def is_of_a_lost_process(error: Exception) -> bool:
    """Whether an error is how NCCL or gloo says that another process ended or does not answer."""
    gloo = "gloo" in str(error) and re.search("by peer|timed? ?out", str(error), re.IGNORECASE)
    return isinstance(error, dist.DistError) or bool(gloo)
