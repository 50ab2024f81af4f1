"""Checkpoint files: written whole, read, averaged.

A checkpoint holds, beside Lightning's own: `bundle`, all of a bundle but its weights; `recipe`, the
name and the settings of the run; `origin`, `micro_batches`, `totals`, `curve` and `wandb_id`.
"""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from transformer.errors import UserError
from transformer.models import Seq2Seq
from transformer.models.renamed import with_new_names
from transformer.training.transfer import merged
from transformer.writing import whole

PREFIX = "network."


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, which stays until it is whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with whole(Path(path)) as stream:
            try:
                torch.save(checkpoint, stream)
            except RuntimeError as error:  # in which torch hides why a write failed
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of `transformer fit` onto the CPU, adapters merged; it executes nothing."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint: give a .ckpt file of a run's checkpoints/")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        hint = name_newest(Path(path).parent, ": the newest whole one beside it is {}")
        raise UserError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}){hint}"
        ) from error
    if not isinstance(checkpoint, dict) or not {"bundle", "state_dict"} <= checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint that `transformer fit` wrote")
    checkpoint["state_dict"] = merged(with_new_names(checkpoint["state_dict"]))
    return checkpoint


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder that a run can be resumed from; None without one."""
    for file in sorted(folder.glob("*.ckpt"), key=lambda f: f.stat().st_mtime, reverse=True):
        with suppress(Exception):  # torch raises many kinds
            if {"bundle", "optimizer_states"} <= mapped(file).keys():
                return file
    return None


def name_newest(folder: Path, sentence: str, otherwise: str = "") -> str:
    """A hint for a message: the sentence with the newest checkpoint of a folder in place of {}."""
    newest = newest_checkpoint(folder)
    return sentence.format(shlex.quote(str(newest))) if newest else otherwise


def mapped(path: Path) -> dict[str, Any]:
    """A checkpoint mapped, not read: that the file ends as it should is seen at once."""
    checkpoint: dict[str, Any] = torch.load(path, "cpu", weights_only=True, mmap=True)
    return checkpoint


def average_checkpoints(paths: Sequence[str | Path]) -> dict[str, Any]:
    """Average the weights of checkpoints of one tokenizer and network shape (paper, section 6.1).

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


def about(module: Any) -> dict[str, Any]:
    """The settings of a bundle beside its shape, as `save_bundle` takes them."""
    return {
        "src": module.data.src,
        "tgt": module.data.tgt,
        "search": asdict(module.search_config),
        "max_length": module.data.max_length,
        "evaluation": module.evaluation,
    }


def load_network(network: Seq2Seq, checkpoint: dict[str, Any]) -> None:
    """Put a checkpoint's weights into a network of its shape."""
    weights = checkpoint["state_dict"].items()
    network.load_state_dict({k.removeprefix(PREFIX): v for k, v in weights if k.startswith(PREFIX)})
