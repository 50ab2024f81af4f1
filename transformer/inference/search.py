"""Search for the best target sentence: beam search, of which greedy is beam 1, and sampling.

Shapes: B sentences still open, N beams.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from transformer.data.tokenizer import BOS, EOS, PAD
from transformer.errors import UserError
from transformer.inference.continuations import (
    NEVER,
    NOT_A_NUMBER,
    Candidates,
    Continuations,
    banned_tokens,
    best_continuations,
    sampled_continuations,
)
from transformer.kernels.tensors import sentence_blocks
from transformer.models import Seq2Seq


@dataclass(frozen=True)
class SearchConfig:
    """How to look for translations. The defaults are the paper's (section 6.1).

    Args:
        beam: hypotheses kept at each step; 1 is greedy search.
        n_best: hypotheses returned for each sentence, at most `beam` unless sampling.
        length_norm: what a hypothesis' log-probability is divided by. `gnmt`: ((5 + length) /
            6)^alpha (Wu et al. 2016, the paper's); `power`: length^alpha (CTranslate2, Hugging
            Face); `none`. The length counts target tokens with the end symbol.
        alpha: exponent of the length normalisation; a higher one favours longer translations.
        max_extra: target tokens allowed beyond the number of source tokens, or of a forced prefix
            that is longer.
        min_length: target tokens before the end symbol may come, at most `max_extra` + 1.
        no_repeat_ngram: no n-gram of so many target tokens may come twice in a hypothesis, where
            a forced prefix does not demand it; 0 for no such rule.
        sample: draw `n_best` independent translations instead of searching for the best.
        temperature: divides the logits before sampling.
        top_k: sample among the k most probable tokens only; 0 for all.
        top_p: sample among the fewest tokens that together reach this probability.
    """

    beam: int = 4
    n_best: int = 1
    length_norm: Literal["gnmt", "power", "none"] = "gnmt"
    alpha: float = 0.6
    max_extra: int = 50
    min_length: int = 0
    no_repeat_ngram: int = 0
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        least = {"beam": 1, "n_best": 1, "max_extra": 0, "min_length": 0, "no_repeat_ngram": 0}
        for name, smallest in {**least, "top_k": 0}.items():
            if getattr(self, name) < smallest:
                raise UserError(f"{name} is {getattr(self, name)}: it must be {smallest} or more")
        if self.n_best > self.beam and not self.sample:
            raise UserError(
                f"n_best is {self.n_best} with beam {self.beam}: choose n_best from 1 to beam, "
                "or a wider beam"
            )
        if self.min_length > self.max_extra + 1:  # a source of one token and its end have room
            raise UserError(
                f"min_length is {self.min_length} with max_extra {self.max_extra}, which ends the "
                f"translation of a single word sooner: raise max_extra to {self.min_length - 1}"
            )
        if not (0 < self.temperature < math.inf and 0 < self.top_p <= 1):
            raise UserError(
                f"temperature {self.temperature}, top_p {self.top_p}: they must be above 0, "
                "and top_p at most 1"
            )
        if not math.isfinite(self.alpha):
            raise UserError(f"alpha is {self.alpha}: it must be a number, such as 0.6")

    @property
    def width(self) -> int:
        """Beams that run side by side for a sentence."""
        return self.n_best if self.sample else self.beam


class Hypothesis(NamedTuple):
    """A translation in target ids.

    ids: the tokens, without start and end symbol. score: the length-normalised log-probability,
    by which hypotheses are ranked. log_prob: the log-probability, in nats. ended: its end symbol
    came before the maximum length.
    """

    ids: list[int]
    score: float
    log_prob: float
    ended: bool = True


def length_penalty(length: int, config: SearchConfig) -> float:
    """What the log-probability of `length` tokens, end symbol included, is divided by."""
    if config.length_norm == "gnmt":
        return float(((5 + length) / 6) ** config.alpha)
    return float(length**config.alpha) if config.length_norm == "power" else 1.0


class _Open:
    """The sentences that are still being decoded, as tensors whose first size is B."""

    def __init__(
        self, model: Seq2Seq, src: Tensor, lengths: Tensor, beams: int, limits: Tensor
    ) -> None:
        self.state = model.start(model.encode(src, lengths), beams)
        self.sentences = list(range(len(src)))  # their places in the batch that came in
        if model.max_length is not None:
            limits = limits.clamp(max=model.max_length)
        self.limits = limits.tolist()
        self.tokens = src.new_full((len(src), beams, 1), BOS)
        # The beams of a sentence begin alike, so all but the first are out of the race.
        self.scores = torch.full((len(src), beams), NEVER, device=src.device)
        self.scores[:, 0] = 0.0

    def advance(self, scores: Tensor, parents: Tensor, tokens: Tensor) -> None:
        """Let beam n go on from parent n with token n; all (B, N)."""
        self.state.reorder(parents)
        index = parents[:, :, None].expand_as(self.tokens)
        self.tokens = torch.cat([self.tokens.gather(1, index), tokens[:, :, None]], 2)
        self.scores = scores

    def keep(self, rows: list[int]) -> None:
        """Go on with these sentences, in this order."""
        index = torch.tensor(rows, dtype=torch.long, device=self.tokens.device)
        self.state.keep(index)
        self.sentences = [self.sentences[row] for row in rows]
        self.limits = [self.limits[row] for row in rows]
        self.tokens, self.scores = self.tokens[index], self.scores[index]


@torch.inference_mode()
def search(
    model: Seq2Seq,
    src: Tensor,
    src_lengths: Tensor,
    config: SearchConfig,
    prefix: Sequence[Sequence[int]] | None = None,
    generator: torch.Generator | None = None,
    stop: Event | None = None,
) -> list[list[Hypothesis]]:
    """Translate a batch.

    A hypothesis is finished when its end symbol is among the N best continuations. A sentence is
    finished, and leaves the batch, with its N-th finished hypothesis, or at its maximum length,
    where its open hypotheses count as they are.

    Args:
        model: in evaluation mode.
        src: (B, S) token ids.
        src_lengths: (B,), tokens.
        config: beam, length normalisation, sampling.
        prefix: for each sentence, target ids with which the translation must begin.
        generator: source of randomness of the sampling.
        stop: set by another thread that needs no results any more.

    Returns:
        For each sentence its `n_best` hypotheses, best first.
    """
    beams = config.width
    expand: Continuations = best_continuations
    if config.sample:
        expand = sampled_continuations(config.temperature, config.top_k, config.top_p, generator)
    forced = _prefix_table(prefix, src)
    limits = torch.maximum(src_lengths, (forced >= 0).sum(1)) + config.max_extra
    todo = _Open(model, src, src_lengths, beams, limits)
    if config.sample:
        todo.scores.zero_()
    finished: list[list[Hypothesis]] = [[] for _ in range(len(src))]
    length = 0
    while todo.sentences and not (stop and stop.is_set()):
        length += 1
        hidden, todo.state = model.step(todo.tokens[:, :, -1], todo.state)
        must = forced[todo.sentences, length - 1] if length <= forced.size(1) else None
        candidates = _in_blocks(expand, model, todo, hidden, must, config)
        ends = (candidates.tokens == EOS) & (candidates.scores > NEVER)
        _collect(todo, candidates, ends[:, :beams], length, config, finished)
        scores, index = candidates.scores.masked_fill(ends, NEVER).topk(beams, -1)
        todo.advance(
            scores, candidates.parents.gather(1, index), candidates.tokens.gather(1, index)
        )
        _close(todo, length, config, finished)
    if not (all(finished) or (stop and stop.is_set())):
        raise UserError(NOT_A_NUMBER)
    return [sorted(found, key=lambda h: -h.score)[: config.n_best] for found in finished]


def _in_blocks(
    expand: Continuations,
    model: Seq2Seq,
    todo: _Open,
    hidden: Tensor,
    must: Tensor | None,
    config: SearchConfig,
) -> Candidates:
    """Project and choose for some sentences at a time."""
    scores, rules = todo.scores, (config.no_repeat_ngram, config.min_length)
    parts = []
    for block in sentence_blocks(scores):
        logits = model.project(hidden[block]).float()
        prefix = None if must is None else must[block]
        banned = banned_tokens(todo.tokens[block], logits.size(-1), prefix, *rules)
        parts.append(expand(scores[block], logits, banned))
    return parts[0] if len(parts) == 1 else Candidates(*map(torch.cat, zip(*parts, strict=True)))


def _collect(
    todo: _Open,
    candidates: Candidates,
    ends: Tensor,
    length: int,
    config: SearchConfig,
    finished: list[list[Hypothesis]],
) -> None:
    """Store the hypotheses that end with this step; ends: (B, N)."""
    rows, columns = ends.nonzero(as_tuple=True)
    if not len(rows):
        return
    ids = todo.tokens[rows, candidates.parents[rows, columns], 1:].tolist()
    log_probs = candidates.scores[rows, columns].tolist()
    penalty = length_penalty(length, config)
    for row, its_ids, log_prob in zip(rows.tolist(), ids, log_probs, strict=True):
        found = finished[todo.sentences[row]]
        if len(found) < config.width:
            found.append(Hypothesis(its_ids, log_prob / penalty, log_prob))


def _close(
    todo: _Open, length: int, config: SearchConfig, finished: list[list[Hypothesis]]
) -> None:
    """Let sentences leave that have all their hypotheses or have reached their maximum length."""
    rows = []
    for row, sentence in enumerate(todo.sentences):
        found = finished[sentence]
        if len(found) < config.width and length >= todo.limits[row]:
            for ids, log_prob in zip(
                todo.tokens[row, :, 1:].tolist(), todo.scores[row].tolist(), strict=True
            ):
                if log_prob > NEVER and len(found) < config.width:
                    score = log_prob / length_penalty(length, config)
                    found.append(Hypothesis(ids, score, log_prob, ended=False))
        elif len(found) < config.width:
            rows.append(row)
    if len(rows) < len(todo.sentences):
        todo.keep(_without_gaps(rows))


def _without_gaps(rows: list[int]) -> list[int]:
    """The rows, of which only those beyond the new size move: to where others have left."""
    last = [row for row in rows if row >= len(rows)]
    stay = set(rows)
    return [row if row in stay else last.pop() for row in range(len(rows))]


def _prefix_table(prefix: Sequence[Sequence[int]] | None, src: Tensor) -> Tensor:
    """The forced tokens, (B, longest prefix), -1 where a sentence is free."""
    return pad(prefix or [()] * len(src), src.device, -1)[0]


def pad(
    rows: Sequence[Sequence[int]], device: torch.device | str = "cpu", value: int = PAD
) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor (B, longest), padded at the end, and their lengths (B,)."""
    lengths = [len(row) for row in rows]
    longest = max(lengths, default=0)
    padded = [[*row, *[value] * (longest - len(row))] for row in rows]
    return (
        torch.tensor(padded, dtype=torch.long, device=device),
        torch.tensor(lengths, device=device),
    )
