"""Lines that a model is given: refused with their place, or split where they are too long."""

import re
from collections.abc import Callable, Iterable, Sequence

from transformer.errors import UserError


class LineError(UserError):
    """A line that cannot be read.

    Args:
        index: Its place among the lines, from 0.
        reason: What is wrong with it, and what to do.
        side: source, target or prefix.
    """

    def __init__(self, index: int, reason: str, side: str) -> None:
        super().__init__(f"{side} line {index + 1}: {reason}")
        self.index, self.reason, self.side = index, reason, side


def listed(lines: Iterable[str], side: str = "source") -> list[str]:
    """Makes a list of lines that a tokenizer can read.

    Raises:
        TypeError: If it is one text: a sequence, too, of its characters, which nobody means.
        LineError: If a line is no text, or holds half of a surrogate pair.
    """
    if isinstance(lines, str) or not isinstance(lines, Iterable):
        raise TypeError(f"give a list of lines, such as [{str(lines)!r}]")
    texts = list(lines)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise LineError(index, f"{text!r} is no text: give a str, '' for an empty line", side)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            reason = f"not UTF-8 ({text[error.start]!r}, {error.reason}): convert it first"
            raise LineError(index, reason, side) from None
    return texts


def refuse_long(ids: Sequence[Sequence[int]], limit: int | None, side: str = "source") -> None:
    """Refuses lines of more token ids than the limit; None for no limit.

    Raises:
        LineError: For the first of them.
    """
    for index, row in enumerate(ids):
        if limit is not None and len(row) > limit:
            reason = f"{len(row)} tokens, the limit is {limit}: shorten it"
            if side == "source":
                reason += " (to translate it as it is, set too_long to split, or raise max_length)"
            raise LineError(index, reason, side)


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
