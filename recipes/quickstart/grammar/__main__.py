"""Writes Korean-English pairs as TSV: python recipes/quickstart/grammar --pairs 5000000 FILE.

Needs nothing but Python, and about a minute for each million. The three files beside this folder
are 100,000 pairs of `train` and 1,000 each of `val` and `test`.
"""

import argparse
import gzip
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, get_args

if not __package__:  # run as a folder: Python looks for modules inside of it, not beside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from grammar.sentences import Split, pairs


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong and exits."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(args: Sequence[str] | None = None) -> None:
    """Writes the file that the arguments ask for."""
    parser = Parser(prog="grammar", description=str(__doc__).split(":")[0])
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="a new file: .tsv, or .tsv.gz to have it gzipped")
    add("--pairs", type=int, default=100_000, help="how many (%(default)s)")
    about = "val and test hold combinations of words that no sentence of train has (%(default)s)"
    add("--split", choices=get_args(Split), default="train", help=about)
    add("--seed", type=int, default=1, help="decides which sentences come, in which order (1)")
    given = parser.parse_args(args)
    try:
        write(given.file, pairs(given.split, given.pairs, given.seed))
    except FileExistsError:
        parser.error(f"{given.file} exists already: choose another name")
    except (OSError, ValueError) as error:
        parser.error(str(error))


def write(file: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Writes a new TSV file with a header. Equal rows make equal bytes, gzipped or not.

    Raises:
        FileExistsError: the file is there already.
        ValueError: its name does not end in .tsv or .tsv.gz, or there are too few rows.
    """
    if not file.name.endswith((".tsv", ".tsv.gz")):
        raise ValueError(f"{file} must end in .tsv or .tsv.gz")
    plain = file.open("xb")
    try:
        with plain, _zipped(plain) if file.suffix == ".gz" else nullcontext(plain) as stream:
            for row in chain([("ko", "en")], rows):
                stream.write(("\t".join(row) + "\n").encode())
    except BaseException:
        file.unlink()  # what is there is whole
        raise


def _zipped(stream: Any) -> Any:
    """A gzip file that holds neither its name nor the time."""
    return gzip.GzipFile("", "wb", fileobj=stream, mtime=0)


if __name__ == "__main__":
    main()
