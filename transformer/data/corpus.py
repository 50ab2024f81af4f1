"""A parallel corpus named by a string -> aligned source and target lines, one pair at a time.

======================================  ====================================================
``corpus/train``                        ``corpus/train.<src>`` and ``corpus/train.<tgt>``
``x.tsv``, ``x.jsonl``, ``x.parquet``   one file with a column for each language
``hub:<name>[:<config>]:<split>``       a data set of the Hugging Face hub, or a folder
``grammar:train`` (or val, test)        the Korean–English corpus that needs no download
======================================  ====================================================

Every file may also end in ``.gz``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from transformer.data.files import UNZIP_ERRORS, lines, near, seekable, stat

TABLES = (".tsv", ".jsonl", ".parquet")
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
    """

    spec: str
    src: str
    tgt: str
    key: str

    def identity(self) -> list[Any]:
        """What changes when the text changes; the token cache is keyed by it."""
        raise NotImplementedError

    def pairs(self, start: int = 0, limit: int | None = None) -> Iterator[Pair]:
        """The pairs, from number `start` on, up to number `limit`.

        Raises:
            ValueError: The corpus is empty, not aligned, not UTF-8, or lacks a column.
        """
        pairs = islice(self._read(), start, limit)
        first = next(pairs, None)
        if first is None and start == 0:
            raise ValueError(f"{self.key}: {self.spec} is empty; it needs at least one pair")
        if first is not None:
            yield first
            yield from pairs

    def where(self, index: int) -> str:
        """Names the place of a pair (counted from 0) for messages."""
        return f"{self.spec}, line {index + 1}"

    def _read(self) -> Iterator[Pair]:
        raise NotImplementedError

    def _pick(self, row: dict[str, Any], where: str) -> Pair:
        """The two languages of a row of columns, flat or inside a `translation` column."""
        inner = row.get("translation")
        columns = inner if isinstance(inner, dict) else row
        for name in (self.src, self.tgt):
            if not isinstance(columns.get(name), str):
                found = "is not text" if name in columns else "does not exist"
                raise ValueError(
                    f"{self.key}: {where}: column {name!r} {found}; "
                    f"there are {', '.join(map(repr, columns)) or 'none'} "
                    "(data.src and data.tgt name the columns; where a TSV has no header, "
                    "data.columns lists them all)"
                )
        return Pair(columns[self.src], columns[self.tgt])


@dataclass(frozen=True)
class TwoFiles(Corpus):
    """Two line-aligned files."""

    files: tuple[Path, Path]

    def identity(self) -> list[Any]:
        return [stat(path) for path in self.files]

    def _read(self) -> Iterator[Pair]:
        sides = [lines(path, self.key) for path in self.files]
        count = 0
        while True:
            src, tgt = (next(side, None) for side in sides)
            if src is None or tgt is None:
                break
            count += 1
            yield Pair(src, tgt)
        counts = [
            count + (line is not None) + sum(1 for _ in side)
            for line, side in zip((src, tgt), sides, strict=True)
        ]
        if counts[0] != counts[1]:
            raise ValueError(
                f"{self.key}: {self.files[0]} has {counts[0]} lines but {self.files[1]} has "
                f"{counts[1]}; line n of one must translate line n of the other"
            )


@dataclass(frozen=True)
class Table(Corpus):
    """One TSV, JSON Lines or Parquet file."""

    file: Path
    columns: tuple[str, ...] | None = None

    def identity(self) -> list[Any]:
        return [stat(self.file), self.columns]

    def where(self, index: int) -> str:
        header = self.file.name.removesuffix(".gz").endswith(".tsv") and self.columns is None
        return f"{self.file}, line {index + 1 + header}"

    def _read(self) -> Iterator[Pair]:
        suffix = Path(self.file.name.removesuffix(".gz")).suffix
        read = {".tsv": self._tsv, ".jsonl": self._jsonl, ".parquet": self._parquet}
        return read[suffix]()

    def _tsv(self) -> Iterator[Pair]:
        rows = lines(self.file, self.key)
        names = self.columns or tuple(next(rows, "").split("\t"))
        for index, line in enumerate(rows):
            # Fields beyond the named ones (an attribution, say) are nobody's.
            yield self._pick(dict(zip(names, line.split("\t"), strict=False)), self.where(index))

    def _jsonl(self) -> Iterator[Pair]:
        for index, line in enumerate(lines(self.file, self.key)):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{self.key}: {self.where(index)}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{self.key}: {self.where(index)}: not a JSON object")
            yield self._pick(row, self.where(index))

    def _parquet(self) -> Iterator[Pair]:
        import pyarrow.parquet
        from pyarrow.lib import ArrowException

        try:
            with seekable(self.file) as stream, pyarrow.parquet.ParquetFile(stream) as table:
                names = set(table.schema_arrow.names) & {self.src, self.tgt, "translation"}
                names = names or set(table.schema_arrow.names)
                for batch in table.iter_batches(columns=sorted(names)):
                    for row in batch.to_pylist():
                        yield self._pick(row, str(self.file))
        except (ArrowException, *UNZIP_ERRORS) as error:
            raise ValueError(f"{self.key}: {self.file} cannot be read ({error})") from None


@dataclass(frozen=True)
class Hub(Corpus):
    """A data set of the Hugging Face hub, or a local folder that `datasets` understands."""

    name: str
    config: str | None
    split: str
    streaming: bool = False

    def identity(self) -> list[Any]:
        names = [self.name, self.config, self.split]
        return names if self.streaming else [*names, self._load()._fingerprint]

    def where(self, index: int) -> str:
        return f"{self.spec}, row {index + 1}"

    def pairs(self, start: int = 0, limit: int | None = None) -> Iterator[Pair]:
        if start == 0:
            yield from super().pairs(start, limit)
        else:  # `datasets` skips without reading what it can
            data = self._load().skip(start)
            yield from islice(self._rows(data), None if limit is None else limit - start)

    def _load(self) -> Any:
        try:
            return _load_dataset(self.name, self.config, self.split, self.streaming)
        except Exception as error:  # of many kinds: no such name, no network, no such split
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{self.key}: {self.spec} cannot be loaded ({reason}): check its name and the "
                "network, or give local files"
            ) from error

    def _read(self) -> Iterator[Pair]:
        return self._rows(self._load())

    def _rows(self, data: Any) -> Iterator[Pair]:
        for columns in data.iter(batch_size=1000):  # much faster than row by row
            for values in zip(*columns.values(), strict=True):
                yield self._pick(dict(zip(columns, values, strict=True)), self.spec)


@cache  # the hub is asked each time
def _load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Any:
    import datasets

    return datasets.load_dataset(name, config, split=split, streaming=streaming)


@dataclass(frozen=True)
class Grammar(Corpus):
    """The generated Korean–English corpus of `grammar.py`."""

    split: Any  # train, val or test

    def identity(self) -> list[Any]:
        from transformer.data import grammar

        # The rules and the words lie in files beside it; a change of any may change the text.
        files = sorted(Path(grammar.__file__).parent.glob("*.py"))
        return [self.split, hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()]

    def pairs(self, start: int = 0, limit: int | None = None) -> Iterator[Pair]:
        from transformer.data import grammar

        for korean, english in islice(grammar.pairs(self.split, limit), start, None):
            yield Pair(korean, english) if self.src == "ko" else Pair(english, korean)


def open_corpus(
    spec: str,
    src: str,
    tgt: str,
    columns: list[str] | None = None,
    key: str = "data.train",
    streaming: bool = False,
) -> Corpus:
    """Finds the corpus that a recipe names.

    Args:
        spec: See the head of this file.
        src: Source language: a file suffix or the name of a column.
        tgt: Target language.
        columns: Names of the columns of a TSV that has no header.
        key: The recipe key that named it, for messages.
        streaming: Read a hub data set without downloading all of it first.

    Returns:
        The corpus. Its text has not been read yet.

    Raises:
        ValueError: The specification names nothing that is there.
    """
    if spec.startswith("hub:"):
        if not (match := HUB.fullmatch(spec)):
            raise ValueError(f"{key}: {spec!r} must be hub:<name>:<split> or "
                             "hub:<name>:<config>:<split>")  # fmt: skip
        name, config, split = match["name"], match["config"], match["split"]
        return Hub(spec, src, tgt, key, name, config, split, streaming)
    if spec.startswith("grammar:"):
        return _grammar(spec, src, tgt, key)
    path = Path(spec).expanduser()
    if path.name.removesuffix(".gz").endswith(TABLES):
        file = path if path.is_file() else path.with_name(path.name + ".gz")
        if not file.is_file():
            raise ValueError(f"{key}: {path} does not exist{near(path)}")
        return Table(spec, src, tgt, key, file, tuple(columns) if columns else None)
    return TwoFiles(spec, src, tgt, key, (_side(path, src, key), _side(path, tgt, key)))


def _grammar(spec: str, src: str, tgt: str, key: str) -> Grammar:
    split = spec.removeprefix("grammar:")
    if split not in ("train", "val", "test"):
        raise ValueError(f"{key}: {spec!r} must be grammar:train, grammar:val or grammar:test")
    if {src, tgt} != {"ko", "en"}:
        raise ValueError(
            f"{key}: {spec} is Korean–English: data.src and data.tgt must be ko and en "
            f"in either order, not {src} and {tgt}"
        )
    return Grammar(spec, src, tgt, key, split)


def _side(prefix: Path, language: str, key: str) -> Path:
    plain = prefix.with_name(f"{prefix.name}.{language}")
    zipped = plain.with_name(plain.name + ".gz")
    for file in (plain, zipped):
        if file.is_file():
            return file
    raise ValueError(f"{key}: neither {plain} nor {zipped.name} exists{near(plain)}")
