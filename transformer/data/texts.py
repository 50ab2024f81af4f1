"""The text behind the numbers of a batch: what is scored against, shown, and reported."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice

import numpy as np

from transformer.data.corpus import Corpus
from transformer.errors import UserError


class Texts:
    """The text of a split, read again where it is asked for; `Batch.indices` counts into it.

    Args:
        split: Its name, for messages.
        corpora: What it is made of.
        firsts: The number of the first pair of each corpus.

    Raises:
        UserError: From each method, where the text is no longer what it was at the beginning: its
            pairs are not those of the batches.
    """

    def __init__(self, split: str, corpora: Sequence[Corpus], firsts: Sequence[int]) -> None:
        self.split, self.firsts = split, firsts
        self._corpora = corpora
        self._contents = [corpus.content() for corpus in corpora]

    @cached_property
    def sides(self) -> tuple[list[str], list[str]]:
        """All source and target lines of the first corpus."""
        pairs = list(self.corpora()[0].pairs())
        return [pair.src for pair in pairs], [pair.tgt for pair in pairs]

    def pairs(self, indices: Sequence[int]) -> list[dict[str, str]]:
        """The place and the text of the pairs with these numbers."""
        corpora, found = self.corpora(), dict[int, dict[str, str]]()
        corpus_of = np.searchsorted(self.firsts, indices, "right") - 1
        for number in set(corpus_of.tolist()):
            corpus, first = corpora[number], self.firsts[number]
            wanted = {i - first for i, n in zip(indices, corpus_of, strict=True) if n == number}
            for row, pair in enumerate(islice(corpus.pairs(), max(wanted) + 1)):
                if row in wanted:
                    found[first + row] = {"where": corpus.where(row), **pair._asdict()}
        return [found[index] for index in indices]

    def corpora(self) -> Sequence[Corpus]:
        """What it is made of, unchanged."""
        with suppress(OSError):  # gone
            if [corpus.content() for corpus in self._corpora] == self._contents:
                return self._corpora
        specs = ", ".join(corpus.spec for corpus in self._corpora)
        raise UserError(
            f"data.{self.split}: {specs} was changed or removed while the run went on: begin anew"
        )
