"""Several corpora in one run: how much of each an epoch holds, and which pairs of it.

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
from transformer.data.dataset import Counts, TokenTable, nothing_left, select
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

    def check(self, key: str) -> None:
        """Raises a UserError for what no corpus can be; `key` is its place in the recipe."""
        for name in ("src", "tgt") if key == "data" else ("train", "src", "tgt"):
            if not getattr(self, name):
                what = "the language, like en" if name != "train" else "a corpus"
                raise UserError(f"{key}.{name} is missing: name {what}")
        if self.src == self.tgt:
            raise UserError(f"{key}.tgt: {self.tgt!r} is {key}.src too; they must differ")
        if self.share is not None and not 0 < self.share < 1:
            raise UserError(
                f"{key}.share: {self.share:g} must lie between 0 and 1; leave the corpus out "
                "instead of 0, or name it as data.train instead of 1"
            )
        if self.limit is not None and self.limit < 1:
            raise UserError(f"{key}.limit: {self.limit} must be 1 or more")


def check_mixture(
    corpora: dict[str, ExtraCorpus], tags: bool, temperature: float, streaming: bool
) -> None:
    """Refuses what makes no mixture; `corpora` has their places in the recipe, the main first."""
    for key, corpus in corpora.items():
        corpus.check(key)
    main, *extra = corpora.values()
    if not temperature > 0:
        raise UserError(f"data.temperature: {temperature:g} must be more than 0")
    if extra and streaming:
        raise UserError(
            "data.streaming: true does not go with data.extra_corpora, which are read from the "
            "cache; set data.streaming to false, or leave data.extra_corpora out"
        )
    for key, corpus in corpora.items():
        if corpus.tgt != main.tgt and not tags:
            raise UserError(
                f"{key}.tgt: {corpus.tgt!r} is not data.tgt = {main.tgt!r}, and nothing would tell "
                "the model which of them to write; set data.tags to true"
            )
    shares = sum(corpus.share or 0.0 for corpus in extra)
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


def choose(
    table: TokenTable, corpora: Sequence[Corpus], max_length: int, refuse: bool
) -> tuple[list[Ints], Counts]:
    """Selects the rows of each corpus that are trained on, and says how many are left out."""
    chosen, total = [], Counts()
    for number, corpus in enumerate(corpora):
        rows, counts = select(table, corpus, max_length, refuse, number)
        if not counts.pairs:
            raise nothing_left(corpus, counts)
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
    """The part of the training pairs that comes from each corpus.

    Corpora without a share divide what the others leave over in proportion to
    size^(1/temperature) (Arivazhagan et al. 2019): 1 is by size, and the higher the temperature,
    the more alike they are.

    Args:
        sizes: Pairs of each corpus.
        shares: What was asked for.
        temperature: More than 0.

    Returns:
        Numbers that add up to 1.
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
    """The (count,) rows that an epoch takes: the next of an endless walk through the corpus.

    Args:
        size: Rows of the corpus.
        count: Rows that each epoch takes, 1 or more.
        epoch: From 0.
        key: Seed and number of the corpus.
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

    @property
    def is_mixed(self) -> bool:
        """Whether there is more than one corpus, so that epochs differ in their pairs."""
        return len(self.corpora) > 1

    @property
    def shares(self) -> list[float]:
        """The part of an epoch that each corpus makes up."""
        return [count / sum(self.counts) for count in self.counts]

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
