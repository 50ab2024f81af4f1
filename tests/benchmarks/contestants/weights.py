"""A bundle of this project as arrays, under the names that a peer gives to its weights.

It is imported in the peers' environments: numpy and safetensors alone.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Array = NDArray[np.float32]
Arrays = dict[str, Array]
#: For each stack, from the name of a module in a layer here to that of the peer. Where the peer has
#: several, the rows are dealt out evenly: queries, keys and values are one matrix here.
Names = dict[str, dict[str, tuple[str, ...]]]


class Bundle(NamedTuple):
    """The shape (`TransformerConfig` as a dictionary), the one embedding matrix, and the layers."""

    network: dict[str, Any]
    embedding: Array
    layers: Arrays


def read_bundle(folder: str | Path) -> Bundle:
    """Read a bundle of a Transformer as the paper has it.

    Args:
        folder: written by `transformer fit`.

    Raises:
        ValueError: when the peers do not know its shape.
    """
    network = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["network"]
    paper = {"norm": "post", "positions": "sinusoidal", "tied": "three_way", "d_k": None}
    if any(network[key] != value for key, value in paper.items()):
        raise ValueError(f"{folder}: the benchmark needs a bundle with {paper}")
    arrays = load_file(Path(folder) / "model.safetensors")
    return Bundle(network, arrays.pop("src_embedding.tokens.weight"), arrays)


def renamed(layers: Arrays, place: str, names: Names) -> Arrays:
    """The layers' weights as the peer names them.

    Args:
        layers: of a `Bundle`.
        place: of a layer in the peer, such as `model.{stack}.layers.{index}`.
        names: of the modules in it.
    """
    found = {}
    for name, array in layers.items():
        stack, index, *module, kind = name.split(".")
        theirs = names[stack][".".join(module)]
        for part, piece in zip(theirs, np.split(array, len(theirs)), strict=True):
            found[f"{place.format(stack=stack, index=index)}.{part}.{kind}"] = piece
    return found


def sinusoids(length: int, d_model: int) -> Array:
    """The positions of the paper's section 3.5, (length, d_model): sines and cosines in turn."""
    angles = np.arange(length)[:, None] / 10000 ** (np.arange(0, d_model, 2) / d_model)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, -1).astype(np.float32)


def until(ids: list[int], end: int) -> list[int]:
    """The ids before the first `end`, all where there is none."""
    return ids[: ids.index(end)] if end in ids else ids
