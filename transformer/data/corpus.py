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
import ssl
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import TimeoutError as TooLate
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from transformer.data.background import in_background
from transformer.data.files import UNZIP_ERRORS, digest, lines, near, seekable
from transformer.errors import UserError

TABLES = (".tsv", ".jsonl", ".parquet")
HUB = re.compile(r"hub:(?P<name>[^:]+)(:(?P<config>[^:\[]+))?:(?P<split>[^:\[]+(\[.*\])?)")
HUB_SECONDS = 5  # in which the hub must answer
#: Files that are not read: how to turn one into JSON Lines, which are.
CONVERSIONS = {
    ".csv": "csv.DictReader(open('{}', encoding='utf-8-sig', newline=''))",
    ".json": "json.load(open('{}', encoding='utf-8'))",
}


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

    def pairs(self, start: int = 0) -> Iterator[Pair]:
        """The pairs, from number `start` on, up to number `limit`.

        Raises:
            ValueError: The corpus is empty, not aligned, not UTF-8, or lacks a column.
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
        return [digest(path) for path in self.files]

    def _rows(self, start: int) -> Iterator[Pair]:
        return islice(self._aligned(), start, None)

    def _aligned(self) -> Iterator[Pair]:
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
            raise UserError(
                f"{self.key}: {self.files[0]} has {counts[0]} lines but {self.files[1]} has "
                f"{counts[1]}; line n of one must translate line n of the other"
            )


@dataclass(frozen=True)
class Table(Corpus):
    """One TSV, JSON Lines or Parquet file."""

    file: Path
    columns: tuple[str, ...] | None = None

    def identity(self) -> list[Any]:
        return [digest(self.file), self.suffix, self.columns]

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

    def _load(self) -> Any:
        try:
            return _load_dataset(self.name, self.config, self.split, self.streaming)
        except Exception as error:  # of many kinds: no such name, no network, no such split
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.key}: {self.spec} cannot be loaded ({reason}): check its name and the "
                "network, or give local files"
            ) from error

    def _rows(self, start: int) -> Iterator[dict[str, Any]]:
        data = self._load()
        if start:  # `datasets` skips without reading what it can
            data = data.skip(start)
        return self._arrow_rows(data.with_format("arrow").iter(batch_size=1000), start)


@cache  # the hub is asked each time
def _load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Any:
    import datasets

    if not Path(name).is_dir() and not _hub_answers(datasets.config.HF_ENDPOINT):
        # Else the library tries again for half a minute before it looks for its own copy.
        datasets.config.HF_HUB_OFFLINE = True
    return datasets.load_dataset(name, config, split=split, streaming=streaming)


@cache
def _hub_answers(address: str) -> bool:
    def ask(_: object) -> bool:
        try:
            urlopen(Request(address, method="HEAD"), timeout=HUB_SECONDS).close()
        except URLError as error:  # an answer, of whatever kind, is one
            return isinstance(error, HTTPError) or isinstance(error.reason, ssl.SSLError)
        except OSError:
            return False
        return True

    try:  # a name server that is not there takes its time, too
        return in_background(ask, HUB_SECONDS)
    except TooLate:
        return False


def open_corpus(
    spec: str,
    src: str,
    tgt: str,
    columns: list[str] | None = None,
    key: str = "data.train",
    streaming: bool = False,
    limit: int | None = None,
) -> Corpus:
    """Finds the corpus that a recipe names.

    Args:
        spec: See the head of this file.
        src: Source language: a file suffix or the name of a column.
        tgt: Target language.
        columns: Names of the columns of a TSV that has no header.
        key: The recipe key that named it, for messages.
        streaming: Read a hub data set without downloading all of it first.
        limit: How many of its pairs are read, None for all.

    Returns:
        The corpus. Its text has not been read yet.

    Raises:
        ValueError: The specification names nothing that is there.
    """
    if spec.startswith("hub:"):
        if not (match := HUB.fullmatch(spec)):
            raise UserError(f"{key}: {spec!r} must be hub:<name>:<split> or "
                             "hub:<name>:<config>:<split>")  # fmt: skip
        name, config, split = match["name"], match["config"], match["split"]
        return Hub(spec, src, tgt, key, name, config, split, streaming, limit=limit)
    if spec.startswith("grammar:"):
        now = f"recipes/quickstart/{spec.removeprefix('grammar:')}.tsv.gz"
        raise UserError(
            f"{key}: {spec!r} is {now} now; python recipes/quickstart/grammar <file> writes more"
        )
    path = shipped(Path(spec).expanduser())
    if path.name.removesuffix(".gz").endswith(TABLES):
        file = path if path.is_file() else path.with_name(path.name + ".gz")
        if not file.is_file():
            raise UserError(f"{key}: {path} does not exist{near(path)}")
        return Table(spec, src, tgt, key, file, tuple(columns) if columns else None, limit=limit)
    return TwoFiles(
        spec, src, tgt, key, (_side(path, src, key), _side(path, tgt, key)), limit=limit
    )


def recipes_folder() -> Path:
    """Returns the folder of the recipes: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped(path: Path) -> Path:
    """Returns the path, or the package's own where `recipes/...` lies in a folder that is not."""
    if path.parts[:1] != ("recipes",) or path.parent.is_dir():
        return path
    return recipes_folder().joinpath(*path.parts[1:])


def _side(prefix: Path, language: str, key: str) -> Path:
    plain = prefix.with_name(f"{prefix.name}.{language}")
    zipped = plain.with_name(plain.name + ".gz")
    for file in (plain, zipped):
        if file.is_file():
            return file
    suffix = Path(prefix.name.removesuffix(".gz")).suffix
    if rows := CONVERSIONS.get(suffix):
        raise UserError(
            f"{key}: {prefix}: {suffix} is not read, {', '.join(TABLES)} are (also with .gz); "
            f'convert it: python -c "import csv, json; [print(json.dumps(row)) for row in '
            f'{rows.format(prefix)}]" > {prefix.name.removesuffix(suffix)}.jsonl'
        )
    raise UserError(f"{key}: neither {plain} nor {zipped.name} exists{near(plain)}")
