"""How the pieces of one side's vocabulary write text: as bytes or as words.

`metaspace` has the third way, SentencePiece's. What an id means is asked there and here alone.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from itertools import accumulate

import tokenizers as hf
from tokenizers import pre_tokenizers

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")


class Vocabulary:
    """One vocabulary; its subclasses know how pieces write text.

    Args:
        library: The tokenizer as the library reads it.
    """

    def __init__(self, library: hf.Tokenizer) -> None:
        self.library = library
        #: Special id -> how it is written: the four, then the tags.
        self.specials = {
            i: token.content.strip()
            for i, token in sorted(library.get_added_tokens_decoder().items())
        }
        #: Number of ids.
        self.size = int(library.get_vocab_size())
        self.normalize: Callable[[str], str] = getattr(library.normalizer, "normalize_str", str)

    def encode(self, lines: list[str]) -> list[list[int]]:
        """The ids of each line, EOS last."""
        return [encoding.ids for encoding in self.library.encode_batch_fast(lines)]

    def decode(self, ids: list[list[int]]) -> list[str]:
        """The text of lists of ids, without the special ones."""
        texts: list[str] = self.library.decode_batch(ids)
        return texts

    def pieces(self, ids: list[int]) -> list[str]:
        """A readable label for each id: its text, special ids as they are written."""
        raise NotImplementedError

    def words(self, ids: list[int]) -> list[int]:
        """Number of the word, separated by spaces, in which each id ends; from 0."""
        # A tag is no word; its number is that of the first one.
        tag = [0] if ids and UNK < ids[0] < len(self.specials) else []
        return tag + self._words(ids[len(tag) :])

    def _words(self, ids: list[int]) -> list[int]:
        return [max(len(text.split()) - 1, 0) for text in accumulate(self.pieces(ids))]

    def spelled(self, i: int) -> bytes:
        """What a piece writes in UTF-8; a byte-level piece may be a part of a character."""
        raise NotImplementedError

    def normalized(self, piece: bytes) -> bytes:
        """A piece of any vocabulary as this one normalises text."""
        try:
            return self.normalize(piece.decode()).encode()
        except UnicodeDecodeError:  # a part of a character
            return piece

    def cut(self, piece: bytes) -> list[int]:
        """The ids that spell what a piece of any vocabulary writes; empty when none do."""
        raise NotImplementedError

    def entry(self, i: int) -> str:
        """How the file writes an id."""
        return str(self.library.id_to_token(i) or "")


class Words(Vocabulary):
    """Words, which spaces separate."""

    def encode(self, lines: list[str]) -> list[list[int]]:
        # The special tokens are words of this vocabulary: as text they are unknown words.
        words = len(self.specials)
        return [
            line
            if min(line[:-1], default=words) >= words
            else [*(i if i >= words else UNK for i in line[:-1]), EOS]
            for line in super().encode(lines)
        ]

    def pieces(self, ids: list[int]) -> list[str]:
        return [self.entry(i) for i in ids]

    def _words(self, ids: list[int]) -> list[int]:
        return list(range(len(ids)))

    def spelled(self, i: int) -> bytes:
        return f" {self.entry(i)}".encode()

    def cut(self, piece: bytes) -> list[int]:
        return []


_CHARACTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
_BYTES = sorted(range(256), key=lambda byte: chr(byte) not in _CHARACTERS)
#: How pieces write bytes: printable Latin-1 as itself, the others from U+0100 on.
BYTE_OF = dict(zip(_CHARACTERS, _BYTES, strict=True))
CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


class ByteLevel(Vocabulary):
    """Byte-level BPE or unigram: a character may be cut into several pieces."""

    def pieces(self, ids: list[int]) -> list[str]:
        """The texts; a character that is cut is shown with the last of its pieces."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        pieces = []
        for i in ids:
            if i in self.specials:
                decoder.reset()
                pieces.append(self.specials[i])
            else:
                pieces.append(decoder.decode(self.spelled(i)))
        return pieces

    def _words(self, ids: list[int]) -> list[int]:
        # By bytes: a piece may hold a space and the beginning of a character, of a new word.
        texts = (text.decode(errors="replace") for text in accumulate(map(self.spelled, ids)))
        return [max(len(text.split()) - 1, 0) for text in texts]

    def spelled(self, i: int) -> bytes:
        return bytes(BYTE_OF[character] for character in self.entry(i))

    def cut(self, piece: bytes) -> list[int]:
        """The pieces of the bytes; there are always some."""
        text = "".join(CHARACTER_OF[byte] for byte in piece)
        return [token.id for token in self.library.model.tokenize(text)]
