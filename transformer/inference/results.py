"""What a translator gives for a line."""

from collections.abc import Sequence
from typing import NamedTuple

from transformer.inference.guard import Verdict, badness

Alignment = list[tuple[int, int]]


class Translation(NamedTuple):
    """One translation of a line.

    text: detokenised. verdict: what is wrong with it. score: length-normalised log-probability.
    log_prob: in nats. alignment: pairs (source word, target word), where asked for; words are what
    spaces separate, counted from 0.
    """

    text: str
    verdict: Verdict
    score: float
    log_prob: float
    alignment: Alignment | None = None


class Scored(NamedTuple):
    """A given translation under the model: log-probability in nats, and its number of tokens."""

    log_prob: float
    tokens: int


def joined(parts: Sequence[Translation]) -> Translation:
    """The parts of a line as one: of each kind of flaw the worst, and the sums of the scores."""
    texts, verdicts, scores, log_probs, _ = zip(*parts, strict=True)
    flaws = zip(*verdicts, strict=True)
    worst = Verdict(*(max(kind, key=badness) for kind in flaws))
    return Translation(" ".join(filter(None, texts)), worst, sum(scores), sum(log_probs))
