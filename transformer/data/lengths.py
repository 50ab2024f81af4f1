"""Sentences of like length in batches: for training, evaluation and inference alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[Any]


def by_length(lengths: Sequence[int] | Ints, max_tokens: int) -> list[Ints]:
    """Cuts sentences into the fewest batches within a budget, shortest first.

    Args:
        lengths: (N,) tokens of each sentence, or of the longer side of each pair; sentences as
            long as each other stay in their order.
        max_tokens: Budget for rows times longest; a sentence beyond it is a batch of its own.

    Returns:
        The indices of each batch.
    """
    lengths = np.asarray(lengths, np.int64)
    small = lengths.max(initial=0) < 1 << 16  # which are sorted four times as fast
    order = np.argsort(lengths.astype(np.uint16) if small else lengths, kind="stable")
    ascending = lengths[order]
    batches, start = [], 0
    while start < len(order):
        size = max(1, max_tokens // max(1, ascending[start]))
        alike = np.searchsorted(ascending, ascending[start], side="right") - start
        if alike < size:  # the last of this length are with longer ones
            window = ascending[start : start + size]
            padded = window * np.arange(1, len(window) + 1)
            alike = size = max(1, int(np.searchsorted(padded, max_tokens, side="right")))
        stop = start + alike // size * size
        batches += [order[i : i + size] for i in range(start, stop, size)]
        start = stop
    return batches
