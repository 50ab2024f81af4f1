"""Which tokens may come next: the best ones of a beam search, or ones drawn at random.

Shapes: B sentences still open, N beams, V vocabulary, C candidates.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from transformer.data.tokenizer import EOS
from transformer.errors import UserError
from transformer.kernels.tensors import largest_sums

NEVER = float("-inf")
NOT_A_NUMBER = (
    "the model's output is not a number: its weights are damaged, or too large for this precision; "
    "try float32, or another checkpoint"
)


class Candidates(NamedTuple):
    """Continuations, best first: total log-probability, parent beam and token, each (B, C)."""

    scores: Tensor
    parents: Tensor
    tokens: Tensor


Expand = Callable[[Tensor, Tensor, Tensor | None], Candidates]


def best_continuations(scores: Tensor, logits: Tensor, banned: Tensor | None) -> Candidates:
    """The 2 N best continuations of all beams: enough for N that do not end.

    Args:
        scores: (B, N), log-probabilities of the beams.
        logits: (B, N, V), of the next token; they are used up.
        banned: (B, N, V) or (B, 1, V), true for tokens that may not come next.
    """
    # In place: what is written to fresh memory takes longer than to compute it.
    log_probs = torch.log_softmax(logits, -1, out=logits)
    if banned is not None:
        log_probs = log_probs.masked_fill_(banned, NEVER)
    vocabulary = log_probs.size(-1)
    count = min(2 * scores.size(1), log_probs[0].numel())
    best, places = largest_sums(scores, log_probs, count)
    return Candidates(best, places // vocabulary, places % vocabulary)


def sampled_continuations(
    temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Expand:
    """A function like `best_continuations` that draws one token for every beam."""

    def sample(scores: Tensor, logits: Tensor, banned: Tensor | None) -> Candidates:
        log_probs = logits.log_softmax(-1)
        if banned is not None:
            logits = logits.masked_fill_(banned, NEVER)
        probabilities = _truncated(logits / temperature, top_k, top_p).softmax(-1)
        if probabilities.isnan().any():
            raise UserError(NOT_A_NUMBER)
        tokens = probabilities.flatten(0, 1).multinomial(1, generator=generator).view_as(scores)
        scores = scores + log_probs.gather(-1, tokens[:, :, None]).squeeze(-1)
        own = torch.arange(scores.size(1), device=scores.device).expand_as(scores)
        return Candidates(scores, own, tokens)

    return sample


def _truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits with everything outside the top-k and the top-p nucleus set to -inf."""
    if top_k:
        least = logits.topk(min(top_k, logits.size(-1)), -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, NEVER)
    if top_p < 1:
        ordered, index = logits.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        # A token is out when those before it reach top_p already; the first is always in.
        outside = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(outside.scatter(-1, index, outside), NEVER)
    return logits


def banned_tokens(
    tokens: Tensor, vocabulary: int, prefix: Tensor | None, no_repeat_ngram: int, min_length: int
) -> Tensor | None:
    """Which tokens may not come next: (B, N, V) or (B, 1, V), true for those; None for none.

    A token is always left: the end symbol where every other would repeat an n-gram.

    Args:
        tokens: (B, N, T), what the beams have written, the start symbol first.
        vocabulary: V.
        prefix: (B,), the token a sentence must continue with, negative where it is free; it goes
            before the other rules.
        no_repeat_ngram: tokens of the n-grams that a beam may write only once; 0 for no such rule.
        min_length: tokens before the end symbol.
    """
    size, early = tokens.size(-1), tokens.size(-1) <= min_length
    banned = None
    if early or 0 < no_repeat_ngram <= size:
        banned = tokens.new_zeros(*tokens.shape[:2], vocabulary, dtype=torch.bool)
        if 0 < no_repeat_ngram <= size:
            banned[_repeating(tokens, no_repeat_ngram)] = True
        banned[:, :, EOS] = False
        if early:
            banned[:, :, EOS] = banned.sum(-1) < vocabulary - 1
    if prefix is not None:
        other = torch.arange(vocabulary, device=tokens.device) != prefix[:, None, None]
        free = other.new_zeros(()) if banned is None else banned
        banned = torch.where((prefix >= 0)[:, None, None], other, free)
    return banned


def _repeating(tokens: Tensor, ngram: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sentence, beam and token, wherever that token would end an n-gram the beam has already."""
    written = tokens.unfold(-1, ngram, 1)  # (B, N, windows, ngram)
    begun = tokens[:, :, tokens.size(-1) - ngram + 1 :]
    found = (written[..., :-1] == begun[:, :, None]).all(-1)
    rows, beams, places = found.nonzero(as_tuple=True)
    return rows, beams, written[rows, beams, places, -1]
