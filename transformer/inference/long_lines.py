"""Lines with more tokens than a model was trained with: refused by their number, or split."""

import re
from collections.abc import Callable, Iterable

SPLIT = ", have it split (too_long: split), or raise max_length"


class TooLongError(ValueError):
    """A line that has more tokens than the limit; index: its place among the lines, from 0."""

    def __init__(self, index: int, tokens: int, limit: int, instead: str) -> None:
        super().__init__(
            f"line {index + 1} has {tokens} tokens, the limit is {limit}: shorten it{instead}"
        )
        self.index, self.tokens = index, tokens


def refuse_long(lengths: Iterable[int], limit: int | None, instead: str = "") -> None:
    """Raises a TooLongError for the first length above a limit.

    Args:
        lengths: of each line, in tokens.
        limit: in tokens; None for any length.
        instead: what the user may do instead of shortening it, for the message.
    """
    for index, tokens in enumerate(lengths):
        if limit is not None and tokens > limit:
            raise TooLongError(index, tokens, limit, instead)


def split(line: str, fits: Callable[[str], bool]) -> list[str]:
    """A line that does not fit as its sentences; one that still does not, in halves at a space."""
    line = line.strip()
    if len(line) < 2 or fits(line):
        return [line]
    parts = [part for part in re.split(r"(?<=[.!?…])\s+|(?<=[。！？])", line) if part]
    if len(parts) == 1:
        spaces = [match.start() for match in re.finditer(r"\s+", line)] or [len(line) // 2]
        middle = min(spaces, key=lambda place: abs(place - len(line) // 2))
        parts = [line[:middle], line[middle:]]
    return [short for part in parts for short in split(part, fits)]
