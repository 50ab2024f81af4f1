"""Batches of whole validation and test sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from test_batching import BUDGET, ids, make_table

from transformer.data.batching import EvalLoader
from transformer.data.datamodule import DataModule
from transformer.models.cache import TransformerState


def test_an_evaluation_batch_counts_what_search_may_remember() -> None:
    lengths = [(3, 2), (50, 4), *[(5, 6)] * 40, (1, 1)]
    table = make_table(lengths)
    batches = ids(EvalLoader(table, 300, 0, 1, 4, 7))

    def held(rows: list[int]) -> int:
        return len(rows) * 4 * (max(max(lengths[row]) for row in rows) + 7)

    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    assert [len(rows) for rows in batches[:3]] == [1, 2, 5]  # 4 x 13 tokens fit five times
    assert all(held(rows) <= 300 for rows in batches)
    # No batch has room for a sentence of the one before, which is as long or longer.
    assert all(held([*rows, before[0]]) > 300 for before, rows in pairwise(batches))


def test_the_cache_of_an_evaluation_is_as_large_as_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 KiB a token of the base model in float32, and room for less than twice as many."""
    monkeypatch.setattr("transformer.models.cache._unless_all_true", lambda mask: mask)
    budget, (beams, extra) = DataModule(src="de", tgt="en").eval_max_tokens, (4, 50)
    for length in (5, 30, 250):
        rows = budget // (beams * (length + extra))
        with torch.device("meta"):
            memory = [(torch.empty(rows, 8, length, 64),) * 2] * 6
            state = TransformerState(memory, torch.empty(rows, 1, 1, length).bool(), beams)
            for _ in range(length + extra):
                state.advance()
        held = sum(slots.nbytes for slots in state.slots)
        tokens = rows * beams * (length + extra)
        assert tokens * 24 * 2**10 <= held < 2 * tokens * 24 * 2**10 <= 1.5 * 2**30


@pytest.mark.parametrize("world", [1, 2, 5])
def test_evaluation_batches_do_not_depend_on_the_processes(world: int) -> None:
    table = make_table([(3, 2), (100, 4), *[(5, 6)] * 40, (1, 1)])
    whole = ids(EvalLoader(table, BUDGET, 0, 1, 1, 0))
    shares = [ids(EvalLoader(table, BUDGET, rank, world, 1, 0)) for rank in range(world)]
    assert [shares[i % world][i // world] for i in range(len(whole))] == whole
    assert whole[0] == [1], "a line beyond the budget is a batch of its own, never dropped"
    assert sorted(i for batch in whole for i in batch) == list(range(43))


def test_every_process_gets_an_evaluation_batch() -> None:
    """Lightning leaves a process without any out of the evaluation, and the others wait for it."""
    table = make_table([(2, 3)])
    shares = [list(EvalLoader(table, 100, rank, 3, 1, 0)) for rank in range(3)]
    assert [[len(batch.indices) for batch in share] for share in shares] == [[1], [0], [0]]
