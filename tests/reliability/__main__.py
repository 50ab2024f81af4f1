"""Runs the parts and prints one table; writes it into README.md beside this file when asked to."""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch

from transformer.writing import write

from .table import PARTS, Row, markdown, processor

BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def main() -> int:
    """Returns 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="make reliability", description=__doc__)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of cases")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of all random choices")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    chosen = options.parts.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        parser.error(f"--parts {', '.join(unknown)}: known are {', '.join(PARTS)}")
    found: list[tuple[str, Row, float]] = []
    for part in chosen:
        before = time.monotonic()
        for row in _rows(part, options.seed, options.share):
            now = time.monotonic()
            found.append((part, row, now - before))
            before = now
            print(f"{part}: {row.what}: {row.tried:,} tried, {row.lost:,} lost", flush=True)
    tried, lost = sum(row.tried for _, row, _ in found), sum(row.lost for _, row, _ in found)
    minutes = sum(seconds for *_, seconds in found) / 60
    text = (
        f"{tried:,} tried, {lost:,} lost, in {minutes:.0f} minutes: seed {options.seed}, "
        f"torch {torch.__version__}, {processor()}.\n\n{markdown(found)}"
    )
    print(f"\n{text}")
    if options.write:
        page = Path(__file__).with_name("README.md")
        head, _, rest = page.read_text().partition(BEGIN)
        write(page, f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    return 1 if lost else 0


def _rows(part: str, seed: int, share: float) -> Iterator[Row]:
    """The rows of a part, which gets a folder for itself; one that stops with an error has lost."""
    with tempfile.TemporaryDirectory(prefix=f"reliability-{part}-") as folder:
        try:
            yield from import_module(f"{__package__}.{part}").rows(Path(folder), seed, share)
        except Exception as error:
            traceback.print_exc()
            yield Row(f"stopped with {type(error).__name__}", 1, 1)


if __name__ == "__main__":  # processes may be spawned
    sys.exit(main())
