"""Checkpoint files: when they are written and which are kept, read, averaged.

A checkpoint holds, beside Lightning's own: `bundle`, all of a bundle but its weights; `recipe`, the
name and the settings of the run; `origin`, `micro_batches`, `totals`, `curve` and `wandb_id`.
"""

import logging
import math
import shlex
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from transformer.checksum import checksum
from transformer.errors import UserError
from transformer.models import Seq2Seq
from transformer.models.renamed import with_new_names
from transformer.training.logging import of_training, stepped
from transformer.training.module import SELECTION
from transformer.training.transfer import merged
from transformer.writing import whole

log = logging.getLogger(__name__)
PREFIX = "network."
CHECKSUM = "checksum"  # of all else in a checkpoint; older ones have none
#: What a bundle is made of.
KINDS = {"bundle": dict, "state_dict": dict, "recipe": dict, "global_step": int, "epoch": int}
WEIGHTS, BEST, LAST = "weights-step", "best-step", "last.ckpt"


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, which stays until it is whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with whole(Path(path)) as stream:
            try:
                torch.save({**checkpoint, CHECKSUM: checksum(checkpoint)}, stream)
            except RuntimeError as error:  # in which torch hides why a write failed
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint onto the CPU, adapters merged; nothing in it is executed.

    Args:
        path: a `.ckpt` file that `transformer fit` wrote.

    Raises:
        UserError: when it is missing, damaged, or not a checkpoint of this project.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint: give a .ckpt file of a run's checkpoints/")
    try:
        check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        hint = name_newest(Path(path).parent, ": the newest whole one beside it is {}")
        raise UserError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}){hint}"
        ) from error
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(key), kind) for key, kind in KINDS.items()
    ):
        raise UserError(f"{path} is not a checkpoint that `transformer fit` wrote")
    if checkpoint.pop(CHECKSUM, None) not in (None, checksum(checkpoint)):
        raise UserError(f"{path} is not what was saved: its checksum is another: copy it again")
    checkpoint["state_dict"] = merged(with_new_names(checkpoint["state_dict"]))
    return checkpoint


def look_through(folder: Path) -> tuple[Path | None, list[Path]]:
    """Look for the newest checkpoint of a folder that a run can be resumed from.

    Files say themselves which is the newest: their times are those of a copy where one was made.

    Returns:
        It, or None, and those that cannot be read and may be newer.
    """
    found, damaged = [], []
    for file in sorted(folder.glob("*.ckpt")):
        if file.name.startswith(WEIGHTS):
            continue
        try:
            checkpoint = mapped(file)
            if {"bundle", "optimizer_states"} <= checkpoint.keys():
                found.append((_age(checkpoint), file.stat().st_mtime, file))
        except Exception:  # torch raises many kinds
            damaged.append(file)
    for *_, file in sorted(found, reverse=True):
        try:
            check_sums(file)
            return file, damaged
        except Exception:
            damaged.append(file)
    return None, damaged


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder that a run can be resumed from; None without one."""
    return look_through(folder)[0]


def _age(checkpoint: dict[str, Any]) -> tuple[int, int, int]:
    """What grows from checkpoint to checkpoint of a run: lives, optimizer steps, validations.

    A life begins whenever the run is resumed, which may be from a checkpoint before the newest.
    """
    # One of an earlier version may lack any of them.
    lives = checkpoint.get("callbacks", {}).get(Checkpoints.__name__, {}).get("lives", 0)
    return lives, checkpoint.get("global_step", 0), len(checkpoint.get("curve", ()))


def check_sums(path: str | Path) -> None:
    """Compare a file with the checksums that torch writes into it, and does not read itself.

    Raises:
        zipfile.BadZipFile: when they differ.
    """
    with zipfile.ZipFile(path) as archive:
        if name := archive.testzip():
            raise zipfile.BadZipFile(f"{name} has another checksum")


def name_newest(folder: Path, sentence: str, otherwise: str = "") -> str:
    """A hint for a message: the sentence with the newest checkpoint of a folder in place of {}."""
    newest = newest_checkpoint(folder)
    return sentence.format(shlex.quote(str(newest))) if newest else otherwise


def mapped(path: Path) -> dict[str, Any]:
    """A checkpoint mapped, not read: that the file ends as it should is seen at once."""
    checkpoint: dict[str, Any] = torch.load(path, "cpu", weights_only=True, mmap=True)
    return checkpoint


def average_checkpoints(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Average the weights of several checkpoints (paper, section 6.1); of one, take its own.

    Args:
        paths: checkpoints of one run, or at least of one tokenizer and one network shape.

    Returns:
        The last checkpoint with the mean weights in its `state_dict`, summed in float64.
    """
    if not paths:
        raise UserError("there are no checkpoints to average: give at least one .ckpt file")
    checkpoint = read_checkpoint(paths[-1])
    weights = checkpoint["state_dict"]
    sums = {name: tensor.double() for name, tensor in weights.items()}
    for path in paths[:-1]:
        other = read_checkpoint(path)
        for key, what in (("network", "network shapes"), ("tokenizer", "tokenizers")):
            if other["bundle"][key] != checkpoint["bundle"][key]:
                raise UserError(
                    f"{path} and {paths[-1]} have different {what}: average checkpoints of one run"
                )
        for name, tensor in other["state_dict"].items():
            sums[name] += tensor
    means = {name: (total / len(paths)).to(weights[name].dtype) for name, total in sums.items()}
    return {**checkpoint, "state_dict": means}


def load_network(network: Seq2Seq, checkpoint: dict[str, Any]) -> None:
    """Put a checkpoint's weights into a network of its shape."""
    weights = checkpoint["state_dict"].items()
    network.load_state_dict({k.removeprefix(PREFIX): v for k, v in weights if k.startswith(PREFIX)})


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
        if stepped(trainer) and not _validates_now(trainer):
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

    def __init__(self, folder: Path, *, keep_best: int, average: int, save_every: int | None):
        self.folder, self.save_every = folder, save_every
        self.keep_best, self.keep_weights = keep_best, average if average > 1 else 0
        self.best_scores: dict[str, float] = {}  # by the names of their checkpoints
        self.to_average: list[str] = []  # names of checkpoints, the newest last
        self.lives = 0  # how often the run was resumed

    @property
    def best(self) -> str | None:
        """Name of the checkpoint with the highest BLEU, the first of several."""
        return max(self.best_scores, key=lambda name: self.best_scores[name], default=None)

    def after_step(self, trainer: Any, validated: bool) -> None:
        if trainer.fast_dev_run:
            return
        due = self._is_due(trainer, validated)
        if due and self.keep_weights:
            name = f"{WEIGHTS}{trainer.global_step}.ckpt"
            names = [*(other for other in self.to_average if other != name), name]
            self.to_average = names[-self.keep_weights :]
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
        found = trainer.callback_metrics
        bleu, score = float(found["val/bleu"]), float(found[SELECTION])
        name = f"{BEST}{trainer.global_step}-bleu{bleu:.2f}.ckpt"
        # A run that was resumed before this step may have a file of it that is better.
        before = self.best_scores.get(name, -math.inf)
        scores = {**self.best_scores, name: max(score, before)}
        kept = sorted(scores, key=lambda other: -scores[other])[: self.keep_best]
        gone = self.best_scores.keys() - set(kept)
        self.best_scores = {other: scores[other] for other in kept}
        if name in kept and score > before:
            trainer.save_checkpoint(self.folder / name)
        self._remove(trainer, gone)

    def _remove(self, trainer: Trainer, names: Iterable[str]) -> None:
        for name in names:
            trainer.strategy.remove_checkpoint(self.folder / name)

    def state_dict(self) -> dict[str, Any]:
        """Remember names alone: the folder may be moved."""
        return {"ranks": self.best_scores, "lives": self.lives}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Find the files that are there, also the best ones that were saved after this state."""
        found: Any = None
        if trainer.is_global_zero:
            files = [path for path in sorted(self.folder.glob("*.ckpt")) if _is_whole(path)]
            done = {_step_of(path): path.name for path in files if path.name.startswith(WEIGHTS)}
            weights = [done[step] for step in sorted(done) if step <= checkpoint["global_step"]]
            states = {path: _state_of(path) for path in files}
            scores = {
                path.name: _score_of(path, states[path])
                for path in files
                if path.name.startswith(BEST)
            }
            lives = max((state.get("lives", 0) for state in states.values()), default=0)
            found = weights[-self.keep_weights :] if self.keep_weights else [], scores, lives + 1
        self.to_average, self.best_scores, self.lives = trainer.strategy.broadcast(found)


def _is_whole(path: Path) -> bool:
    try:
        check_sums(path)
        return True
    except Exception:  # torch and zipfile raise many kinds
        if path.name.startswith((WEIGHTS, BEST)):
            log.warning("warning: %s cannot be read: the final model does without it", path)
        return False


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix(WEIGHTS))


def _state_of(path: Path) -> dict[str, Any]:
    """What `Checkpoints` remembers in a checkpoint; in one of weights alone that is nothing."""
    state: dict[str, Any] = mapped(path).get("callbacks", {}).get(Checkpoints.__name__, {})
    return state


def _score_of(path: Path, state: dict[str, Any]) -> float:
    """The score by which a best checkpoint was chosen.

    It says so itself; one of version 0.1 has its BLEU in its name.
    """
    return float(state.get("ranks", {}).get(path.name, path.stem.partition("bleu")[2]))
