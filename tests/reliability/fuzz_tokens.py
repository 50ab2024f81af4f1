"""Vocabularies, token tables and batches of odd text, each against brute force."""

from __future__ import annotations

import json
import pickle
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import strategies as st

from transformer.data.batching import Plan
from transformer.data.corpus import Corpus, Pair
from transformer.data.dataset import TokenTable, table_in_memory, write_table
from transformer.data.loaders import CachedLoader, StreamLoader
from transformer.data.mixture import Mixture, select
from transformer.data.tokenizer import EOS, Tokenizer, TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer

from .fuzz_corpora import refusal
from .odd_text import texts


def learned(draw: Any, kinds: list[str], tags: list[str], lines: list[str]) -> Tokenizer | None:
    """A small vocabulary of odd text; None where the text has none."""
    config = TokenizerConfig(
        draw(st.sampled_from(kinds)), draw(st.integers(262, 290)), draw(st.booleans()),
        draw(st.integers(1, 2)), draw(st.booleans()),
    )  # fmt: skip
    pairs = [*zip(lines, lines[::-1], strict=True)]
    found, _ = refusal(lambda: train_tokenizer(config, lambda: pairs, tags))
    if found and config.kind != "unigram":  # which the library learns a little otherwise each time
        assert train_tokenizer(config, lambda: pairs, tags).to_text() == found.to_text()
    return found


def normal(line: str, tokenizer: Tokenizer) -> str:
    """Lowercase, where it is asked for, and NFC."""
    [*_, text] = tokenizer.to_text().values()
    lower = "Lowercase" in text
    return unicodedata.normalize("NFC", "".join(c.lower() for c in line) if lower else line)


def tokenizer(data: Any, folder: Path) -> None:
    """Bytes come back as they were up to NFC; words that are known come back with a space between.

    All ids are in the vocabulary, EOS stands at the end alone, nothing that is written like a
    special token is one, and a copy encodes alike.
    """
    tags = data.draw(st.sampled_from([[], ["en", "de"]]))
    found = learned(data.draw, ["bpe", "bpe", "unigram", "word"], tags, data.draw(texts(8)))
    if found is None:
        return
    lines = data.draw(texts(8))
    # Characters that are newer than this Python may be composed otherwise.
    lines = ["".join(c for c in line if unicodedata.category(c) != "Cn") for line in lines]
    src, tgt = found.encode_src(lines, "en" if tags else None), found.encode_tgt(lines)
    for side, rows, size in (
        ("src", src, found.src_vocab_size),
        ("tgt", tgt, found.tgt_vocab_size),
    ):
        special = found.side(side).specials  # type: ignore[arg-type]
        for row in rows:
            begun = 1 if tags and side == "src" else 0
            assert row[:begun] == ([found.tags["en"]] if begun else [])
            assert row[-1] == EOS and max(row) < size
            assert not [i for i in row[begun:-1] if i in special and special[i] != "<unk>"]
    decoded = found.decode(tgt)
    for line, text in zip(lines, decoded, strict=True):
        expected = normal(line, found)
        if "WordLevel" in [*found.to_text().values()][-1]:
            vocabulary = json.loads([*found.to_text().values()][-1])["model"]["vocab"]
            known = [word for word in expected.split() if vocabulary.get(word, 0) >= len(special)]
            # Four characters are spaces for Python alone.
            expected = text if set(line) & set("\x1c\x1d\x1e\x1f") else " ".join(known)
        assert text == expected
    found.save(folder)
    for copy in (Tokenizer.load(folder), pickle.loads(pickle.dumps(found))):
        assert copy.encode_tgt(lines) == tgt


class Listed(Corpus):
    """Pairs as a corpus."""

    def _rows(self, start: int) -> Any:
        return iter(PAIRS[start:])


PAIRS: list[Pair] = []


def batches(data: Any, folder: Path) -> None:
    """A table has the ids of the pairs, a loader gives each pair that fits once in each epoch."""
    lines = data.draw(texts(12, 1, 3000))
    found = learned(data.draw, ["bpe", "word"], [], lines)
    PAIRS[:] = [Pair(line, other) for line, other in zip(lines, lines[::-1], strict=True)]
    if found is None:
        return
    corpus = Listed("listed", "en", "de", "data.train")
    write_table([corpus], found, path := folder / "tokens.arrow")
    table = TokenTable(path)
    if data.draw(st.booleans()):
        table = table_in_memory(PAIRS, corpus, found)
    sides = found.encode_src(lines), found.encode_tgt(lines[::-1])
    blank = [not a.strip() or not b.strip() for a, b in PAIRS]
    assert len(table) == len(lines) and table.blank().tolist() == blank
    longest = data.draw(st.sampled_from([1, 5, 12, 30, 4000]))
    fits = [
        number
        for number, (a, b) in enumerate(zip(*sides, strict=True))
        if max(len(a), len(b)) <= longest and not blank[number]
    ]
    rows, counts = select(table, corpus, longest, refuse=False)
    assert rows.tolist() == fits and counts.pairs == len(fits)
    assert counts.empty == sum(blank) and sum(vars(counts).values()) == len(lines)
    world = data.draw(st.integers(1, 3))
    budget, pool = longest + data.draw(st.integers(0, 100)), data.draw(st.integers(1, 5))
    plan = Plan(budget, data.draw(st.integers(0, 9)), world)
    if len(fits) >= world:
        _deliver(plan, table, rows, sides, fits, pool)
    elif fits:
        mixture = Mixture([rows], [], 1.0)
        assert refusal(lambda: CachedLoader(plan, 0, lambda: 0, table, mixture))[1]
    _deliver_stream(plan, corpus, found, sides, fits, pool, longest)


def _deliver(
    plan: Plan, table: TokenTable, rows: Any, sides: Any, fits: list[int], pool: int
) -> None:
    with mock.patch("transformer.data.loaders.POOL", pool):
        mixture = Mixture([rows], [], 1.0)
        loaders = [
            CachedLoader(plan, rank, lambda: 0, table, mixture) for rank in range(plan.world)
        ]
        for _ in range(2):
            seen = Counter[int]()
            given = [[*loader] for loader in loaders]
            assert len({len(found) for found in given}) == 1
            for batch in [batch for found in given for batch in found]:
                _check(batch, plan.max_tokens, sides)
                seen.update(batch.indices.tolist())
            assert max(seen.values(), default=1) == 1 and set(seen) <= set(fits)
            # Of a pool a few that do not share out among the processes may be left.
            assert plan.world > 1 or sorted(seen) == fits


def _deliver_stream(
    plan: Plan, corpus: Corpus, found: Tokenizer, sides: Any, fits: list[int], pool: int, most: int
) -> None:
    seen = Counter[int]()
    with mock.patch("transformer.data.loaders.STREAM_POOL", pool):
        loader = StreamLoader(replace(plan, world=1), 0, lambda: 0, corpus, found, most)
        given, refused = refusal(lambda: [*loader])
    assert (refused is None) == bool(fits), refused
    for batch in given or ():
        _check(batch, plan.max_tokens, sides)
        seen.update(batch.indices.tolist())
    assert seen == Counter(fits)


def _check(batch: Any, budget: int, sides: Any) -> None:
    """A batch has the ids of its pairs, within the budget."""
    indices = batch.indices.tolist()
    ids = [[side[index] for index in indices] for side in sides]
    width = max(len(row) for side in ids for row in side)
    assert len(indices) == 1 or len(indices) * width <= budget
    for padded, side in zip((batch.src, batch.tgt_out), ids, strict=True):
        for row, expected in zip(padded.tolist(), side, strict=True):
            assert row[: len(expected)] == expected and not any(row[len(expected) :])
    assert batch.src_lengths.tolist() == [*map(len, ids[0])]
    assert batch.tgt_lengths.tolist() == [*map(len, ids[1])]
    shifted = np.where(batch.tgt_out.numpy()[:, :-1] == EOS, 0, batch.tgt_out.numpy()[:, :-1])
    assert (batch.tgt_in.numpy()[:, 1:] == shifted).all()
