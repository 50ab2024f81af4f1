"""How the pieces of one vocabulary are spelled in another: what a new row can be made of.

Fine-tuning (`training.transfer`) uses it; it lies here because it needs no tensors, but to know
how tokenizers write bytes.
"""

from collections.abc import Callable

import tokenizers as hf
from tokenizers import models

from transformer.data.tokenizer import BYTE_OF, Side, Tokenizer

CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}


def spellings(new: Tokenizer, old: Tokenizer, side: Side) -> list[list[int]]:
    """The ids of an old vocabulary that spell each piece of a new one.

    Pieces are compared as bytes, so that vocabularies of different kinds have the words in common
    that both hold; where the old one lowercases, so is the piece before it is looked up.

    Args:
        new: whose pieces are spelled.
        old: whose ids they are spelled with.
        side: which vocabulary of each.

    Returns:
        For each new id one old id where the old vocabulary holds the same piece, else the several
        that make it up, else (a special token or a word that the old one does not know) none.
    """
    pieces, others = new.side(side), old.side(side)
    specials = {token.content: i for i, token in others.get_added_tokens_decoder().items()}
    spell = _speller(others)
    found = [spell(_bytes(pieces, pieces.id_to_token(i))) for i in range(pieces.get_vocab_size())]
    for i, token in pieces.get_added_tokens_decoder().items():
        found[i] = [specials[token.content]] if token.content in specials else []
    return found


def _speller(old: hf.Tokenizer) -> Callable[[str], list[int]]:
    """A function from a piece, its bytes written as characters, to old ids."""
    specials = set(old.get_added_tokens_decoder())
    ids = {_bytes(old, token): i for token, i in old.get_vocab().items() if i not in specials}

    def spell(piece: str) -> list[int]:
        if piece in ids:
            return [ids[piece]]
        piece = _normalized(old, piece)
        if piece in ids:
            return [ids[piece]]
        if isinstance(old.model, models.WordLevel):
            return []
        parts = [token.id for token in old.model.tokenize(piece)]
        return [] if specials.intersection(parts) else parts

    return spell


def _bytes(side: hf.Tokenizer, token: str | None) -> str:
    """A token as byte-level vocabularies write it: most words come after a space."""
    assert token is not None
    return _characters(f" {token}") if isinstance(side.model, models.WordLevel) else token


def _characters(text: str) -> str:
    return "".join(CHARACTER_OF[byte] for byte in text.encode())


def _normalized(side: hf.Tokenizer, piece: str) -> str:
    try:
        text = bytes(BYTE_OF[character] for character in piece).decode()
    except UnicodeDecodeError:  # a part of a character
        return piece
    return _characters(side.normalizer.normalize_str(text))
