"""A parallel corpus named by a string -> aligned source and target lines, one pair at a time.

=============================================  =============================================
``corpus/train``                               ``corpus/train.<src>`` and ``corpus/train.<tgt>``
``x.tsv``, ``x.jsonl``, ``x.parquet``          one file with a column for each language
``hub:<name>[@<revision>][:<config>]:<split>`` a data set of the Hugging Face hub, or a folder
=============================================  =============================================

Every file may also end in ``.gz``. A path that begins with ``recipes/`` is looked for among the
recipes of this package where the working folder has none.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from transformer.data.files import (
    UNZIP_ERRORS,
    aligned,
    count_lines,
    file_digest,
    find_file,
    lines,
    shipped,
    suffix,
    unzipped,
)
from transformer.data.hub import load
from transformer.errors import UserError, message

TABLES = (".tsv", ".jsonl", ".parquet")
HUB = re.compile(
    r"hub:(?P<name>[^:@]+)(@(?P<revision>[^:]+))?"
    r"(:(?P<config>[^:\[]+))?:(?P<split>[^:\[]+(\[.*\])?)"
)


class Pair(NamedTuple):
    """A sentence and its translation."""

    src: str
    tgt: str


@dataclass(frozen=True)
class Corpus:
    """Aligned lines of two languages, read pair by pair; `open_corpus` makes and explains them."""

    spec: str
    src: str
    tgt: str
    key: str
    limit: int | None = field(default=None, kw_only=True)
    files: tuple[Path, ...] = field(default=(), kw_only=True)

    def __str__(self) -> str:
        return f"{self.key}: {self.spec}"

    def digests(self) -> list[str]:
        """Of its files, wherever they lie; none of a data set that comes from the hub."""
        return [file_digest(path) for path in self.files]

    def identity(self) -> list[Any]:
        """What changes when the text changes, and does not when it lies somewhere else."""
        return self.digests()

    def content(self) -> list[Any]:
        """What changes when the pairs do."""
        return [type(self).__name__, self.src, self.tgt, self.identity(), self.limit]

    def pairs(self, start: int = 0) -> Iterator[Pair]:
        """The pairs, from number `start` on, up to number `limit`.

        Raises:
            UserError: The corpus is empty, not aligned, not UTF-8, or lacks a column.
        """
        rest = None if self.limit is None else max(0, self.limit - start)
        number = start
        try:
            for row in islice(self._rows(start), rest):
                yield row if isinstance(row, Pair) else self._pick(row, number)
                number += 1
        except UnicodeDecodeError as error:
            raise self._wrong(number, f"not UTF-8 ({error.reason})") from None
        except json.JSONDecodeError as error:
            raise self._wrong(number, f"not JSON ({error})") from None
        except UserError:
            raise
        except (ValueError, RecursionError, OSError) as error:  # digits, depth, dates; a disk
            raise self._wrong(number, f"cannot be read ({message(error)})") from error
        if number == 0:
            raise UserError(f"{self} is empty; it needs at least one pair")

    def size(self) -> int | None:
        """The number of pairs, found without reading their text; None where nobody knows it."""
        try:
            found = self._size()
        except Exception:  # of many kinds: whoever reads the text will say what is wrong
            return None
        return found if found is None or self.limit is None else min(found, self.limit)

    def _size(self) -> int | None:
        return count_lines(self.files[0])

    def where(self, index: int) -> str:
        """Names the place of a pair (counted from 0) for messages."""
        return f"{self.spec}, line {index + 1}"

    def _rows(self, start: int) -> Iterator[Any]:
        """The pairs, or rows of columns, from number `start` on."""
        raise NotImplementedError

    def _wrong(self, index: int, problem: str) -> UserError:
        return UserError(f"{self.key}: {self.where(index)}: {problem}")

    def _pick(self, row: Any, index: int) -> Pair:
        """The two languages of a row of columns, flat or inside a `translation` column."""
        if not isinstance(row, dict):
            raise self._wrong(index, "not a JSON object")
        inner = row.get("translation")
        columns = inner if isinstance(inner, dict) else row
        for name in (self.src, self.tgt):
            if problem := _problem(columns, name):
                raise self._wrong(index, f"column {name!r} {problem}")
        return Pair(columns[self.src], columns[self.tgt])


def _problem(columns: dict[str, Any], name: str) -> str | None:
    if name not in columns:
        return (
            f"does not exist; there are {', '.join(map(repr, columns)) or 'none'} (data.src and "
            "data.tgt name the columns; where a TSV has no header, data.columns lists them all)"
        )
    text = columns[name]
    if not isinstance(text, str):
        found = "is null" if text is None else f"is not text but {str(text)[:40]!r}"
        return f"{found}; write text, or drop the row"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds {text[error.start]!a}, half of a character; mend the text"
    return None


@dataclass(frozen=True)
class TwoFiles(Corpus):
    """Two line-aligned files."""

    def _rows(self, start: int) -> Iterator[Pair]:
        sides = [lines(path, self.key) for path in self.files]
        pairs = aligned(sides, (f"{self.key}: {self.files[0]}", self.files[1]))
        return islice(map(Pair._make, pairs), start, None)


@dataclass(frozen=True)
class Table(Corpus):
    """One TSV, JSON Lines or Parquet file; `columns` are those of a TSV without a header."""

    columns: tuple[str, ...] | None = None

    def identity(self) -> list[Any]:
        return [*super().identity(), suffix(self.files[0]), self.columns]

    def where(self, index: int) -> str:
        [file] = self.files
        kind = "row" if suffix(file) == ".parquet" else "line"
        header = suffix(file) == ".tsv" and self.columns is None
        return f"{file}, {kind} {index + 1 + header}"

    def _size(self) -> int:
        [file] = self.files
        if suffix(file) != ".parquet":
            return count_lines(file) - (suffix(file) == ".tsv" and self.columns is None)
        import pyarrow.parquet

        with unzipped(file) as stream, pyarrow.parquet.ParquetFile(stream) as table:
            return int(table.metadata.num_rows)

    def _rows(self, start: int) -> Iterator[Any]:
        [file] = self.files
        readers = {".tsv": self._tsv, ".jsonl": self._jsonl, ".parquet": self._parquet}
        return islice(readers[suffix(file)](file), start, None)

    def _jsonl(self, file: Path) -> Iterator[Any]:
        return map(json.loads, lines(file, self.key))

    def _tsv(self, file: Path) -> Iterator[dict[str, str]]:
        rows = (line.split("\t") for line in lines(file, self.key))
        names = self.columns or next(rows, [])
        self._check_columns(names, "data.columns" if self.columns else str(file))
        # Fields beyond the named ones (an attribution, say) are nobody's.
        return (dict(zip(names, row, strict=False)) for row in rows)

    def _parquet(self, file: Path) -> Iterator[Any]:
        import pyarrow.parquet
        from pyarrow.lib import ArrowException

        try:
            with unzipped(file) as stream:
                table = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
                names = table.schema_arrow.names
                self._check_columns(names, str(file))
                needed = [name for name in ("translation", self.src, self.tgt) if name in names]
                yield from _rows_of(table.iter_batches(columns=needed or sorted(names)))
        except (ArrowException, OSError, *UNZIP_ERRORS) as error:
            raise UserError(f"{self.key}: {file} cannot be read ({message(error)})") from None

    def _check_columns(self, names: Sequence[str], where: str) -> None:
        """Refuses columns of which nobody can say which is meant."""
        for name in (self.src, self.tgt, "translation"):
            if (times := list(names).count(name)) > 1:
                raise UserError(
                    f"{self.key}: {where} names column {name!r} {times} times; rename all but one"
                )


@dataclass(frozen=True)
class Hub(Corpus):
    """A data set of the Hugging Face hub, or of a folder that `datasets` understands."""

    name: str
    config: str | None
    split: str
    streaming: bool = False
    revision: str | None = None

    def identity(self) -> list[Any]:
        names = [self.name, self.config, self.split]
        names += [self.revision] if self.revision else []
        names += self.digests()
        return names if self.streaming else [*names, self._load()._fingerprint]

    def digests(self) -> list[str]:
        files = Path(self.name).rglob("*") if Path(self.name).is_dir() else ()
        return [file_digest(path) for path in sorted(files) if path.is_file()]

    def where(self, index: int) -> str:
        return f"{self.spec}, row {index + 1}"

    def _size(self) -> int | None:
        return None if self.streaming else len(self._load())

    def _load(self) -> Any:
        try:
            its = self.name, self.config, self.split, self.streaming, self.revision
            return load(*its, tuple(self.digests()))
        except Exception as error:  # of many kinds: no such name, no network, no such split
            raise UserError(
                f"{self} cannot be loaded ({message(error)}): check its name and the network, or "
                "give local files"
            ) from error

    def _rows(self, start: int) -> Iterator[Any]:
        rest = self._load().skip(start) if start else self._load()  # without reading, if it can
        try:
            yield from _rows_of(rest.with_format("arrow").iter(batch_size=1000))
        except (OSError, ValueError):
            raise
        except Exception as error:  # of many kinds: the network may vanish
            raise OSError(message(error)) from error


def _rows_of(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """The rows of Arrow tables; one that is not UTF-8 raises an error in its turn."""
    for batch in batches:
        try:
            yield from batch.to_pylist()
        except UnicodeDecodeError:  # somewhere
            for index in range(len(batch)):
                yield from batch.slice(index, 1).to_pylist()


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
                f"{key}: {spec!r} must be hub:<name>:<split> or hub:<name>:<config>:<split>, the "
                "name perhaps with @<revision>"
            )
        parts: dict[str, Any] = match.groupdict()
        parts["name"] = os.path.expanduser(parts["name"])
        return Hub(spec, src, tgt, key, **parts, streaming=streaming, limit=limit)
    if spec.startswith("grammar:"):
        now = f"recipes/quickstart/{spec.removeprefix('grammar:')}.tsv.gz"
        raise UserError(
            f"{key}: {spec!r} is {now} now; python recipes/quickstart/grammar <file> writes more"
        )
    path = shipped(Path(os.path.expanduser(spec)))
    if suffix(path) in TABLES:
        files, names = (find_file(path, key),), tuple(columns) if columns else None
        return Table(spec, src, tgt, key, names, files=files, limit=limit)
    if suffix(path) in (".csv", ".json"):
        raise UserError(
            f"{key}: {path}: {suffix(path)} is not read, {', '.join(TABLES)} are (also with .gz); "
            "convert it to .jsonl"
        )
    sides = [find_file(Path(f"{path}.{side}"), key) for side in (src, tgt)]
    return TwoFiles(spec, src, tgt, key, files=tuple(sides), limit=limit)
