"""Bad text, a few cases of each kind, the same each time; `make reliability` tries thousands."""

from __future__ import annotations

from pathlib import Path

import pytest
from reliability.fuzz_text import KINDS, attempt

CASES = {
    "plain": 20, "tsv": 15, "jsonl": 25, "parquet": 25, "tokenizer": 8, "batches": 8, "lines": 10,
    "options": 10, "score": 6, "lists": 20, "serve": 20,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_text_ends_in_a_result_or_one_line(tmp_path: Path, own_log: None, name: str) -> None:
    if name == "serve":
        pytest.importorskip("fastapi")
    tried, problem = attempt(KINDS[name], tmp_path, CASES[name])
    assert not problem, problem
    assert tried == CASES[name]
