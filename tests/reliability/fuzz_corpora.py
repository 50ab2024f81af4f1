"""Corpora, tokenizers and batches of odd text, each against a reference that is simple to read."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet
from hypothesis import strategies as st

from transformer.data.corpus import Pair, open_corpus
from transformer.errors import is_for_the_user, message

from .odd_text import files, json_lines, parquets, seldom, short_lines, texts, zipped


class Bad(Exception):
    """The reference cannot read it either."""


def refusal(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a function returns, or the one line in which it refuses; all else is a fault."""
    try:
        return work(), None
    except Exception as error:
        if not is_for_the_user(error):
            raise
        text = message(error)
        assert len(text.splitlines()) == 1 and len(text) < 2000, text[:3000]
        return None, text


def lines_of(data: bytes, is_zipped: bool) -> list[str]:
    """The lines of a file, read whole."""
    try:
        data = gzip.decompress(data) if is_zipped else data
        if b"\0" in data.split(b"\n")[0][:2]:
            raise Bad("UTF-16")
        lines = data.removeprefix("\ufeff".encode()).decode().split("\n")
    except Bad:
        raise
    except Exception as error:
        raise Bad(str(error)) from None
    lines = lines if lines[-1] else lines[:-1]
    return [line[:-1] if line.endswith("\r") else line for line in lines]


def picked(row: Any) -> Pair:
    """The pair of a row of columns."""
    if not isinstance(row, dict):
        raise Bad("no object")
    row = row["translation"] if isinstance(row.get("translation"), dict) else row
    for name in ("en", "de"):
        text = row.get(name)
        if not isinstance(text, str) or any("\ud800" <= char <= "\udfff" for char in text):
            raise Bad(name)
    return Pair(row["en"], row["de"])


def compare(data: Any, spec: str, expect: Callable[[], list[Pair]], **options: Any) -> None:
    """A corpus has the pairs of the reference, from any place on; or both refuse it."""

    def read(start: int = 0, limit: int | None = None) -> list[Pair]:
        corpus = open_corpus(spec, "en", "de", limit=limit, **options)
        return list(corpus.pairs(start))

    try:
        pairs = expect()
    except Bad:
        pairs = []
    found, refused = refusal(read)
    if not pairs:
        assert refused, f"read {found!a} of what cannot be read"
        return
    assert refused is None, refused
    assert found == pairs
    assert open_corpus(spec, "en", "de", **options).size() == len(pairs)
    start, limit = data.draw(st.integers(0, len(pairs) - 1)), data.draw(st.integers(1, 8))
    if start < limit:
        assert read(start, limit) == pairs[:limit][start:]


def plain(data: Any, folder: Path) -> None:
    """Two line-aligned files."""
    src = data.draw(texts())
    tgt = data.draw(texts()) if seldom(data.draw, 10) else [line[::-1] for line in src]
    sides = [data.draw(files(src)), data.draw(files(tgt))]
    for language, (content, is_zipped) in zip(("en", "de"), sides, strict=True):
        (folder / f"x.{language}{'.gz' * is_zipped}").write_bytes(content)

    def expect() -> list[Pair]:
        read = [lines_of(*side) for side in sides]
        if len(read[0]) != len(read[1]):
            raise Bad("not aligned")
        return [Pair(*pair) for pair in zip(*read, strict=True)]

    compare(data, f"{folder}/x", expect)


def tsv(data: Any, folder: Path) -> None:
    """A TSV file, with a header or with names of its columns."""
    names = data.draw(st.sampled_from([["en", "de"], ["de", "note", "en"], ["en", "de", "de"]]))
    names = data.draw(st.lists(short_lines, max_size=4)) if seldom(data.draw, 10) else names
    rows = [data.draw(texts(4, 0 if seldom(data.draw, 10) else 3, 3000)) for _ in range(3)]
    has_header = data.draw(st.booleans())
    lines = ["\t".join(row) for row in rows]
    content, is_zipped = data.draw(files(["\t".join(names)] * has_header + lines))
    (file := folder / f"x.tsv{'.gz' * is_zipped}").write_bytes(content)

    def expect() -> list[Pair]:
        read = [line.split("\t") for line in lines_of(content, is_zipped)]
        header = (read.pop(0) if read else []) if has_header else names
        if any(header.count(name) > 1 for name in ("en", "de", "translation")):
            raise Bad("twice")
        return [picked(dict(zip(header, row, strict=False))) for row in read]

    # An empty list of names is none.
    compare(data, str(file), expect, columns=None if has_header else names or ["x"])


def jsonl(data: Any, folder: Path) -> None:
    """A JSONL file."""
    content, is_zipped = data.draw(files(data.draw(st.lists(json_lines(), max_size=4))))
    (file := folder / f"x.jsonl{'.gz' * is_zipped}").write_bytes(content)

    def expect() -> list[Pair]:
        try:
            return [picked(json.loads(line)) for line in lines_of(content, is_zipped)]
        except (ValueError, RecursionError) as error:
            raise Bad(str(error)) from None

    compare(data, str(file), expect)


def parquet(data: Any, folder: Path) -> None:
    """A Parquet file with columns of all types, or with bits that are wrong."""
    content = data.draw(parquets())
    is_zipped = seldom(data.draw, 20)
    written = data.draw(zipped(content)) if is_zipped else content
    (file := folder / f"x.parquet{'.gz' * is_zipped}").write_bytes(written)

    def expect() -> list[Pair]:
        try:
            whole = io.BytesIO(gzip.decompress(written) if is_zipped else written)
            names = pyarrow.parquet.ParquetFile(whole).schema_arrow.names
            needed = [name for name in ("translation", "en", "de") if name in names]
            if len(set(needed)) < len([name for name in names if name in needed]):
                raise Bad("twice")
            table = pyarrow.parquet.ParquetFile(whole, page_checksum_verification=True)
            return [picked(row) for row in table.read(needed).to_pylist()]
        except Exception as error:
            raise Bad(str(error)) from None

    compare(data, str(file), expect)
