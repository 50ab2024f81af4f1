"""How the pieces of one vocabulary are spelled in another: what a new row can be made of.

Fine-tuning (`training.transfer`) uses it; it lies here because it needs no tensors.
"""

from transformer.data.tokenizer import Side, Tokenizer


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
    specials = {written: [i] for i, written in others.specials.items()}
    known = {others.spelled(i): [i] for i in range(others.size) if i not in others.specials}

    def spell(i: int) -> list[int]:
        if i in pieces.specials:
            return specials.get(pieces.specials[i], [])
        piece = pieces.spelled(i)
        if found := known.get(piece) or known.get(piece := others.normalized(piece)):
            return found
        parts = others.cut(piece)
        return [] if others.specials.keys() & {*parts} else parts

    return [spell(i) for i in range(pieces.size)]
