"""Lines in and lines out: where they come from, and a file that appears when it is whole."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TextIO

from transformer.data.files import lines
from transformer.inference.translator import Translator

# Whatever a reader of the output may take for the end of a line or of a column.
BREAKS = str.maketrans(dict.fromkeys("\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "))


class Line(NamedTuple):
    """A line of input, and where it stands: for the error about it."""

    place: str
    text: str


def read(texts: Sequence[str], files: Sequence[str]) -> Iterator[Line]:
    """Returns the lines of the texts, of the files, or of standard input if there are neither.

    Raises:
        ValueError: If there are texts and files; later, if a line is not UTF-8.
    """
    if texts and files:
        raise ValueError("there are texts and --input files: give the one or the other")
    if files:
        return chain.from_iterable(map(read_file, files))
    if texts:
        return (Line(f"text {number}", text) for number, text in enumerate(texts, 1))
    return read_standard_input()


def read_file(file: str) -> Iterator[Line]:
    """Yields the lines of a file."""
    for number, text in enumerate(lines(Path(file), "--input"), 1):
        yield Line(f"{file}, line {number}", text)


def read_standard_input() -> Iterator[Line]:
    """Yields the lines of standard input."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        place = f"standard input, line {number}"
        try:
            yield Line(place, line.decode("utf-8").removesuffix("\n").removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: not UTF-8 ({error.reason}), convert it first") from None


def chunks(source: Iterable[Line], size: int) -> Iterator[list[Line]]:
    """Yields the lines in lists of at most `size`."""
    iterator = iter(source)
    while chunk := list(islice(iterator, size)):
        yield chunk


def check_language(translator: Translator, to: str | None) -> None:
    """Refuses a language that a model does not translate into, before any text is read.

    Raises:
        ValueError: If it does not.
    """
    try:
        translator.encode([], to)
    except ValueError as error:
        raise ValueError(f"--to {to}: {error}") from None


@contextmanager
def writing(file: str | None) -> Iterator[TextIO]:
    """Opens a file to write to, which appears when it is whole; standard output if None.

    Raises:
        ValueError: If the file exists, or its folder does not.
    """
    if file is None:
        yield sys.stdout
        return
    if Path(file).exists():
        raise ValueError(f"{file} exists already: choose another --output, or move it away")
    if not Path(file).parent.is_dir():
        raise ValueError(f"--output {file}: there is no folder {Path(file).parent}: make it first")
    partial = Path(f"{file}.partial-{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
