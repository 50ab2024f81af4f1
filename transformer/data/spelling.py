"""How the pieces of one vocabulary are spelled in another: what a new row can be made of.

Fine-tuning (`training.transfer`) uses it; it lies here because it needs no tensors.
"""

from collections.abc import Callable

from transformer.data.tokenizer import Side, Tokenizer, Vocabulary


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
    specials = {written: i for i, written in others.specials.items()}
    spell = _speller(others)
    return [
        spell(pieces.spelled(i))
        if i not in pieces.specials
        else [specials[name] for name in (pieces.specials[i],) if name in specials]
        for i in range(pieces.size)
    ]


def _speller(old: Vocabulary) -> Callable[[bytes], list[int]]:
    """A function from what a piece writes to old ids."""
    ids = {old.spelled(i): i for i in range(old.size) if i not in old.specials}

    def spell(piece: bytes) -> list[int]:
        if piece in ids:
            return [ids[piece]]
        piece = old.normalized(piece)
        if piece in ids:
            return [ids[piece]]
        parts = old.cut(piece)
        return [] if old.specials.keys() & {*parts} else parts

    return spell
