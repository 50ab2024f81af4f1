"""Checkpoints, their mean, and the bundle that is made of one (paper, section 6.1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transformer.bundle import save_bundle
from transformer.data.tokenizer import Tokenizer
from transformer.errors import UserError
from transformer.models import ARCHITECTURES, Seq2Seq
from transformer.models.renamed import with_new_names
from transformer.training.adapters import merged

PREFIX = "network."


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint onto the CPU, adapters merged; nothing in it is executed.

    Args:
        path: a `.ckpt` file that `transformer fit` wrote.

    Returns:
        The checkpoint: `state_dict`, `bundle`, `recipe`, and what Lightning stores.

    Raises:
        ValueError: when it is missing, damaged, or not a checkpoint of this project.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint: give a .ckpt file of a run's checkpoints/")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        other = newest_checkpoint(Path(path).parent)
        hint = f": the newest whole one beside it is {other}" if other else ""
        raise UserError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}){hint}"
        ) from error
    if not isinstance(checkpoint, dict) or not {"bundle", "state_dict"} <= checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint that `transformer fit` wrote")
    checkpoint["state_dict"] = merged(with_new_names(checkpoint["state_dict"]))
    return checkpoint


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder that a run can be resumed from; None without one."""
    files = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime, reverse=True)
    return next((file for file in files if _resumable(file)), None)


def _resumable(file: Path) -> bool:
    try:  # mapped, not read: that the file ends as it should is seen at once
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return {"bundle", "optimizer_states"} <= checkpoint.keys()
    except Exception:  # torch raises many kinds
        return False


def average_checkpoints(paths: Sequence[str | Path]) -> dict[str, Any]:
    """The mean of the weights of several checkpoints; of one, its own.

    Args:
        paths: checkpoints of one run, or at least of one tokenizer and one network shape.

    Returns:
        The last checkpoint with the mean weights in its `state_dict`, summed in float64.

    Raises:
        ValueError: when there are none, or two of them do not belong together.
    """
    if not paths:
        raise UserError("there are no checkpoints to average: give at least one .ckpt file")
    checkpoint = read_checkpoint(paths[-1])
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    sums = {name: tensor.double() for name, tensor in weights.items()}
    for path in paths[:-1]:
        other = read_checkpoint(path)
        _check_alike(checkpoint, other, paths[-1], path)
        for name, tensor in other["state_dict"].items():
            sums[name] += tensor
    checkpoint["state_dict"] = {
        name: (total / len(paths)).to(weights[name].dtype) for name, total in sums.items()
    }
    return checkpoint


def _check_alike(
    one: dict[str, Any], other: dict[str, Any], one_path: str | Path, other_path: str | Path
) -> None:
    for key, what in (("network", "network shapes"), ("tokenizer", "tokenizers")):
        if one["bundle"][key] != other["bundle"][key]:
            raise UserError(
                f"{other_path} and {one_path} have different {what}: average checkpoints of one run"
            )
    shapes = [{k: v.shape for k, v in c["state_dict"].items()} for c in (one, other)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{other_path} and {one_path} have different weights: are they damaged?")


def checkpoint_to_bundle(checkpoint: dict[str, Any], folder: str | Path, card: str) -> None:
    """Make a bundle of a checkpoint.

    Args:
        checkpoint: from `read_checkpoint` or `average_checkpoints`.
        folder: the bundle's folder, which must not exist yet.
        card: the model card, Markdown.
    """
    about = checkpoint["bundle"]
    tokenizer = Tokenizer.from_text(about["tokenizer"])
    config = ARCHITECTURES[about["architecture"]](**about["network"])
    network = config.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    load_network(network, checkpoint)
    training = {
        "recipe": checkpoint["recipe"].get("name"),
        "epochs": checkpoint["epoch"] + 1,  # Lightning counts from 0
        "steps": checkpoint.get("global_step"),
    }
    save_bundle(folder, network, tokenizer, card=card, training=training, **about["about"])


def load_network(network: Seq2Seq, checkpoint: dict[str, Any]) -> None:
    """Put a checkpoint's weights into a network of its shape."""
    weights = checkpoint["state_dict"].items()
    network.load_state_dict({k.removeprefix(PREFIX): v for k, v in weights if k.startswith(PREFIX)})
