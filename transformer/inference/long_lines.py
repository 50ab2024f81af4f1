"""Lines with more tokens than a model was trained with: refused by their number, or split."""

import re
from collections.abc import Callable


class TooLongError(ValueError):
    """A line that has more tokens than the limit; index: its place among the lines, from 0."""

    def __init__(self, index: int, tokens: int, limit: int) -> None:
        super().__init__(
            f"line {index + 1} has {tokens} tokens, the limit is {limit}: shorten it, "
            "have it split (too_long: split), or raise max_length"
        )
        self.index, self.tokens = index, tokens


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
