"""When checkpoints are written and which are kept; when training stops by itself."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.callbacks import Checkpoint

from transformer.training.checkpoints import WholeFiles, mapped
from transformer.training.logging import of_training
from transformer.training.module import RANK

WEIGHTS, BEST, LAST = "weights-step", "best-step", "last.ckpt"


class AfterSteps(Checkpoint):
    """Acts after each optimizer step or, where a validation follows it, after that.

    A run that is resumed from the state of such a moment repeats and skips nothing: no gradient is
    half accumulated, and the scores of the validation are part of the state. As a `Checkpoint` it
    runs after the other callbacks.
    """

    _last_step = 0

    def after_step(self, trainer: Any, validated: bool) -> None:
        """Act; `validated` says whether a validation followed the step."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Let every file be written whole."""
        trainer.strategy.checkpoint_io = WholeFiles()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """The step after which a resumed run was saved is not taken again."""
        self._last_step = trainer.global_step
        epoch: Any = trainer.fit_loop.epoch_progress.current
        if epoch.completed == epoch.started:  # saved after the last step of an epoch
            trainer.fit_loop.reset_restart_stage()  # else Lightning would not count the next one

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Act where a step ends that no validation follows."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if not _validates_now(trainer):
            self.after_step(trainer, validated=False)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Act where a validation ends that followed a step."""
        if of_training(trainer) and not trainer.fit_loop._should_accumulate():
            self.after_step(trainer, validated=True)


def _validates_now(trainer: Trainer) -> bool:
    """Lightning's own decision, which it makes after the callbacks of the batch."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    if fetcher is None or not loop._should_check_val_fx(fetcher):
        return False
    loop.val_loop.setup_data()
    return not loop.val_loop.skip


class Checkpoints(AfterSteps):
    """Writes `weights-*` (to be averaged), `best-*` and `last.ckpt`.

    Args:
        folder: where they go.
        keep_best: how many of the checkpoints with the highest BLEU to keep.
        average: how many checkpoints the final model is the mean of; below 2 for none.
        save_every: optimizer steps between checkpoints; None for once an epoch.
    """

    def __init__(self, folder: Path, *, keep_best: int, average: int, save_every: int | None):
        self.folder, self.save_every = folder, save_every
        self.keep_best, self.keep_weights = keep_best, average if average > 1 else 0
        #: Names of the best checkpoints, and by what they were chosen.
        self.ranks: dict[str, float] = {}
        #: Names of the checkpoints to average, the newest last.
        self.weights: list[str] = []

    @property
    def best(self) -> str | None:
        """Name of the checkpoint with the highest BLEU, the first of several."""
        return max(self.ranks, key=lambda name: self.ranks[name], default=None)

    def after_step(self, trainer: Any, validated: bool) -> None:
        """Write the checkpoints that are due."""
        if trainer.fast_dev_run:
            return
        due = self._is_due(trainer, validated)
        if due and self.keep_weights:
            name = f"{WEIGHTS}{trainer.global_step}.ckpt"
            names = [*(other for other in self.weights if other != name), name]
            self.weights = names[-self.keep_weights :]
            trainer.save_checkpoint(self.folder / name, weights_only=True)
            self._remove(trainer, names[: -self.keep_weights])
        if validated and self.keep_best:
            self._keep_best(trainer)
        if due:
            trainer.save_checkpoint(self.folder / LAST)

    def _is_due(self, trainer: Any, validated: bool) -> bool:
        if self.save_every:
            return bool(trainer.global_step % self.save_every == 0)
        over = trainer.global_step == trainer.max_steps or (validated and trainer.should_stop)
        return over or bool(trainer.fit_loop.epoch_loop._num_ready_batches_reached())

    def _keep_best(self, trainer: Trainer) -> None:
        bleu, rank = (float(trainer.callback_metrics[key]) for key in ("val/bleu", RANK))
        name = f"{BEST}{trainer.global_step}-bleu{bleu:.2f}.ckpt"
        # A run that was resumed before this step may have a file of it that is better.
        before = self.ranks.get(name, -math.inf)
        ranks = {**self.ranks, name: max(rank, before)}
        kept = sorted(ranks, key=lambda other: -ranks[other])[: self.keep_best]
        gone = self.ranks.keys() - set(kept)
        self.ranks = {other: ranks[other] for other in kept}
        if name in kept and rank > before:
            trainer.save_checkpoint(self.folder / name)
        self._remove(trainer, gone)

    def _remove(self, trainer: Trainer, names: Iterable[str]) -> None:
        for name in names:
            trainer.strategy.remove_checkpoint(self.folder / name)

    def state_dict(self) -> dict[str, Any]:
        """Names alone: the folder may be moved."""
        return {"ranks": self.ranks, "weights": self.weights}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Find the files that are there: the best of all, saved before this state or after it."""
        found: Any = None
        if trainer.is_global_zero:
            weights = _state(checkpoint)["weights"]
            ranks = {path.name: _rank(path) for path in sorted(self.folder.glob(f"{BEST}*.ckpt"))}
            found = (
                [name for name in weights if (self.folder / name).exists()],
                {name: rank for name, rank in ranks.items() if rank is not None},
            )
        self.weights, self.ranks = trainer.strategy.broadcast(found)


def _state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The state of `Checkpoints`, also from version 0.1, where Lightning's callbacks had it."""
    states = checkpoint["callbacks"]
    if ours := states.get(Checkpoints.__name__):
        return dict(ours)
    old = {s["monitor"]: s for key, s in states.items() if key.startswith("RunCheckpoint")}
    kept = {key: old[key]["best_k_models"] if key in old else {} for key in (RANK, "step")}
    weights = sorted(kept["step"], key=lambda path: int(kept["step"][path]))
    return {
        "ranks": {Path(path).name: float(rank) for path, rank in kept[RANK].items()},
        "weights": [Path(path).name for path in weights],
    }


def _rank(path: Path) -> float | None:
    """The number by which a best checkpoint was chosen, as it says itself; None if unreadable."""
    try:
        return float(_state(mapped(path))["ranks"][path.name])
    except Exception:  # torch raises many kinds
        return None


class EarlyStopping(callbacks.EarlyStopping):
    """Stops when BLEU has not risen for so many validations.

    Args:
        patience: how many.
    """

    def __init__(self, patience: int) -> None:
        super().__init__(
            RANK, mode="max", patience=patience, check_on_train_epoch_end=False, verbose=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, with the patience of this run."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Train no further where patience had ended when the run was killed."""
        if self.wait_count >= max(self.patience, 1):
            trainer.should_stop = True
