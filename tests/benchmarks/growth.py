"""How cost grows with length, vocabulary, batch and beam: this package alone, the tiny shape."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from transformer.data.tokenizer import BOS
from transformer.inference.search import SearchConfig, search
from transformer.kernels.process import keep_freed_memory
from transformer.models import Seq2Seq
from transformer.training.objective import label_smoothed_loss, target_rows
from transformer.training.runs import choose_precision, set_up_libraries

from .papers import TINY

LENGTH, VOCABULARY, TOKENS, BEAM, SENTENCES = 32, 10_000, 4096, 5, 16
#: What grows -> its values; everything else stands as above.
TRAINING = {
    "length": (16, 32, 64, 128, 256, 512),
    "vocabulary": (1000, 4000, 16_000, 64_000),
    "tokens": (1024, 2048, 4096, 8192, 16_384, 32_768),
}
DECODING = {"beam": (1, 2, 4, 8, 16), "length": (16, 32, 64, 128, 256)}
REPEATS = 5


def growth(device: str) -> dict[str, Any]:
    """Seconds of one training step and of the search, along each axis.

    Returns:
        For `training` and `decoding` and each of their axes: values, medians in seconds, and the
        slope in doubly logarithmic coordinates between neighbours: 1 is linear.
    """
    set_up_libraries()
    keep_freed_memory()
    precision = choose_precision(device)
    found: dict[str, Any] = {"precision": precision, "repeats": REPEATS}
    for task, axes in (("training", TRAINING), ("decoding", DECODING)):
        prepare = _step(device, precision) if task == "training" else _decoder(device)
        found[task] = {axis: _along(prepare, axis, values) for axis, values in axes.items()}
    return found


def _along(
    prepare: Callable[..., Callable[[], None]], axis: str, values: tuple[int, ...]
) -> dict[str, Any]:
    """All values take turns, so that a slow moment of the machine hits each of them."""
    work = [prepare(**{axis: value}) for value in values]
    seconds: list[list[float]] = [[] for _ in work]
    for _ in range(REPEATS + 1):
        for place, act in enumerate(work):
            seconds[place].append(_timed(act))
    medians = [statistics.median(times[1:]) for times in seconds]
    print(f"  {axis}: {', '.join(f'{1e3 * median:,.0f} ms' for median in medians)}", flush=True)
    return {"values": values, "seconds": medians, "slopes": list(_slopes(values, medians))}


def _slopes(values: tuple[int, ...], seconds: list[float]) -> Iterator[float]:
    for (a, b), (s, t) in zip(pairwise(values), pairwise(seconds), strict=True):
        yield math.log(t / s) / math.log(b / a)


def _timed(act: Callable[[], None]) -> float:
    start = time.perf_counter()
    act()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _model(vocabulary: int, device: str) -> Seq2Seq:
    torch.manual_seed(1)
    return TINY.build(vocabulary, vocabulary).to(device)


def _ids(rows: int, length: int, vocabulary: int, device: str) -> Tensor:
    return torch.randint(4, vocabulary, (rows, length), device=device)


def _step(device: str, precision: str) -> Callable[..., Callable[[], None]]:
    """A training step with the loss and the optimizer of the package, without a Trainer."""

    def prepare(
        length: int = LENGTH, vocabulary: int = VOCABULARY, tokens: int = TOKENS
    ) -> Callable[[], None]:
        model = _model(vocabulary, device).train()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        src = _ids(tokens // length, length, vocabulary, device)
        lengths = torch.full((len(src),), length, device=device)
        tgt_in = torch.cat([src.new_full((len(src), 1), BOS), src[:, :-1]], 1)
        rows = target_rows(lengths, length)

        def step() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed"):
                hidden = model(src, lengths, tgt_in)
                loss, _ = label_smoothed_loss(model.project, hidden, src, rows, 0.1)
            (loss / len(rows)).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return prepare


def _decoder(device: str) -> Callable[..., Callable[[], None]]:
    """Beam search with random weights, which hardly ever end a sentence before its limit."""
    model = _model(VOCABULARY, device).eval()

    def prepare(beam: int = BEAM, length: int = LENGTH) -> Callable[[], None]:
        src = _ids(SENTENCES, length, VOCABULARY, device)
        lengths = torch.full((len(src),), length, device=device)
        config = SearchConfig(beam=beam, max_extra=0)

        def decode() -> None:
            search(model, src, lengths, config)

        return decode

    return prepare


def draw(result: dict[str, Any], path: Path) -> None:
    """A panel for each axis: measured seconds, and what linear growth from the middle would be."""
    panels = [(task, axis) for task in ("training", "decoding") for axis in result[task]]
    figure = Figure(figsize=(3 * len(panels), 3.2), layout="constrained")
    for axes, (task, axis) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        values, seconds = (result[task][axis][key] for key in ("values", "seconds"))
        middle = len(values) // 2
        linear = [seconds[middle] * value / values[middle] for value in values]
        axes.loglog(values, seconds, "o-", label="measured")
        axes.loglog(values, linear, "--", color="grey", label="linear")
        axes.set_xticks(values, [f"{value:,}" for value in values], rotation=45, minor=False)
        axes.set_xticks([], minor=True)
        axes.set_title(f"{task}: {axis}")
        axes.set_ylabel("seconds")
        axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
