"""Batches of pairs of about equal length within a token budget, in an order that can be resumed.

The paper batches "sentence pairs by approximate sequence length" with about 25,000 source and
25,000 target tokens (section 5.1). Here an epoch is a sequence of pools. The pairs of a pool are
sorted by length with ties in random order and cut into batches within the budget; the batches are
shuffled. All randomness is keyed by (seed, epoch, pool), so that a position in the middle of an
epoch is three small numbers, and no generator of the process is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from transformer.data.dataset import TokenTable
from transformer.data.lengths import Ints, by_length
from transformer.data.tokenizer import BOS


class Batch(NamedTuple):
    """Padded pairs; padding is 0.

    Attributes:
        indices: (B,) number of each pair in its corpus, from 0; corpora of a mixture follow each
            other.
        src: (B, S) source ids, EOS last.
        src_lengths: (B,) source tokens, EOS included.
        tgt_in: (B, T) BOS and the target ids.
        tgt_out: (B, T) the target ids and EOS.
        tgt_lengths: (B,) target tokens, BOS or EOS included.
    """

    indices: Tensor
    src: Tensor
    src_lengths: Tensor
    tgt_in: Tensor
    tgt_out: Tensor
    tgt_lengths: Tensor


@dataclass(frozen=True)
class Plan:
    """How batches are cut and shared out; a position means nothing under another plan.

    Args:
        max_tokens: Budget for rows times the longest side of a batch, in tokens, padding included.
        seed: Key of the order.
        world: Number of processes.
        text: A name for the content of the corpora.
    """

    max_tokens: int
    seed: int = 1
    world: int = 1
    text: str = ""

    def order(self, epoch: int, pools: int) -> Ints:
        """The order of the pools in an epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(pools)

    def batches(
        self, table: TokenTable, rows: Ints, key: tuple[int, int] | None,
        count: Callable[[int, int], int] | None = None,
    ) -> list[Ints]:  # fmt: skip
        """Cuts a pool into batches, as many whatever the key.

        Args:
            table: Where the lengths are.
            rows: (N,) the rows of the pool.
            key: Epoch and pool, for the order of ties and of the batches; None leaves both alone.
            count: How many there shall be, from how many there would be and N. When left out, a
                multiple of the number of processes.
        """
        rng = key and np.random.default_rng([self.seed, *key])
        rows = rows[rng.permutation(len(rows))] if rng else rows
        cut = by_length(table.longest(rows), self.max_tokens)
        wanted = (count or self._multiple)(len(cut), len(rows))
        batches = evenly([rows[batch] for batch in cut], wanted)
        return [batches[i] for i in rng.permutation(len(batches))] if rng else batches

    def _multiple(self, batches: int, rows: int) -> int:
        # Where every batch has one row already, fewer rows than there are processes are left out.
        return min(-(-batches // self.world), rows // self.world) * self.world


def evenly(batches: list[Ints], count: int) -> list[Ints]:
    """Halves the batches of most rows until there are `count`, for which the rows must suffice.

    Where there are more from the start, the last ones are left out.
    """
    while len(batches) < count:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        batches[largest : largest + 1] = np.array_split(batches[largest], 2)
    return batches[:count]


def collate(table: TokenTable, rows: Ints) -> Batch:
    """Looks up rows of a table and pads them."""
    src, src_lengths = table.src.padded(rows)
    tgt_out, tgt_lengths = table.tgt.padded(rows)
    tgt_in = np.zeros_like(tgt_out)
    # What stands before the last token of a row, shifted by one: EOS is not fed to the decoder.
    tgt_in[:, 1:] = tgt_out[:, :-1] * (np.arange(1, tgt_out.shape[1]) < tgt_lengths[:, None])
    tgt_in[:, 0] = BOS
    indices = table.numbers(rows).astype(np.int64)
    arrays = (indices, src, src_lengths, tgt_in, tgt_out, tgt_lengths)
    return Batch(*(torch.from_numpy(array) for array in arrays))


class EvalLoader:
    """The batches of a whole validation or test set, longest first.

    They are composed alike for any number of processes; process r takes r, r + world, ... and,
    where there are fewer batches than processes, an empty one.

    Args:
        table: The tokenised set.
        max_tokens: Budget of a batch, for rows x beams x (longest side + extra), which is what
            search may have to remember; a pair beyond it is a batch of its own.
        rank: Number of this process.
        world: Number of processes.
        beams: Hypotheses of a sentence that are searched side by side.
        extra: Tokens by which a hypothesis may be longer than its source.
    """

    def __init__(
        self, table: TokenTable, max_tokens: int, rank: int, world: int, beams: int, extra: int
    ) -> None:
        self.table = table
        longest = table.longest(np.arange(len(table))).astype(np.int64)
        batches = by_length(beams * (longest + extra), max_tokens)
        # Lightning leaves a process without any batch out, and the others would wait for it.
        self._batches = batches[::-1][rank::world] or [np.arange(0)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return (collate(self.table, rows) for rows in self._batches)
