"""Which pairs are trained on: those of each corpus that fit, and how much of it an epoch holds.

An epoch goes through the main corpus once and takes of each further one as many pairs as its share
asks for. A corpus is walked through in one random order after another, so that whatever its share,
each of its pairs is seen equally often. All randomness is keyed by (seed, corpus, pass), so that a
position in a mixture is a position like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transformer.data.corpus import Corpus
from transformer.data.dataset import CHUNK_ROWS, TokenTable
from transformer.data.lengths import Ints
from transformer.data.tokenizer import Tokenizer
from transformer.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtraCorpus:
    """A corpus that is trained on beside data.train.

    Args:
        train: Corpus, named as data.train is.
        src: Its source language.
        tgt: Its target language.
        share: Share of the training pairs that come from it; by its size when left out.
        limit: Take only its first pairs.
    """

    train: str = ""
    src: str = ""
    tgt: str = ""
    share: float | None = None
    limit: int | None = None


def check_corpora(corpora: dict[str, ExtraCorpus], tags: bool) -> None:
    """Refuses what makes no mixture; `corpora` has their places in the recipe, the main first."""
    main = corpora["data"]
    for key, corpus in corpora.items():
        for name in ("src", "tgt") if corpus is main else ("train", "src", "tgt"):
            if not getattr(corpus, name):
                what = "the language, like en" if name != "train" else "a corpus"
                raise UserError(f"{key}.{name} is missing: name {what}")
        if corpus.src == corpus.tgt:
            raise UserError(f"{key}.tgt: {corpus.tgt!r} is {key}.src too; they must differ")
        if corpus.tgt != main.tgt and not tags:
            raise UserError(
                f"{key}.tgt: {corpus.tgt!r} is not data.tgt = {main.tgt!r}, and nothing would tell "
                "the model which of them to write; set data.tags to true"
            )
        if corpus.share is not None and not 0 < corpus.share < 1:
            raise UserError(
                f"{key}.share: {corpus.share:g} must lie between 0 and 1; leave the corpus out "
                "instead of 0, or name it as data.train instead of 1"
            )
        if corpus.limit is not None and corpus.limit < 1:
            raise UserError(f"{key}.limit: {corpus.limit} must be 1 or more")
    shares = sum(corpus.share or 0.0 for corpus in corpora.values())
    if shares >= 1:
        raise UserError(
            f"data.extra_corpora: the shares add up to {shares:g} and leave nothing to data.train; "
            "they must be less than 1 together"
        )


def check_tags(corpora: dict[str, ExtraCorpus], tags: bool, tokenizer: Tokenizer) -> None:
    """Refuses a vocabulary, which may have come with a model, that lacks tags of the recipe."""
    if tags and not tokenizer.tags:
        raise UserError(
            "data.tags: true, but the vocabulary that came with the model has no tags; set it to "
            "false, or train a new model"
        )
    for key, corpus in corpora.items():
        try:
            tokenizer.encode_src([], corpus.tgt)
        except UserError as error:
            raise UserError(f"{key}.tgt: {error}") from None


@dataclass
class Counts:
    """Pairs kept, and pairs left out because a side was too long or empty."""

    pairs: int = 0
    too_long: int = 0
    empty: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*map(sum, zip(vars(self).values(), vars(other).values(), strict=True)))

    def check(self, corpus: Corpus) -> None:
        """Raises a UserError where nothing is left of a corpus."""
        if not self.pairs:
            raise UserError(
                f"{corpus.key}: no pair of {corpus.spec} is left: {self.too_long} are longer than "
                f"data.max_length, {self.empty} have an empty side"
            )


def select(
    table: TokenTable, corpus: Corpus, max_length: int, refuse: bool, number: int = 0
) -> tuple[Ints, Counts]:
    """Chooses the rows that are trained on of a corpus, the one of this number in the table.

    A pair is left out and counted where a side is empty or has more than `max_length` tokens, EOS
    included; with `refuse` the first that is too long raises a UserError.
    """
    start, stop = table.bounds[number : number + 2].tolist()
    rows, counts, blank = np.empty(stop - start, np.uint32), Counts(), table.blank()
    for begin in range(start, stop, CHUNK_ROWS):
        some = np.arange(begin, min(begin + CHUNK_ROWS, stop))
        lengths, empty = table.longest(some), blank[some]
        long = lengths > max_length
        if refuse and long.any():
            first = int(np.argmax(long))
            place = corpus.where(int(table.numbers(some)[first]) - start)
            raise UserError(
                f"{corpus.key}: {place}: {lengths[first]} tokens, more than data.max_length = "
                f"{max_length}; shorten the pair, raise data.max_length, or set data.too_long to "
                "skip"
            )
        kept = some[~(long | empty)]
        rows[counts.pairs : counts.pairs + len(kept)] = kept
        counts += Counts(len(kept), int((long & ~empty).sum()), int(empty.sum()))
    return rows[: counts.pairs], counts


def choose(
    table: TokenTable, corpora: Sequence[Corpus], max_length: int, refuse: bool
) -> tuple[list[Ints], Counts]:
    """Selects the rows of each corpus that are trained on, and says how many are left out."""
    chosen, total = [], Counts()
    for number, corpus in enumerate(corpora):
        rows, counts = select(table, corpus, max_length, refuse, number)
        counts.check(corpus)
        if counts.too_long or counts.empty:
            log.info(
                "%s: left out %d pairs longer than data.max_length = %d tokens and %d with an "
                "empty side; %d remain",
                corpus.key, counts.too_long, max_length, counts.empty, counts.pairs,
            )  # fmt: skip
        chosen.append(rows)
        total += counts
    return chosen, total


def proportions(
    sizes: Sequence[int], shares: Sequence[float | None], temperature: float
) -> list[float]:
    """The part of the training pairs that comes from each corpus; they add up to 1.

    Corpora without a share divide what the others leave over in proportion to
    size^(1/temperature) (Arivazhagan et al. 2019): 1 is by size, and the higher the temperature,
    the more alike they are.
    """
    rest = 1 - sum(share or 0.0 for share in shares)
    largest = max(sizes)
    weights = [
        (size / largest) ** (1 / temperature) if share is None else 0.0
        for size, share in zip(sizes, shares, strict=True)
    ]
    return [
        rest * weight / sum(weights) if share is None else share
        for weight, share in zip(weights, shares, strict=True)
    ]


def walk(size: int, count: int, epoch: int, key: tuple[int, int]) -> Ints:
    """The next (count,) rows, which an epoch takes, of an endless walk through a corpus.

    The corpus has `size` rows, epochs count from 0, and the key is its number behind the seed.
    """
    first, start = divmod(epoch * count, size)
    passes = -(-(start + count) // size)
    # The last number keeps these keys apart from those of `Plan`.
    orders = [
        np.random.default_rng([*key, number, 1]).permutation(size)
        for number in range(first, first + passes)
    ]
    return np.concatenate(orders)[start : start + count]


class Mixture:
    """Which pairs an epoch holds: all of the main corpus, and of each further one its share.

    Args:
        corpora: The rows of each corpus in the table of all, the main one first.
        shares: Of the corpora after the first.
        temperature: Of `proportions`.
    """

    def __init__(
        self, corpora: Sequence[Ints], shares: Sequence[float | None], temperature: float
    ) -> None:
        self.corpora, self.sizes = corpora, [len(rows) for rows in corpora]
        main, *others = proportions(self.sizes, [None, *shares], temperature)
        # At least one: what is in the recipe is trained on.
        self.counts = [self.sizes[0], *(max(1, round(self.sizes[0] * p / main)) for p in others)]
        #: Whether there is more than one corpus, so that epochs differ in their pairs.
        self.is_mixed = len(corpora) > 1
        #: The part of an epoch that each corpus makes up.
        self.shares = [count / sum(self.counts) for count in self.counts]

    def rows(self, epoch: int, seed: int) -> Ints:
        """(N,) the rows of an epoch in the table of all, corpus by corpus."""
        main, *others = self.corpora
        walks = [
            rows[walk(len(rows), count, epoch, (seed, number))]
            for number, (rows, count) in enumerate(zip(others, self.counts[1:], strict=True))
        ]
        return np.concatenate([main, *walks]) if walks else main

    def __str__(self) -> str:
        if not self.is_mixed:
            return f"of {self.sizes[0]} pairs"
        parts = (f"{count} of {size}" for count, size in zip(self.counts, self.sizes, strict=True))
        return f"of pairs {' + '.join(parts)}"
