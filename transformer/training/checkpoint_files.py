"""Checkpoint files: how they are written whole, found, read and averaged.

A checkpoint holds, beside Lightning's own: `bundle`, all of a bundle but its weights; `recipe`, the
name and the settings of the run; `origin`, `micro_batches`, `totals`, `curve` and `wandb_id`.
"""

import shlex
import zipfile
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from transformer.checksum import checksum, unpickled
from transformer.errors import UserError
from transformer.models import Seq2Seq
from transformer.models.renamed import with_new_names
from transformer.training.transfer import merged
from transformer.writing import whole

PREFIX = "network."
CHECKSUM = "checksum"  # of all else in a checkpoint; older ones have none
#: What a bundle is made of.
KINDS = {"bundle": dict, "state_dict": dict, "recipe": dict, "global_step": int, "epoch": int}
WEIGHTS, BEST, LAST = "weights-step", "best-step", "last.ckpt"
KEEPER = "Checkpoints"  # the class whose state in a checkpoint says what is kept


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
        checkpoint = unpickled(path)
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
                found.append((age(checkpoint), file.stat().st_mtime, file))
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


def age(checkpoint: dict[str, Any]) -> tuple[int, int, int]:
    """What grows from checkpoint to checkpoint of a run: lives, optimizer steps, validations.

    A life begins whenever the run is resumed, which may be from a checkpoint before the newest.
    """
    # One of an earlier version may lack any of them.
    lives = keeper_state(checkpoint).get("lives", 0)
    return lives, checkpoint.get("global_step", 0), len(checkpoint.get("curve", ()))


def keeper_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What `Checkpoints` remembers in a checkpoint; nothing in one of weights alone."""
    state: dict[str, Any] = checkpoint.get("callbacks", {}).get(KEEPER, {})
    return state


def check_sums(path: str | Path) -> None:
    """Compare a file with the checksums that torch writes into it, and does not read itself.

    Raises:
        zipfile.BadZipFile: when they differ.
    """
    with zipfile.ZipFile(path) as archive:
        if name := archive.testzip():
            raise zipfile.BadZipFile(f"{name} has another checksum")


def name_newest(folder: Path, sentence: str) -> str:
    """A hint for a message: the sentence with the newest checkpoint of a folder in place of {}."""
    newest = newest_checkpoint(folder)
    return sentence.format(shlex.quote(str(newest))) if newest else ""


def mapped(path: Path) -> dict[str, Any]:
    """A checkpoint mapped, not read: that the file ends as it should is seen at once."""
    checkpoint: dict[str, Any] = unpickled(path, mmap=True)
    return checkpoint


def average_checkpoints(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Average the weights of several checkpoints (paper, section 6.1); of one, take its own.

    Args:
        paths: checkpoints of one run, or at least of one tokenizer and one network shape.

    Returns:
        The checkpoint of the last step with the mean weights in its `state_dict`, summed in
        float64.
    """
    if not paths:
        raise UserError("there are no checkpoints to average: give at least one .ckpt file")
    newest = read_checkpoint(paths[0])
    sums = {name: tensor.double() for name, tensor in newest["state_dict"].items()}
    for path in paths[1:]:
        other = read_checkpoint(path)
        for key, what in (("network", "network shapes"), ("tokenizer", "tokenizers")):
            if other["bundle"][key] != newest["bundle"][key]:
                raise UserError(
                    f"{paths[0]} and {path} have different {what}: average checkpoints of one run"
                )
        for name, tensor in other["state_dict"].items():
            sums[name] += tensor
        newest = max(newest, other, key=itemgetter("global_step"))
    weights = newest["state_dict"].items()
    means = {name: (sums[name] / len(paths)).to(tensor.dtype) for name, tensor in weights}
    return {**newest, "state_dict": means}


def load_network(network: Seq2Seq, checkpoint: dict[str, Any]) -> None:
    """Put a checkpoint's weights into a network of its shape."""
    weights = checkpoint["state_dict"].items()
    network.load_state_dict({k.removeprefix(PREFIX): v for k, v in weights if k.startswith(PREFIX)})
