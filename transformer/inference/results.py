"""What a translator gives for a line."""

from collections.abc import Sequence
from typing import NamedTuple

from transformer.inference.guard import Verdict, badness

Alignment = list[tuple[int, int]]


class Translation(NamedTuple):
    """One translation of a line.

    text: detokenised. score: length-normalised log-probability. log_prob: in nats. pieces: the
    target tokens. alignment: pairs (source word, target word), where asked for; words are what
    spaces separate, counted from 0. verdict: what is wrong with it.
    """

    text: str
    score: float
    log_prob: float
    pieces: list[str]
    alignment: Alignment | None = None
    verdict: Verdict = Verdict()


class Checked(NamedTuple):
    """The best translation of a line, detokenised, and what is wrong with it."""

    text: str
    verdict: Verdict


class Scored(NamedTuple):
    """A given translation under the model: log-probability in nats, and its number of tokens."""

    log_prob: float
    tokens: int


def joined(parts: Sequence[tuple[str, Verdict]]) -> Checked:
    """The parts of a line as one; of each kind of flaw the worst."""
    texts, verdicts = zip(*parts, strict=True)
    flaws = zip(*verdicts, strict=True)
    return Checked(" ".join(texts), Verdict(*(max(kind, key=badness) for kind in flaws)))
