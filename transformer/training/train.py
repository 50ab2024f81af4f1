"""A run from its trainer to its bundle: training, the test of the final weights, all on disk."""

import shlex
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from transformer.data.datamodule import DataModule
from transformer.errors import UserError, is_for_the_user, message
from transformer.training.bad_steps import FILE
from transformer.training.checkpoint_files import newest_checkpoint
from transformer.training.checkpoints import Checkpoints
from transformer.training.folders import limits, release
from transformer.training.forgetting import ForgettingGate, ParentPair
from transformer.training.heartbeat import Heartbeat
from transformer.training.logging import CsvLogger, TrainingLog
from transformer.training.module import Seq2SeqModule
from transformer.training.progress import Progress
from transformer.training.results import (
    Split,
    evaluate,
    load_final_weights,
    results,
    save_final,
    summary,
)
from transformer.training.runs import SameStart, program
from transformer.training.stopping import (
    PATIENCE,
    EarlyStopping,
    Interrupted,
    StopSafely,
    end_soon,
    is_of_a_lost_process,
)
from transformer.training.tracking import WandbTracker, log_bundle, wandb_logger
from transformer.writing import write

FORGOTTEN = 3  # the exit code


@dataclass
class Run:
    """A run: its settings, its folder, and what learns there."""

    config: Any
    name: str  # of the recipe
    folder: Path
    is_new: bool  # whether this process has made the folder for it
    is_trial: bool  # whether nothing shall stay (trainer.fast_dev_run)
    again: str | None  # the command that began it, to be printed when it is stopped; `fit` if None
    module: Seq2SeqModule = field(init=False)
    data: DataModule = field(init=False)
    parent: ParentPair = field(init=False)
    trainer: Trainer = field(init=False)
    log: TrainingLog = field(init=False, default_factory=TrainingLog)

    def __post_init__(self) -> None:
        self.stop = StopSafely(self.folder / "checkpoints")
        self.heartbeat = Heartbeat(self.what_is_left)

    def tidy(self) -> None:
        """Removes a new folder in which nothing was trained: it would be in the way."""
        trainer: Trainer | None = getattr(self, "trainer", None)  # None: it was not even built
        kept = any((self.folder / name).exists() for name in ("results.json", FILE))
        begun = kept or (trainer and trainer.global_step)
        if self.is_new and (self.is_trial or not begun):
            shutil.rmtree(self.folder, ignore_errors=True)
        release(self.folder)

    def make_trainer(self, given: Any, text: str, checkpoint: dict[str, Any]) -> None:
        """Makes the trainer as the user set it, with our logger, checkpoints and display."""
        config = self.config
        # The log comes after what a validation does for W&B, for it starts the clock again.
        callbacks: list[Callback] = [self.heartbeat, SameStart(config.ckpt_path), WandbTracker()]
        callbacks += [self.log, AnnounceRun(self, text)]
        shows_progress = given.enable_progress_bar is not False
        if shows_progress:
            callbacks.append(Progress(self.log))
        if config.patience is not None:
            callbacks.append(EarlyStopping(config.patience))
        # Without validations the best of those before a resume is no better than what comes now.
        keep_best = config.keep_best if config.data.val else 0
        saving = keep_best, config.average, config.save_every
        callbacks += [Checkpoints(self.folder / "checkpoints", *saving), self.stop]
        theirs = given.callbacks or []
        logger = given.logger
        if logger is None and not given.fast_dev_run:
            if config.logger == "wandb":
                logger = wandb_logger(self.folder, self.name, checkpoint.get("wandb_id"))
            elif config.logger == "csv":
                logger = CsvLogger(self.folder, checkpoint.get("global_step", 0))
        ours = {
            "logger": logger or False,
            "callbacks": [*(theirs if isinstance(theirs, list) else [theirs]), *callbacks],
            "default_root_dir": str(self.folder),
            "enable_progress_bar": shows_progress,
        }
        try:
            self.trainer = Trainer(**{**vars(given), **ours})
        except (TypeError, ValueError, ModuleNotFoundError) as error:
            raise UserError(f"trainer: {error}") from None

    def goodbye(self, stop: Interrupted) -> str:
        """Says where training stopped, and which commands go on."""
        bundle = shlex.quote(str(self.folder / "bundle-interrupted"))
        return (
            f"\nStopped after step {stop.step:,} (epoch {stop.epoch}); everything is in "
            f"{stop.checkpoint}\n"
            f"  to resume:         {self._resume(stop.checkpoint)}\n"
            f"  to make a bundle:  {program()} average {shlex.quote(str(stop.checkpoint))} {bundle}"
        )

    def what_is_left(self) -> str:
        """Gives the command that goes on after a stop in the middle of something, if any can."""
        newest = newest_checkpoint(self.stop.folder)
        if newest is None:
            return "nothing was saved before"
        return f"to resume from what was saved before: {self._resume(newest)}"

    def _resume(self, checkpoint: Path) -> str:
        config = shlex.quote(str(checkpoint.parents[1] / "config.yaml"))
        again = self.again or f"fit --config {config}"
        if self.again and self.config.existing == "resume":
            return f"{program()} {again}"
        return f"{program()} {again} --ckpt_path {shlex.quote(str(checkpoint))}"

    def failed(self, error: Exception) -> Exception:
        """Names the checkpoint to resume from in an error that stops training on its way."""
        left = f"training stopped after step {self.trainer.global_step:,}; {self.what_is_left()}"
        if is_for_the_user(error):
            return UserError(f"{message(error)}; {left}")
        if is_of_a_lost_process(error):
            return UserError(f"another process of this run is gone, see its own words; {left}")
        return RuntimeError(left)  # the traceback of the other one stays before it


class AnnounceRun(Callback):
    """Writes config.yaml as soon as training begins, and says in three lines what is trained."""

    def __init__(self, run: Run, text: str) -> None:
        self.run, self.text = run, text

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        run = self.run
        write(run.folder / "config.yaml", self.text)
        module, data = run.module, run.data
        vocabularies = {module.tokenizer.src_vocab_size, module.tokenizer.tgt_vocab_size}
        learns = module.learned_parameters
        learned = (
            f", {learns:,} of them learn," if module.freeze_patterns or module.lora.rank else ""
        )
        origin = "".join(f"{line}\n" for line in module.origin)
        counts = data.counts
        skipped = f" ({counts.too_long:,} too long and skipped)" if counts.too_long else ""
        print(
            f"{run.name}: {data.src} -> {data.tgt}, {counts.pairs:,} pairs{skipped}, vocabulary of "
            f"{' and '.join(f'{size:,}' for size in sorted(vocabularies))}\n"
            f"{module.model.count_parameters():,} parameters{learned} on {trainer.world_size} x "
            f"{module.device.type}, precision {trainer.precision}\n"
            f"{origin}{'resuming in' if run.config.ckpt_path else 'writing to'} {run.folder}",
            flush=True,
        )


def train(run: Run) -> int:
    """Trains, tests, and writes the bundle; returns the exit code."""
    try:
        with run.stop, run.heartbeat:
            gate = None
            if run.parent.test and run.trainer.is_global_zero:
                search = run.module.search_config
                gate = ForgettingGate(run.parent, run.config.model.init_from, search)
                print(gate, flush=True)
            path = run.config.ckpt_path
            run.trainer.fit(run.module, datamodule=run.data, ckpt_path=path, weights_only=True)
            forgotten = finish(run, gate)
    except Interrupted as stop:
        if run.trainer.is_global_zero:
            print(run.goodbye(stop), flush=True)
        code = end_soon(stop.signum)
        if run.trainer.node_rank:  # a cluster may end all tasks with the first one that fails
            time.sleep(PATIENCE)
        # On a machine the first process speaks for all, for Lightning ends it with another one.
        return 0 if run.trainer.local_rank else code
    except (KeyboardInterrupt, SystemExit):  # the second is Lightning's answer to the first
        print(f"\nStopped at once; {run.what_is_left()}.", flush=True)
        return end_soon(run.stop.signum or signal.SIGINT)
    except Exception as error:  # after the beginning of training it says how to go on
        if run.stop.began is None or isinstance(error, MisconfigurationException | BrokenPipeError):
            raise
        raise run.failed(error) from error
    return FORGOTTEN if forgotten else 0


def finish(run: Run, gate: ForgettingGate | None) -> bool:
    """Scores the final model, writes all down, returns whether it forgot the parent's pair."""
    trainer, module = run.trainer, run.module
    weights = load_final_weights(trainer, module)
    split: Split | None = "test" if run.config.data.test else "val" if run.config.data.val else None
    try:
        tested = split if split and evaluate(trainer, module, split) else None
        numbers = results(trainer, module, run.log, tested, weights)
        numbers["limits"] = limits(run.config)
        if gate:
            numbers["parent"] = gate.score_after(module)
            run.log.log_parent(trainer, numbers["parent"])
    except BaseException:  # of hours of training there is a bundle, whatever became of the test
        if trainer.is_global_zero and not run.is_trial:
            save_final(run.folder, module, results(trainer, module, run.log, None, weights))
            print(f"\nThe model was not tested; it is in {run.folder / 'bundle'}", flush=True)
        raise
    if not trainer.is_global_zero:
        return False
    picture = save_final(run.folder, module, numbers)
    print(summary(run.folder, module, numbers, picture), flush=True)
    log_bundle(trainer, run.folder / "bundle", run.name, numbers)
    if run.is_trial:
        print("\nThat was a trial run (trainer.fast_dev_run): nothing was kept.", flush=True)
    return bool(gate and numbers["parent"]["forgotten"])
