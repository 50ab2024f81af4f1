"""How far a corpus is read: a bar on a terminal, a line now and then in a log."""

import io
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm  # type: ignore[import-untyped]

Item = TypeVar("Item")
COUNTS = "{n_fmt} of {total_fmt} pairs, {rate_fmt}, {remaining} left"
BETWEEN_LINES = 10.0  # seconds
log = logging.getLogger(__name__)


class _Log(io.StringIO):
    """Takes for a line of the log what would be written over a bar."""

    def write(self, text: str) -> int:
        if line := text.strip():
            log.info("%s", line)
        return len(text)


def shown(pairs: Iterable[Item], total: int | None, what: str) -> Iterator[Item]:
    """Passes pairs on and shows, once it takes a second, how many, how fast and for how long still.

    Args:
        pairs: To be read.
        total: How many there are, None where nobody knows.
        what: What is done with them.
    """
    live = sys.stderr.isatty()
    form = {True: f"{{desc}} {{percentage:3.0f}}% |{{bar}}| {COUNTS}", False: f"{{desc}}: {COUNTS}"}
    seconds = 0.2 if live else BETWEEN_LINES
    yield from tqdm(
        pairs, what, total, leave=False, file=None if live else _Log(), mininterval=seconds,
        dynamic_ncols=True, unit=" pairs", unit_scale=True, bar_format=form[live],
        delay=1.0 if live else seconds,
    )  # fmt: skip
