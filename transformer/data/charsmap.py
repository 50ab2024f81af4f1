"""SentencePiece's table of characters, which says what text is normalised to.

`tokenizers` has a normalizer for it, `Precompiled`, which looks at one character at a time, or at
two or three that make up one sign: it drops the accent of a full-width letter and leaves Hangul in
its parts. Here the longest entry counts, as in SentencePiece (Kudo and Richardson 2018).
"""

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from transformer.errors import UserError

ROOT = 0


class _Step(NamedTuple):
    """What follows a character: its place in the text is the end of an entry, and the way on."""

    written: str | None  # what the entry that ends here is replaced with
    node: int | None  # where longer entries go on


class CharsMap:
    """A function from text to text that replaces the longest entry at each place.

    Args:
        table: The bytes that a SentencePiece model holds as `precompiled_charsmap`: the size of a
            double-array trie (Aoe 1989), the trie, and the texts that its values point to.

    Raises:
        UserError: They are no such table.
    """

    def __init__(self, table: bytes) -> None:
        try:
            self._nodes = _nodes(table)
        except (struct.error, IndexError, ValueError):
            raise UserError("the table of characters (precompiled_charsmap) is damaged") from None
        alone = (char for char, step in self._nodes[ROOT].items() if step.written is not None)
        #: Every entry holds one of them: most text does not, and is left as it is.
        self._changing = {*alone, *(char for node in self._nodes[1:] for char in node)}

    def __call__(self, text: str) -> str:
        """The text with its entries replaced."""
        return text if self._changing.isdisjoint(text) else "".join(self._replaced(text))

    def _replaced(self, text: str) -> Iterator[str]:
        start = 0
        while start < len(text):
            written, start = self._longest(text, start)
            yield written

    def _longest(self, text: str, start: int) -> tuple[str, int]:
        """What is written for the longest entry that begins here, and where it ends."""
        found, node = (text[start], start + 1), ROOT
        for end in range(start + 1, len(text) + 1):
            step = self._nodes[node].get(text[end - 1])
            if step is None:
                break
            if step.written is not None:
                found = step.written, end
            if step.node is None:
                break
            node = step.node
        return found


@lru_cache(maxsize=2)  # both sides of a model mostly have the same
def _nodes(table: bytes) -> list[dict[str, _Step]]:
    """The trie over bytes as one over characters, its root first."""
    (size,) = struct.unpack_from("<I", table)
    units = struct.unpack_from(f"<{size // 4}I", table, 4)
    texts = table[4 + size :]
    children: dict[int, list[int]] = {}
    for place, unit in enumerate(units[1:], 1):
        if unit < 1 << 31 and unit & 255:  # neither a value nor unused
            children.setdefault(place ^ unit & 255, []).append(place)

    def step(unit: int, base: int) -> _Step:
        written = None
        if unit >> 8 & 1:
            start = units[base] & (1 << 31) - 1
            written = texts[start : texts.index(b"\0", start)].decode()
        if base in children and base not in numbers:
            numbers[base] = len(numbers)
            bases.append(base)
        return _Step(written, numbers.get(base))

    bases = [_offset(units[0])]
    numbers = {bases[ROOT]: ROOT}
    nodes = []
    for base in bases:  # grows meanwhile
        found, open_ = {}, [(base, b"")]
        while open_:
            at, begun = open_.pop()
            for place in children.get(at, ()):
                unit = units[place]
                character, below = begun + bytes([unit & 255]), place ^ _offset(unit)
                if len(character) < _length(character[0]):
                    open_.append((below, character))
                else:
                    found[character.decode()] = step(unit, below)
        nodes.append(found)
    return nodes


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 512) >> 6)


def _length(first: int) -> int:
    """Bytes of a character in UTF-8, told by its first."""
    return 1 + (first >= 0xC0) + (first >= 0xE0) + (first >= 0xF0)
