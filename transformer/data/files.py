"""Finding files, and reading them whole and exactly: UTF-8 lines, gzip."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import IO, TypeVar

from transformer.errors import UserError

Line = TypeVar("Line")
LONGEST_LINE = 1 << 24  # bytes: a few zipped kilobytes may hold gigabytes without an end
UNZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)
#: How files begin that are taken for UTF-8 by mistake; UTF-16 also without its mark.
MISTAKEN = re.compile(
    rb"(?P<utf16>\xff\xfe|\xfe\xff)|(?P<utf16be>\0)|(?P<utf16le>.\0)|(?P<gzip>\x1f\x8b)", re.DOTALL
)
MISTAKES = {
    "utf16": "but UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    "utf16be": "but UTF-16: convert it with iconv -f UTF-16BE -t UTF-8",
    "utf16le": "but UTF-16: convert it with iconv -f UTF-16LE -t UTF-8",
    "gzip": "but gzipped: unzip it, or let its name end in .gz",
}


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


def find_file(path: Path, key: str) -> Path:
    """Finds a file, perhaps gzipped."""
    zipped = path.with_name(f"{path.name}.gz")
    for file in (path, zipped):
        if file.is_file():
            return file
    if os.path.lexists(path):
        raise UserError(
            f"{key}: {path} is no file: name one, or the part before .<language> of two"
        )
    near = f": there is no folder {path.parent}"
    if path.parent.is_dir():
        found = get_close_matches(path.name, sorted(file.name for file in path.parent.iterdir()), 1)
        near = f", the nearest is {found[0]!r}" if found else ""
    raise UserError(f"{key}: neither {path} nor {zipped.name} exists{near}")


def suffix(path: Path) -> str:
    """The kind of a file, gzipped or not."""
    return Path(path.name.removesuffix(".gz")).suffix


def file_digest(path: Path) -> str:
    """What changes when a file's content does, wherever it lies: SHA-256 of its bytes.

    A process reads each file once: what changes a file also changes the time (`ctime`) that no user
    can set.
    """
    status = path.stat()
    return _digest(
        path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


@cache
def _digest(path: Path, *_: int) -> str:
    with path.open("rb") as stream:
        return sha256(stream)


def sha256(stream: IO[bytes]) -> str:
    """The SHA-256 of the rest of a stream."""
    found = hashlib.sha256()  # the fastest of the standard library where the CPU knows it
    while part := stream.read(1 << 20):
        found.update(part)
    return found.hexdigest()


def aligned(sides: Sequence[Iterable[Line]], names: Sequence[object]) -> Iterator[tuple[Line, ...]]:
    """Rows of one line of each side.

    Raises:
        UserError: One of two sides has more lines; it calls them by their `names`.
    """
    rest = [iter(side) for side in sides]
    for number, row in enumerate(zip_longest(*rest)):
        if None in row:
            counts = [
                number + (line is not None) + sum(1 for _ in side)
                for line, side in zip(row, rest, strict=True)
            ]
            raise UserError(
                f"{names[0]} has {counts[0]} lines but {names[1]} has {counts[1]}; line n of one "
                "must translate line n of the other"
            )
        yield row


def unzipped(path: Path) -> IO[bytes]:
    """A file's bytes, those inside where it is gzipped."""
    return gzip.open(path) if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def count_lines(path: Path) -> int:
    """The number of lines of a file, the last perhaps without a newline."""
    number, last = 0, b"\n"
    with unzipped(path) as stream:
        while part := stream.read(1 << 20):
            number, last = number + part.count(b"\n"), part
    return number + (not last.endswith(b"\n"))


def lines(path: Path, key: str) -> Iterator[str]:
    """The lines of a UTF-8 file. A line ends at a newline only, not at U+2028 and its like."""
    with unzipped(path) as stream:
        yield from decoded(stream, f"{key}: {path}")


def decoded(stream: IO[bytes], name: str) -> Iterator[str]:
    """The lines of a UTF-8 stream, without a byte order mark; an error begins with its `name`."""
    number = 0
    try:
        for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE + 1), b""), 1):
            if len(line) > LONGEST_LINE:
                raise UserError(f"{name}, line {number}: more than {LONGEST_LINE:,} bytes: no text")
            if number == 1 and (found := MISTAKEN.match(line)):
                raise UserError(f"{name}, line 1: not UTF-8, {MISTAKES[str(found.lastgroup)]}")
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text:  # a mark and nothing behind it is an empty file
                yield text.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}, line {number}: not UTF-8 ({error.reason} at byte {error.start + 1} "
            "of the line); convert it to UTF-8"
        ) from None
    except UNZIP_ERRORS as error:
        raise UserError(f"{name} is not a whole gzip file ({error})") from None
