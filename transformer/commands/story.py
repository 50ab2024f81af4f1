"""What a run did over all of its lives, and what it left: two runs compared, bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from transformer.bundle import load_bundle
from transformer.commands.lives import Life
from transformer.training.checkpoint_files import mapped

#: Entries of results.json that tell how long something took.
TIMES = ("seconds", "src_tokens_per_second", "tgt_tokens_per_second")


@dataclass
class Story:
    """What a run did over all of its lives, from its beginning to its end."""

    folder: Path
    tolerance: float = 0.0
    #: Each micro-batch and each validation -> what it gave.
    moments: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, life: Life, straight: Story) -> Iterator[str]:
        """Adds what a life did, and says what the straight run did otherwise or not at all."""
        for name, found in life.moments:
            self.moments[name] = found
            if name in straight.moments:
                yield from differences(name, straight.moments[name], found, self.tolerance)
            else:
                yield f"{name} is not in the straight run"

    def saved(self) -> int:
        """Micro-batches of the farthest checkpoint, from which the next life has to go on."""
        found = [0]
        for file in (self.folder / "checkpoints").glob("[bil]*.ckpt"):  # not of weights alone
            with suppress(Exception):  # of many kinds: a damaged one
                found.append(mapped(file)["micro_batches"])
        return max(found)

    def compare(self, killed: Story) -> Iterator[str]:
        """Says what a run that came to its end has left out, and what it left otherwise."""
        for name in self.moments:
            if name not in killed.moments:
                yield f"{name} was left out"
        yield from differences("run", self.outcome(), killed.outcome(), self.tolerance)

    def outcome(self) -> dict[str, Any]:
        """All files that the run leaves, as far as they do not tell the time."""
        saved = sorted((self.folder / "checkpoints").glob("[!.]*"))
        results = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        return {
            "results.json": {key: results[key] for key in results if key not in TIMES},
            "bundle": load_bundle(self.folder / "bundle").model.state_dict(),
            "checkpoints": {file.name: _learned(file) for file in saved},
        }


def _learned(file: Path) -> dict[str, Any]:
    checkpoint = mapped(file)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "micro_batches", "curve")
    return {name: checkpoint[name] for name in names if name in checkpoint}


def differences(where: str, one: Any, other: Any, tolerance: float) -> Iterator[str]:
    """Yields what differs between two values, or nested lists and dictionaries of them."""
    if isinstance(one, list) and isinstance(other, list):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            if (key in one) != (key in other):
                yield f"{where}: only one of the runs has {key}"
            else:
                yield from differences(f"{where}: {key}", one[key], other[key], tolerance)
    elif not same(one, other, tolerance):
        shown = "" if isinstance(one, torch.Tensor) else f": {one!r}, {other!r}"
        yield f"{where} differs{shown}"


def same(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two values are equal: numbers and tensors as far as the tolerance says."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not tolerance:
            one, other = (tensor.reshape(-1).view(torch.uint8) for tensor in (one, other))
            return torch.equal(one, other)
        return bool((one - other).norm() <= tolerance * max(one.norm(), other.norm()))
    if tolerance and isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return bool(one == other)


def count_tensors(value: Any) -> int:
    """The tensors in nested lists and dictionaries."""
    if isinstance(value, dict | list):
        return sum(map(count_tensors, value.values() if isinstance(value, dict) else value))
    return int(isinstance(value, torch.Tensor))
