"""A parallel corpus named by a string -> aligned source and target lines, one pair at a time.

======================================  ====================================================
``corpus/train``                        ``corpus/train.<src>`` and ``corpus/train.<tgt>``
``x.tsv``, ``x.jsonl``, ``x.parquet``   one file with a column for each language
``hub:<name>[:<config>]:<split>``       a data set of the Hugging Face hub, or a folder
======================================  ====================================================

Every file may also end in ``.gz``. A path that begins with ``recipes/`` is looked for among the
recipes of this package where the working folder has none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from transformer.data.files import (
    TABLES,
    UNZIP_ERRORS,
    aligned,
    file_digest,
    find_side,
    find_table,
    lines,
    seekable,
    shipped,
)
from transformer.data.hub import load
from transformer.errors import UserError

HUB = re.compile(r"hub:(?P<name>[^:]+)(:(?P<config>[^:\[]+))?:(?P<split>[^:\[]+(\[.*\])?)")


class Pair(NamedTuple):
    """A sentence and its translation."""

    src: str
    tgt: str


@dataclass(frozen=True)
class Corpus:
    """Aligned lines of two languages. Opening one reads nothing yet; `open_corpus` makes them.

    Args:
        spec: What the recipe says.
        src: Name of the source language.
        tgt: Name of the target language.
        key: The recipe key that named it, for messages.
        limit: How many of its pairs are read, None for all.
    """

    spec: str
    src: str
    tgt: str
    key: str
    limit: int | None = field(default=None, kw_only=True)

    def identity(self) -> list[Any]:
        """What changes when the text changes, and does not when it lies somewhere else."""
        raise NotImplementedError

    def content(self) -> list[Any]:
        """What changes when the pairs do."""
        return [type(self).__name__, self.src, self.tgt, self.identity(), self.limit]

    def pairs(self, start: int = 0) -> Iterator[Pair]:
        """The pairs, from number `start` on, up to number `limit`.

        Raises:
            UserError: The corpus is empty, not aligned, not UTF-8, or lacks a column.
        """
        rest = None if self.limit is None else max(0, self.limit - start)
        rows = islice(self._rows(start), rest)
        number = None
        for number, row in enumerate(rows, start):
            yield row if isinstance(row, Pair) else self._pick(row, number)
        if number is None and start == 0:
            raise UserError(f"{self.key}: {self.spec} is empty; it needs at least one pair")

    def where(self, index: int) -> str:
        """Names the place of a pair (counted from 0) for messages."""
        return f"{self.spec}, line {index + 1}"

    def _rows(self, start: int) -> Iterator[Pair | dict[str, Any]]:
        """The pairs, or rows of columns, from number `start` on."""
        raise NotImplementedError

    def _wrong(self, index: int, problem: str) -> UserError:
        return UserError(f"{self.key}: {self.where(index)}: {problem}")

    def _pick(self, row: dict[str, Any], index: int) -> Pair:
        """The two languages of a row of columns, flat or inside a `translation` column."""
        inner = row.get("translation")
        columns = inner if isinstance(inner, dict) else row
        for name in (self.src, self.tgt):
            if name not in columns:
                raise self._wrong(
                    index,
                    f"column {name!r} does not exist; there are "
                    f"{', '.join(map(repr, columns)) or 'none'} (data.src and data.tgt name the "
                    "columns; where a TSV has no header, data.columns lists them all)",
                )
            text = columns[name]
            if not isinstance(text, str):
                found = "is null" if text is None else f"is not text but {str(text)[:40]!r}"
                raise self._wrong(index, f"column {name!r} {found}; write text, or drop the row")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                half = ascii(text[error.start])
                raise self._wrong(
                    index, f"column {name!r} holds {half}, half of a character; mend the text"
                ) from None
        return Pair(columns[self.src], columns[self.tgt])

    def _arrow_rows(self, batches: Iterable[Any], first: int) -> Iterator[dict[str, Any]]:
        """The rows of Arrow tables, the first of which has that number."""
        for batch in batches:
            try:
                yield from batch.to_pylist()
            except UnicodeDecodeError:  # somewhere
                for index in range(len(batch)):
                    try:
                        batch.slice(index, 1).to_pylist()
                    except UnicodeDecodeError as error:
                        raise self._wrong(first + index, f"not UTF-8 ({error.reason})") from None
            first += len(batch)

    def _check_columns(self, names: Sequence[str], where: str) -> None:
        """Refuses columns of which nobody can say which is meant."""
        for name in (self.src, self.tgt, "translation"):
            if (times := list(names).count(name)) > 1:
                raise UserError(
                    f"{self.key}: {where} names column {name!r} {times} times; rename all but one"
                )


@dataclass(frozen=True)
class TwoFiles(Corpus):
    """Two line-aligned files."""

    files: tuple[Path, Path]

    def identity(self) -> list[Any]:
        return [file_digest(path) for path in self.files]

    def _rows(self, start: int) -> Iterator[Pair]:
        sides = [lines(path, self.key) for path in self.files]
        pairs = aligned(sides, (f"{self.key}: {self.files[0]}", self.files[1]))
        return islice(map(Pair._make, pairs), start, None)


@dataclass(frozen=True)
class Table(Corpus):
    """One TSV, JSON Lines or Parquet file."""

    file: Path
    columns: tuple[str, ...] | None = None

    def identity(self) -> list[Any]:
        return [file_digest(self.file), self.suffix, self.columns]

    @property
    def suffix(self) -> str:
        """The kind of file."""
        return Path(self.file.name.removesuffix(".gz")).suffix

    def where(self, index: int) -> str:
        kind = "row" if self.suffix == ".parquet" else "line"
        header = self.suffix == ".tsv" and self.columns is None
        return f"{self.file}, {kind} {index + 1 + header}"

    def _rows(self, start: int) -> Iterator[dict[str, Any]]:
        read = {".tsv": self._tsv, ".jsonl": self._jsonl, ".parquet": self._parquet}
        return islice(read[self.suffix](), start, None)

    def _tsv(self) -> Iterator[dict[str, Any]]:
        rows = lines(self.file, self.key)
        names = self.columns or tuple(next(rows, "").split("\t"))
        self._check_columns(names, "data.columns" if self.columns else str(self.file))
        for line in rows:
            # Fields beyond the named ones (an attribution, say) are nobody's.
            yield dict(zip(names, line.split("\t"), strict=False))

    def _jsonl(self) -> Iterator[dict[str, Any]]:
        for index, line in enumerate(lines(self.file, self.key)):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise self._wrong(index, f"not JSON ({error})") from None
            if not isinstance(row, dict):
                raise self._wrong(index, "not a JSON object")
            yield row

    def _parquet(self) -> Iterator[dict[str, Any]]:
        import pyarrow.parquet
        from pyarrow.lib import ArrowException

        try:
            with seekable(self.file) as stream, pyarrow.parquet.ParquetFile(stream) as table:
                names = table.schema_arrow.names
                self._check_columns(names, str(self.file))
                needed = [name for name in ("translation", self.src, self.tgt) if name in names]
                yield from self._arrow_rows(table.iter_batches(columns=needed or sorted(names)), 0)
        except (ArrowException, *UNZIP_ERRORS) as error:
            raise UserError(f"{self.key}: {self.file} cannot be read ({error})") from None


@dataclass(frozen=True)
class Hub(Corpus):
    """A data set of the Hugging Face hub, or of a folder that `datasets` understands."""

    name: str
    config: str | None
    split: str
    streaming: bool = False

    def identity(self) -> list[Any]:
        names = [self.name, self.config, self.split]
        return names if self.streaming else [*names, self._load()._fingerprint]

    def where(self, index: int) -> str:
        return f"{self.spec}, row {index + 1}"

    def _load(self) -> Any:
        try:
            return load(self.name, self.config, self.split, self.streaming)
        except Exception as error:  # of many kinds: no such name, no network, no such split
            raise UserError(
                f"{self.key}: {self.spec} cannot be loaded ({' '.join(str(error).split())}): check "
                "its name and the network, or give local files"
            ) from error

    def _rows(self, start: int) -> Iterator[dict[str, Any]]:
        rest = self._load().skip(start) if start else self._load()  # without reading, if it can
        return self._arrow_rows(rest.with_format("arrow").iter(batch_size=1000), start)


def open_corpus(
    spec: str,
    src: str,
    tgt: str,
    columns: list[str] | None = None,
    key: str = "data.train",
    streaming: bool = False,
    limit: int | None = None,
) -> Corpus:
    """Finds the corpus that a recipe names; reads nothing yet.

    Args:
        spec: See the head of this file.
        src: Source language: a file suffix or the name of a column.
        tgt: Target language.
        columns: Names of the columns of a TSV that has no header.
        key: The recipe key that named it, for messages.
        streaming: Read a hub data set without downloading all of it first.
        limit: How many of its pairs are read, None for all.

    Raises:
        UserError: The specification names nothing that is there.
    """
    if spec.startswith("hub:"):
        if not (match := HUB.fullmatch(spec)):
            raise UserError(
                f"{key}: {spec!r} must be hub:<name>:<split> or hub:<name>:<config>:<split>"
            )
        return Hub(spec, src, tgt, key, **match.groupdict(), streaming=streaming, limit=limit)
    if spec.startswith("grammar:"):
        now = f"recipes/quickstart/{spec.removeprefix('grammar:')}.tsv.gz"
        raise UserError(
            f"{key}: {spec!r} is {now} now; python recipes/quickstart/grammar <file> writes more"
        )
    path = shipped(Path(spec).expanduser())
    if path.name.removesuffix(".gz").endswith(TABLES):
        file = find_table(path, key)
        return Table(spec, src, tgt, key, file, tuple(columns) if columns else None, limit=limit)
    sides = find_side(path, src, key), find_side(path, tgt, key)
    return TwoFiles(spec, src, tgt, key, sides, limit=limit)


def names(corpora: Sequence[Corpus]) -> str:
    """Names corpora, and where they stand in a recipe, for messages."""
    return ", ".join(f"{corpus.key}: {corpus.spec}" for corpus in corpora)
