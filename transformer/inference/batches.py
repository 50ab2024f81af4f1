"""Sentences in batches, and results in the order of the sentences."""

from collections.abc import Callable, Sequence
from threading import Event
from typing import TypeVar

import torch
from torch import Tensor

from transformer.data.lengths import Ints, by_length
from transformer.data.tokenizer import PAD
from transformer.kernels.process import SMALLEST_BATCH, in_threads

Result = TypeVar("Result")
Pair = tuple[list[int], list[int]]  # source and target ids


def pad(
    rows: Sequence[Sequence[int]], device: torch.device | str = "cpu", value: int = PAD
) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor (B, longest), padded at the end, and their lengths (B,)."""
    lengths = [len(row) for row in rows]
    longest = max(lengths, default=0)
    padded = [[*row, *[value] * (longest - len(row))] for row in rows]
    return (
        torch.tensor(padded, dtype=torch.long, device=device),
        torch.tensor(lengths, device=device),
    )


def unpad(padded: Tensor, lengths: Tensor) -> list[list[int]]:
    """The rows of ids of a tensor (B, longest), without what stands behind their lengths (B,)."""
    return [row[:end] for row, end in zip(padded.tolist(), lengths.tolist(), strict=True)]


def of_sources(
    compute: Callable[[list[list[int]], Event], list[Result]],
    ids: Sequence[list[int]],
    max_tokens: int,
    workers: int,
) -> list[Result]:
    """Computes something of sources, in batches that workers take side by side, the longest first.

    Args:
        compute: of a batch of sources; the event says that nobody needs the results any more.
        ids: of each source.
        max_tokens: padded tokens in a batch; fewer where each worker can have a batch then.
        workers: threads.
    """
    lengths = [len(row) for row in ids]
    budget = min(max_tokens, max(sum(lengths) // workers, SMALLEST_BATCH))
    batches = by_length(lengths, budget)[::-1]

    def of_batch(batch: Ints, stop: Event) -> list[Result]:
        return compute([ids[index] for index in batch], stop)

    results: dict[int, Result] = {}
    for batch, found in zip(batches, in_threads(of_batch, batches, workers), strict=True):
        results.update(zip(batch, found, strict=True))
    return [results[index] for index in range(len(ids))]


def of_pairs(
    compute: Callable[[list[Pair]], list[Result]], pairs: Sequence[Pair], max_tokens: int
) -> list[Result]:
    """Computes something of sentence pairs, in batches of `max_tokens` padded tokens a side."""
    results: dict[int, Result] = {}
    for batch in by_length([max(map(len, pair)) for pair in pairs], max_tokens):
        results.update(zip(batch, compute([pairs[index] for index in batch]), strict=True))
    return [results[index] for index in range(len(pairs))]
