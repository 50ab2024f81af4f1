"""Search for the best target sentence: beam search, of which greedy is beam 1, and sampling.

Shapes: B sentences still open, N beams.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from transformer.data.tokenizer import BOS, EOS
from transformer.errors import UserError
from transformer.inference.batches import pad
from transformer.inference.continuations import (
    NEVER,
    NOT_A_NUMBER,
    Candidates,
    Expand,
    banned_tokens,
    best_continuations,
    sampled_continuations,
)
from transformer.kernels.tensors import sentence_blocks
from transformer.models import Seq2Seq
from transformer.settings import settings

#: Numbers with which a search can be computed: beyond them memory, time or floats do not suffice.
LIMITS: dict[str, tuple[float, float]] = {
    "beam": (1, 10_000), "n_best": (1, 10_000), "alpha": (-10, 10), "max_extra": (0, 100_000),
    "min_length": (0, 100_001), "no_repeat_ngram": (0, math.inf), "temperature": (1e-6, 1e6),
    "top_k": (0, math.inf), "top_p": (1e-6, 1),
}  # fmt: skip


LengthNorm = Literal["gnmt", "power", "none"]


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
    length_norm: LengthNorm = "gnmt"
    alpha: float = 0.6
    max_extra: int = 50
    min_length: int = 0
    no_repeat_ngram: int = 0
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, (smallest, largest) in LIMITS.items():
            value = getattr(self, name)
            if not smallest <= value:
                raise UserError(f"{name} is {value}: it must be {smallest:g} or more")
            if not value <= largest:
                raise UserError(f"{name} is {value}: it must be {largest:g} or less")
        if self.length_norm not in (norms := get_args(LengthNorm)):
            raise UserError(f"length_norm is {self.length_norm!r}: use {', '.join(norms)}")
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


@torch.inference_mode()
def search(
    model: Seq2Seq,
    src: Tensor,
    src_lengths: Tensor,
    config: SearchConfig,
    prefix: Sequence[Sequence[int]] | None = None,
    generator: torch.Generator | None = None,
    stop: Event | None = None,
    limit: int | None = None,
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
        limit: target tokens of the longest translation, where `max_extra` shall not say it.

    Returns:
        For each sentence its `n_best` hypotheses, best first.
    """
    expand: Expand = best_continuations
    if config.sample:
        expand = sampled_continuations(config.temperature, config.top_k, config.top_p, generator)
    forced, _ = pad(prefix or [()] * len(src), src.device, -1)
    beams = _Beams(model, src, src_lengths, config, forced)
    if limit is not None:
        beams.limits = [limit] * len(src)
    while beams.sentences and not (stop and stop.is_set()):
        beams.step(expand)
    if not (all(beams.finished) or (stop and stop.is_set())):
        raise UserError(NOT_A_NUMBER)
    return [sorted(found, key=lambda h: -h.score)[: config.n_best] for found in beams.finished]


def search_of(config: dict[str, Any], folder: str | Path) -> SearchConfig:
    """The search settings in the `config.json` of a bundle.

    Raises:
        UserError: a setting is unknown, or of another type.
    """
    return settings(SearchConfig, config["search"], Path(folder) / "config.json", "search")


class _Beams:
    """N beams for each sentence that is still being decoded, and all finished hypotheses.

    Args:
        forced: (B, longest prefix), the tokens that must come first, -1 where a sentence is free.
    """

    def __init__(
        self, model: Seq2Seq, src: Tensor, lengths: Tensor, config: SearchConfig, forced: Tensor
    ) -> None:
        self.model, self.config, self.forced = model, config, forced
        self.length = 0
        self.sentences = list(range(len(src)))  # their places in the batch that came in
        self.finished: list[list[Hypothesis]] = [[] for _ in self.sentences]
        limits = torch.maximum(lengths, (forced >= 0).sum(1)) + config.max_extra
        if model.max_length is not None:
            limits = limits.clamp(max=model.max_length)
        self.limits = limits.tolist()
        self.state = model.start(model.encode(src, lengths), config.width)
        self.tokens = src.new_full((len(src), config.width, 1), BOS)
        self.scores = torch.zeros(len(src), config.width, device=src.device)
        if not config.sample:
            # The beams of a sentence begin alike, so all but the first are out of the race.
            self.scores[:, 1:] = NEVER

    def step(self, expand: Expand) -> None:
        """Let each beam write a token, and sentences leave that are finished."""
        self.length += 1
        hidden = self.model.step(self.tokens[:, :, -1], self.state)
        found = self._candidates(expand, hidden)
        ends = (found.tokens == EOS) & (found.scores > NEVER)
        self._collect(found, ends[:, : self.config.width])
        self.scores, index = found.scores.masked_fill(ends, NEVER).topk(self.config.width, -1)
        parents = found.parents.gather(1, index)
        self.state.reorder(parents)
        past = self.tokens.gather(1, parents[:, :, None].expand_as(self.tokens))
        self.tokens = torch.cat([past, found.tokens.gather(1, index)[:, :, None]], 2)
        self._close()

    def _candidates(self, expand: Expand, hidden: Tensor) -> Candidates:
        """Continuations of hidden states (B, N, D), made of some sentences at a time."""
        must = None
        if self.length <= self.forced.size(1):
            must = self.forced[self.sentences, self.length - 1]
        parts = []
        for block in sentence_blocks(self.scores):
            logits = self.model.project(hidden[block]).float()
            banned = banned_tokens(
                self.tokens[block],
                logits.size(-1),
                None if must is None else must[block],
                self.config.no_repeat_ngram,
                self.config.min_length,
            )
            parts.append(expand(self.scores[block], logits, banned))
        if len(parts) == 1:
            return parts[0]
        return Candidates(*map(torch.cat, zip(*parts, strict=True)))

    def _collect(self, found: Candidates, ends: Tensor) -> None:
        """Store the hypotheses that end with this step; ends: (B, N)."""
        rows, columns = ends.nonzero(as_tuple=True)
        if len(rows):
            ids = self.tokens[rows, found.parents[rows, columns], 1:].tolist()
            log_probs = found.scores[rows, columns].tolist()
            for row, beam, log_prob in zip(rows.tolist(), ids, log_probs, strict=True):
                self._finish(self.sentences[row], beam, log_prob, ended=True)

    def _finish(self, sentence: int, ids: list[int], log_prob: float, ended: bool) -> None:
        if len(self.finished[sentence]) < self.config.width:
            score = log_prob / length_penalty(self.length, self.config)
            self.finished[sentence].append(Hypothesis(ids, score, log_prob, ended))

    def _close(self) -> None:
        """Let sentences leave that have N hypotheses or have reached their maximum length."""
        stay = []
        for row, sentence in enumerate(self.sentences):
            if len(self.finished[sentence]) == self.config.width:
                continue
            if self.length < self.limits[row]:
                stay.append(row)
                continue
            ids, log_probs = self.tokens[row, :, 1:].tolist(), self.scores[row].tolist()
            for beam, log_prob in zip(ids, log_probs, strict=True):
                if log_prob > NEVER:
                    self._finish(sentence, beam, log_prob, ended=False)
        if len(stay) < len(self.sentences):
            self._keep(_without_gaps(stay))

    def _keep(self, rows: list[int]) -> None:
        """Go on with these sentences, in this order."""
        index = torch.tensor(rows, dtype=torch.long, device=self.tokens.device)
        self.state.keep(index)
        self.sentences = [self.sentences[row] for row in rows]
        self.limits = [self.limits[row] for row in rows]
        self.tokens, self.scores = self.tokens[index], self.scores[index]


def _without_gaps(rows: list[int]) -> list[int]:
    """The rows, of which only those beyond the new size move: to where others have left."""
    last = [row for row in rows if row >= len(rows)]
    stay = set(rows)
    return [row if row in stay else last.pop() for row in range(len(rows))]
