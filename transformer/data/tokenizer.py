"""Text to ids and back: byte-level BPE, byte-level unigram or words (section 5.1 of the paper).

Every vocabulary begins with the same four special ids. Where one model translates into several
languages, a tag for each of them follows (`<2de>`), which stands before the source sentence
(Johnson et al. 2017). Text that happens to spell a special token is text: it never becomes a
special id.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers as hf
from tokenizers import models, pre_tokenizers

from transformer.data.metaspace import Metaspace, Rules, metaspace_file, metaspace_rules
from transformer.data.vocabulary import BOS, EOS, PAD, SPECIALS, UNK, ByteLevel, Vocabulary, Words
from transformer.errors import UserError

__all__ = [
    "BOS", "EOS", "PAD", "SHARED_FILE", "SPECIALS", "SRC_FILE", "TGT_FILE", "UNK", "Metaspace",
    "Rules", "Side", "Tokenizer", "TokenizerConfig", "Vocabulary", "Words", "is_blank",
    "metaspace_file", "metaspace_rules", "read_files",
]  # fmt: skip
SMALLEST_VOCABULARY = {"bpe": len(SPECIALS) + 256, "unigram": len(SPECIALS) + 256, "word": 5}
SHARED_FILE, SRC_FILE, TGT_FILE = "tokenizer.json", "tokenizer.src.json", "tokenizer.tgt.json"

Side = Literal["src", "tgt"]


@dataclass(frozen=True)
class TokenizerConfig:
    """How the vocabulary is learned from the training text.

    Args:
        kind: `bpe` (byte-level byte-pair encoding), `unigram` (byte-level) or `word`
            (split at white space, for text that is tokenised already).
        vocab_size: Entries of each vocabulary, the 4 special ids, tags and, in the byte-level
            kinds, the 256 bytes included. Little text may give fewer.
        shared: One vocabulary for both languages; else one for each.
        min_frequency: Occurrences that a pair needs to be merged (`bpe`) or a word needs to be
            kept (`word`).
        lowercase: Lowercase the text first.
    """

    kind: Literal["bpe", "unigram", "word"] = "bpe"
    vocab_size: int = 10_000
    shared: bool = True
    min_frequency: int = 2
    lowercase: bool = False

    def check(self, tags: int = 0) -> None:
        """Raises a ValueError for values that no vocabulary with so many tags can have."""
        smallest = SMALLEST_VOCABULARY.get(self.kind)
        if smallest is None:
            raise UserError(
                f"data.tokenizer.kind: {self.kind!r} is unknown; use bpe, unigram or word"
            )
        for name, value in {
            "vocab_size": self.vocab_size,
            "min_frequency": self.min_frequency,
        }.items():
            if not 0 <= value < 1 << 31:
                raise UserError(f"data.tokenizer.{name}: {value} must lie between 0 and 2^31")
        if self.vocab_size < smallest + tags:
            raise UserError(
                f"data.tokenizer.vocab_size: {self.vocab_size} is too small; "
                f"{self.kind} needs at least {smallest + tags}"
            )


class Tokenizer:
    """Source and target vocabularies. They are one object when the vocabulary is shared.

    Args:
        files: File name -> JSON text, as `to_text` gives them. The text is kept as it is: parsing
            and writing it again would change the last digits of unigram scores.

    Raises:
        UserError: A file is missing or is not a tokenizer of this project.
    """

    def __init__(self, files: dict[str, str]) -> None:
        self.shared = SHARED_FILE in files
        names = [SHARED_FILE] if self.shared else [SRC_FILE, TGT_FILE]
        for name in names:
            if name not in files:
                raise UserError(
                    f"tokenizer: {name} is missing; there must be {SHARED_FILE}, "
                    f"or {SRC_FILE} and {TGT_FILE}"
                )
        self._files = {name: files[name] for name in names}
        sides = [_read(name, text) for name, text in self._files.items()]
        self._src, self._tgt = sides[0], sides[-1]
        #: Language -> id of the tag that asks for a translation into it; empty without tags.
        self.tags = {text[2:-1]: i for i, text in self._src.specials.items() if i > UNK}

    def side(self, side: Side) -> Vocabulary:
        """The vocabulary of the source or the target."""
        return self._src if side == "src" else self._tgt

    @property
    def src_vocab_size(self) -> int:
        """Source ids, the special ones included."""
        return self._src.size

    @property
    def tgt_vocab_size(self) -> int:
        """Target ids, the special ones included."""
        return self._tgt.size

    def encode_src(self, lines: list[str], to: str | None = None) -> list[list[int]]:
        """The ids of each source line, EOS last and, where there are tags, the tag of `to` first.

        Raises:
            UserError: There are tags, and none of the language `to`.
        """
        ids = self._src.encode(lines)
        if not self.tags:
            return ids
        if to not in self.tags:
            raise UserError(
                f"language {to!r} is unknown to this model: "
                f"it translates into {', '.join(self.tags)}"
            )
        return [[self.tags[to], *line] for line in ids]

    def encode_tgt(self, lines: list[str]) -> list[list[int]]:
        """The ids of each target line, EOS last and no BOS."""
        return self._tgt.encode(lines)

    def decode(self, ids: list[list[int]]) -> list[str]:
        """The text of lists of target ids: ends at the first EOS, without other special ids."""
        return self._tgt.decode([line[: line.index(EOS)] if EOS in line else line for line in ids])

    def pieces(self, side: Side, ids: list[int]) -> list[str]:
        """A readable label for each id of a side: its text, special ids as they are written."""
        return self.side(side).pieces(ids)

    def words(self, side: Side, ids: list[int]) -> list[int]:
        """Number of the word, separated by spaces, in which each id of a side ends; from 0."""
        return self.side(side).words(ids)

    def tgt_shown(self, ids: list[int]) -> list[int]:
        """Places of the target ids that `decode` writes: all but the special ones."""
        return [place for place, token in enumerate(ids) if token not in self._tgt.specials]

    def to_text(self) -> dict[str, str]:
        """File name -> JSON text: one file, or one for each side."""
        return dict(self._files)

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json, or tokenizer.src.json and tokenizer.tgt.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, text in self._files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads what `save` wrote."""
        try:
            return cls(read_files(folder))
        except ValueError as error:
            raise UserError(f"{folder}: {error}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own pickling forgets encode_special_tokens.
        return Tokenizer, (self._files,)


def read_files(folder: str | Path) -> dict[str, str]:
    """The files of a tokenizer in a folder: one, or one for each side."""
    paths = [Path(folder) / name for name in (SHARED_FILE, SRC_FILE, TGT_FILE)]
    found = [path for path in paths if path.is_file()]
    try:
        return {path.name: path.read_text(encoding="utf-8") for path in found}
    except UnicodeDecodeError as error:
        raise UserError(f"the tokenizer is not UTF-8 ({error}): copy it again") from None


def is_blank(line: str) -> bool:
    """Whether a source line has nothing to translate: its translation is the empty line."""
    return not line.strip()


def _read(name: str, text: str) -> Vocabulary:
    try:
        library = hf.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(f"tokenizer: {name} cannot be read ({error})") from None
    library.encode_special_tokens = True  # is not stored in tokenizer.json
    found = {written: i for i, written in Vocabulary(library).specials.items()}
    for expected, special in enumerate(SPECIALS):
        if found.get(special) != expected:
            raise UserError(
                f"tokenizer: {special} has id {found.get(special)} in {name}, must be "
                f"{expected}; it was not made by this project"
            )
    if isinstance(library.model, models.WordLevel):
        return Words(library)
    bytewise = isinstance(library.pre_tokenizer, pre_tokenizers.ByteLevel)
    return ByteLevel(library) if bytewise else Metaspace(library)
