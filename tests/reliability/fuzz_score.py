"""Odd pairs for what scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from transformer.data.tokenizer import BOS

from .calling import bundle, called, checked, expected_lines, translator
from .odd_text import files, seldom, short_lines, texts


def score(data: Any, folder: Path) -> None:
    """A row for each pair, as the model gives it for the pair alone."""
    tags = data.draw(st.booleans())
    src = data.draw(texts(5, longest=3000))
    tgt = src[::-1] if not seldom(data.draw, 10) else data.draw(texts(5, longest=3000))
    read: list[list[str] | None] = []
    for name, side in (("src", src), ("tgt", tgt)):
        content, is_zipped = data.draw(files(side, False))
        (folder / name).write_bytes(content)
        read.append(expected_lines([(content, is_zipped)]))
    names = [str(folder / "src"), str(folder / "tgt")]
    found = called("score", bundle(tags), "--src", names[0], "--tgt", names[1])
    well = checked(found)
    pairs = None
    if read[0] is not None and read[1] is not None and len(read[0]) == len(read[1]):
        pairs = [*zip(*read, strict=True)]
    its = translator(tags)
    limit = its.model.max_length or sys.maxsize
    if pairs is not None:
        ids = [
            (
                its.tokenizer.encode_src([a], "en" if tags else None)[0],
                its.tokenizer.encode_tgt([b])[0],
            )
            for a, b in pairs
        ]
        pairs = None if any(len(row) > limit for pair in ids for row in pair) else pairs
    assert well == (pairs is not None), found
    if pairs is None:
        return
    rows = [row.split("\t") for row in found.out.decode().split("\n")[:-1]]
    assert len(rows) == len(pairs)
    for (log_prob, tokens), (src_ids, tgt_ids) in zip(rows, ids, strict=True):
        assert int(tokens) == len(tgt_ids)
        begun = torch.tensor([[BOS, *tgt_ids[:-1]]])
        with torch.inference_mode():
            hidden = its.model(torch.tensor([src_ids]), torch.tensor([len(src_ids)]), begun)
            all_of = its.model.project(hidden).float().log_softmax(-1)[0]
        expected = sum(all_of[i, token].item() for i, token in enumerate(tgt_ids))
        assert abs(float(log_prob) - expected) <= 1e-3 + 1e-5 * abs(expected)


def test(data: Any, folder: Path) -> None:
    """A translation for each pair of the test set, and scores that are numbers."""
    src = data.draw(st.lists(short_lines, min_size=1, max_size=4))
    for language, side in (("de", src), ("en", src[::-1])):
        (folder / f"x.{language}").write_text("".join(f"{line}\n" for line in side), newline="")
    found = called(
        "test", bundle(), "--data.test", f"{folder}/x", "--data.cache", f"{folder}/cache",
        "--run_dir", f"{folder}/run", "--device", "cpu",
    )  # fmt: skip
    if checked(found):
        written = (folder / "run" / "hypotheses.txt").read_bytes()
        assert written.count(b"\n") == len(src)
        results = json.loads((folder / "run" / "results.json").read_text())
        assert results["loss"] == results["loss"] and 0 <= results["bleu"] <= 100
    else:
        assert any(len(line.encode()) > 20 for line in src), found.err
