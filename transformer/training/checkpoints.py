"""When checkpoints are written, and which of them are kept."""

import logging
import math
import re
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from transformer.training.checkpoint_files import (
    BEST,
    LAST,
    WEIGHTS,
    WholeFiles,
    age,
    check_sums,
    keeper_state,
    mapped,
)
from transformer.training.logging import of_training, stepped
from transformer.training.module import SELECTION
from transformer.writing import whole

log = logging.getLogger(__name__)
#: Of a checkpoint to average or to choose from: its kind, its step, its BLEU.
NAME = re.compile(rf"({WEIGHTS}|{BEST})(\d+)(?:-bleu(\d+\.\d+))?\.ckpt")


class AfterSteps(Checkpoint):
    """Acts after each optimizer step or, where a validation follows it, after that.

    A run that is resumed from the state of such a moment repeats and skips nothing: no gradient is
    half accumulated, and the scores of the validation are part of the state. As a `Checkpoint` it
    runs after the other callbacks.
    """

    folder: Path

    def after_step(self, trainer: Any, validated: bool) -> None:
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        trainer.strategy.checkpoint_io = WholeFiles()
        self.folder = trainer.strategy.broadcast(self.folder)  # that of the first process

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin the next epoch where a resumed run was saved after the last step of one."""
        epoch: Any = trainer.fit_loop.epoch_progress.current
        if epoch.completed == epoch.started:
            trainer.fit_loop.reset_restart_stage()  # else Lightning would not count it

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if not stepped(trainer):
            trainer.should_stop = False  # Lightning's timer says so again when the step is made
        elif not _validates_now(trainer):
            self.after_step(trainer, validated=False)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if of_training(trainer) and stepped(trainer):
            self.after_step(trainer, validated=True)


def _validates_now(trainer: Trainer) -> bool:
    """Asks Lightning in advance: it decides after the callbacks of the batch."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    if fetcher is None or not loop._should_check_val_fx(fetcher):
        return False
    loop.val_loop.setup_data()
    return not loop.val_loop.skip


class Checkpoints(AfterSteps):
    """Writes `weights-*` (to be averaged), `best-*` and `last.ckpt`.

    Lightning's `ModelCheckpoint` may save in the middle of an accumulation, forgets its files when
    their folder is moved, and after a kill does not know those that are newer than its state.
    """

    def __init__(self, folder: Path, keep_best: int, average: int, save_every: int | None):
        self.folder, self.save_every = folder, save_every
        self.keep_best, self.keep_weights = keep_best, average
        self.best_scores: dict[str, float] = {}  # by the names of their checkpoints
        self.to_average: list[str] = []  # names of checkpoints, the newest last
        self.lives = 0  # how often the run was resumed
        self.due_at: int | None = None  # the last step after which last.ckpt was due

    def after_step(self, trainer: Any, validated: bool) -> None:
        if trainer.fast_dev_run:
            return
        due = self._is_due(trainer)
        if due:
            self.due_at = trainer.global_step
        if due and self.keep_weights:
            name = f"{WEIGHTS}{trainer.global_step}.ckpt"
            self.to_average = [*(other for other in self.to_average if other != name), name]
            trainer.save_checkpoint(self.folder / name, weights_only=True)
            self._remove_others(trainer)
        if validated and self.keep_best:
            self._keep_best(trainer)
            self._remove_others(trainer)
        if due:
            trainer.save_checkpoint(self.folder / LAST)

    def _is_due(self, trainer: Any) -> bool:
        if self.save_every:
            return bool(trainer.global_step % self.save_every == 0)
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early
        over = stops or trainer.global_step == trainer.max_steps
        return bool(over or trainer.fit_loop.epoch_loop._num_ready_batches_reached())

    def _keep_best(self, trainer: Trainer) -> None:
        found = trainer.callback_metrics
        bleu, score = float(found["val/bleu"]), float(found[SELECTION])
        name = f"{BEST}{trainer.global_step}-bleu{bleu:.2f}.ckpt"
        # A run that was resumed before this step may have a file of it that is better.
        before = self.best_scores.get(name, -math.inf)
        self.best_scores[name] = max(score, before)
        if name in self.best_names() and score > before:
            trainer.save_checkpoint(self.folder / name)

    def best_names(self) -> list[str]:
        """Those to keep, the best one first and, of several, the first one."""
        by_score = sorted(self.best_scores, key=lambda name: -self.best_scores[name])
        return by_score[: self.keep_best]

    def _remove_others(self, trainer: Trainer) -> None:
        scores = {name: self.best_scores[name] for name in self.best_names()}
        weights = self.to_average[-self.keep_weights :]
        for name in {*self.best_scores, *self.to_average} - {*scores, *weights}:
            trainer.strategy.remove_checkpoint(self.folder / name)
        self.best_scores, self.to_average = scores, weights

    def state_dict(self) -> dict[str, Any]:
        """Remember names alone: the folder may be moved."""
        names = {"ranks": self.best_scores, "to_average": self.to_average}
        return {**names, "lives": self.lives, "due_at": self.due_at}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Find the files that are there, also the best ones that were saved after this state.

        A life that was killed among its saves has not done all of them: the rest is done here.
        """
        found: Any = None
        if trainer.is_global_zero:
            files = self.folder.glob("*.ckpt")
            states = {file.name: state for file in files if (state := _state_of(file)) is not None}
            found = self._found(states, checkpoint)
            self._make_up(Path(str(trainer.ckpt_path)), checkpoint, LAST in states)
        self.to_average, self.best_scores, self.lives = trainer.strategy.broadcast(found)
        trainer.strategy.barrier()  # others may still read what is removed
        self._remove_others(trainer)

    def _found(
        self, states: dict[str, dict[str, Any]], checkpoint: dict[str, Any]
    ) -> tuple[list[str], dict[str, float], int]:
        """Names to average, scores of the best, and the number of this life."""
        ours = [match for name in states if (match := NAME.fullmatch(name))]  # no copies by hand
        ours.sort(key=lambda match: int(match[2]))
        # A run that went back to an earlier step left others behind.
        known = keeper_state(checkpoint).get("to_average", states)
        done = [m[0] for m in ours if m[1] == WEIGHTS and int(m[2]) <= checkpoint["global_step"]]
        names = [name for name in done if name in known] if self.keep_weights else []
        # A best one says by which score it was chosen; the name of one of version 0.1 has its BLEU.
        best = {
            m[0]: float(states[m[0]].get("ranks", {}).get(m[0], m[3]))
            for m in ours if m[1] == BEST and self.keep_best
        }  # fmt: skip
        lives = max((state.get("lives", 0) for state in states.values()), default=0)
        return names, best, lives + 1

    def _make_up(self, path: Path, checkpoint: dict[str, Any], has_last: bool) -> None:
        """Copy the run's own checkpoint to last.ckpt, if that was due when a kill came before."""
        last, is_ours = self.folder / LAST, path.resolve().parent == self.folder.resolve()
        if not is_ours or keeper_state(checkpoint).get("due_at") != checkpoint["global_step"]:
            return
        if not has_last or age(mapped(last)) < age(checkpoint):
            with path.open("rb") as saved, whole(last) as copy:
                shutil.copyfileobj(saved, copy)


def _state_of(path: Path) -> dict[str, Any] | None:
    """What `Checkpoints` remembers in a file, nothing in one of weights alone; None if damaged."""
    try:
        check_sums(path)
        return keeper_state(mapped(path))
    except Exception:  # torch and zipfile raise many kinds
        if path.name.startswith((WEIGHTS, BEST)):
            log.warning("warning: %s cannot be read: the final model does without it", path)
        return None
