"""Lines in and lines out: where they come from, and a file that appears when it is whole."""

import gzip
import os
import secrets
import shlex
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from queue import Queue
from typing import IO, BinaryIO, NamedTuple

from transformer.data.files import aligned, decoded, unzipped
from transformer.errors import UserError
from transformer.inference.lines import LineError
from transformer.inference.translator import Translator

STANDARD_INPUT = "standard input"
CHUNK = 2000  # lines that are sorted by length together
# Characters that a reader of the output may take for the end of a line or of a column.
BREAKS = str.maketrans(dict.fromkeys("\t\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029", " "))
#: Names of files that are open already: they are neither made nor replaced.
OPEN = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/self/fd/")


def say(text: str) -> None:
    """Prints a line to standard error."""
    print(f"transformer: {text}", file=sys.stderr)


class Line(NamedTuple):
    """A line of input, and where it stands: for the error about it."""

    place: str
    text: str


Row = tuple[Line, ...]


class Source:
    """The lines of a UTF-8 file, plain or .gz; `-` is standard input."""

    def __init__(self, name: str) -> None:
        self.name = STANDARD_INPUT if name == "-" else name
        self.path = None if name == "-" else Path(name)
        if not self.path and sys.stdin is None:
            raise UserError("the standard input is closed: give texts, or --input with a file")
        mode = (self.path.stat() if self.path else os.fstat(sys.stdin.fileno())).st_mode
        #: Whether it can be read more than once, which a pipe or a terminal cannot.
        self.is_file = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
        self.start = 0 if self.path or not self.is_file else os.lseek(sys.stdin.fileno(), 0, 1)

    def __iter__(self) -> Iterator[Line]:
        """Yields the lines."""
        with unzipped(self.path) if self.path else self._standard_input() as stream:
            for number, text in enumerate(decoded(stream, self.name), 1):
                yield Line(f"{self.name}, line {number}", text)

    def _standard_input(self) -> IO[bytes]:
        # Not `sys.stdin.buffer`: Python could not end while a thread waits for a line from it.
        stream = open(sys.stdin.fileno(), "rb", closefd=False)  # noqa: SIM115, the caller closes it
        if stream.isatty():
            say(f"reading {self.name}, a text in each line; Ctrl-D ends it")
        if self.is_file:
            stream.seek(self.start)
        return stream


class Input:
    """Rows of lines: one line each, or a source and a target line.

    Of each side its sources are read one after the other; the first `skip` rows are left out.
    """

    def __init__(self, *sides: Sequence[Source | list[Line]], skip: int = 0) -> None:
        sources = [source for source in chain(*sides) if isinstance(source, Source)]
        if skip < 0:
            raise UserError(f"--skip is {skip}: give a number of lines, 0 or more")
        self.names = [source.name for source in sources]
        if self.names.count(STANDARD_INPUT) > 1:
            raise UserError("standard input (-) can be read once: give one of them as a file")
        self.sides, self.skip = sides, skip
        self.is_file = all(source.is_file for source in sources)

    def check(self, look: Callable[[list[Row]], object] = len) -> None:
        """Reads everything, if it is all in files, so that a mistake stops no long work later."""
        if self.is_file:
            for chunk in self.chunks():
                with placed(chunk):
                    look(chunk)

    def chunks(self) -> Iterator[list[Row]]:
        """Yields rows in lists of at most `CHUNK`; from a pipe or a terminal what has arrived."""
        rows = self._rows()
        if not self.is_file:
            yield from _arriving(rows)
        while chunk := list(islice(rows, CHUNK)):
            yield chunk

    def _rows(self) -> Iterator[Row]:
        rows = aligned([chain.from_iterable(side) for side in self.sides], self.names)
        count = 0
        for count, row in enumerate(rows, 1):
            if count > self.skip:
                yield row
        if count < self.skip:
            raise UserError(f"--skip is {self.skip}, but there are {count} lines")


def _arriving(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Yields what a thread has read so far, and waits only as long as that is nothing."""
    read: Queue[Row] = Queue(CHUNK)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for row in rows:
                read.put(row)
        except BaseException as error:
            errors.append(error)
        read.put(())  # the end

    # A daemon, since it may wait for a line for ever, and the program must be able to end.
    threading.Thread(target=work, daemon=True).start()
    chunk: list[Row] = []
    while not chunk or chunk[-1]:
        chunk = [read.get()]
        while chunk[-1] and len(chunk) < CHUNK and not read.empty():
            chunk.append(read.get())
        if arrived := [row for row in chunk if row]:
            yield arrived
    for error in errors:
        raise error


def check_language(translator: Translator, to: str | None) -> None:
    """Refuses a language that a model does not translate into, before any text is read."""
    try:
        translator.encode([], to)
    except ValueError as error:
        raise UserError(f"--to {to}: {error}") from None


@contextmanager
def placed(chunk: list[Row]) -> Iterator[None]:
    """Lets an error about a line say where the line stands."""
    try:
        yield
    except LineError as error:
        if error.side == "prefix":
            raise
        place = chunk[error.index][error.side == "target"].place
        raise UserError(f"{place}: {error.reason}") from None


@dataclass
class Output:
    """Writes line by line, and knows how much is whole; gzipped, each part is a whole gzip file."""

    stream: BinaryIO
    done: int  # rows of the input
    zipped: bool = False
    size: int = 0

    def write(self, lines: Iterable[str], rows: int) -> None:
        """Writes the lines that the next rows of the input became."""
        text = "".join(f"{line}\n" for line in lines).encode()
        if self.zipped:
            text = gzip.compress(text, mtime=0)
        self.stream.write(text)
        self.stream.flush()
        self.size, self.done = self.size + len(text), self.done + rows


@contextmanager
def writing(file: str | None, skip: int = 0) -> Iterator[Output]:
    """Opens the output: a file that appears when it is whole, or something that is open.

    If the work stops before, the finished part stays in a file beside it, and a line says how to
    go on. Pipes and devices are written to as they are. `skip` rows of the input were done before.
    """
    if file in (None, "-"):
        if sys.stdout is None:
            raise UserError("the standard output is closed: give --output with a file")
        yield Output(sys.stdout.buffer, skip)
        return
    path = Path(str(file))
    if str(file).startswith(OPEN) or path.is_fifo() or path.is_char_device():
        with path.open("ab") as stream:
            yield Output(stream, skip)
        return
    if path.exists():
        raise UserError(f"{file} exists already: choose another --output, or move it away")
    if not path.parent.is_dir():
        raise UserError(f"--output {file}: there is no folder {path.parent}: make it first")
    partial = Path(f"{file}.partial-{secrets.token_hex(4)}")
    stream = partial.open("xb")
    output = Output(stream, skip, zipped=path.suffix == ".gz")
    try:
        with stream, _signals_raise():
            yield output
            if output.zipped and not output.size:
                output.write([], 0)  # a file without lines can be unzipped, too
    except BaseException:
        _keep(partial, output, skip, path)
        raise
    if path.exists():
        raise UserError(f"{file} has appeared meanwhile: the output is {partial}: move one of them")
    partial.rename(path)


def _keep(partial: Path, output: Output, skip: int, file: Path) -> None:
    if output.done == skip:
        partial.unlink()
        return
    os.truncate(partial, output.size)  # a full disk may hold a part of the next lines
    rest = file.with_suffix(".rest.gz") if output.zipped else f"{file}.rest"
    kept, rest, whole = (shlex.quote(f"{name}") for name in (partial, rest, file))
    say(
        f"{partial} holds what became of lines {skip + 1:,} to {output.done:,}: for the rest "
        f"repeat the command with `--skip {output.done} --output {rest}`, "
        f"then `cat {kept} {rest} > {whole}`"
    )


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Lets SIGTERM, and SIGHUP of a terminal that is closed, end the work as Ctrl-C does."""

    def end(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    signums = signal.SIGTERM, signal.SIGHUP
    # A signal that is ignored, as under nohup, stays ignored.
    before = {s: signal.signal(s, end) for s in signums if signal.getsignal(s) == signal.SIG_DFL}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
