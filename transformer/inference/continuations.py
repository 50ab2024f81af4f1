"""Which tokens may come next: the best ones of a beam search, or ones drawn at random.

Shapes: B sentences still open, N beams, V vocabulary, C candidates.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NEVER = float("-inf")


class Candidates(NamedTuple):
    """Continuations, best first: total log-probability, parent beam and token, each (B, C)."""

    scores: Tensor
    parents: Tensor
    tokens: Tensor


Continuations = Callable[[Tensor, Tensor, Tensor | None], Candidates]


def best_continuations(scores: Tensor, logits: Tensor, prefix: Tensor | None) -> Candidates:
    """The 2 N best continuations of all beams: enough for N that do not end.

    Args:
        scores: (B, N), log-probabilities of the beams.
        logits: (B, N, V), of the next token; they are used up.
        prefix: (B,), the token a sentence must continue with, negative where it is free.
    """
    beams = scores.size(1)
    open_logits = logits if prefix is None else _forced(logits, prefix)
    values, tokens = open_logits.topk(min(2 * beams, logits.size(-1)), -1)
    # Normalising is a constant for a beam: subtract it from the few that the beam may win with.
    values = values + (scores - _logsumexp_(logits))[:, :, None]
    best, index = values.flatten(1).topk(min(2 * beams, values[0].numel()), -1)
    return Candidates(best, index // values.size(-1), tokens.flatten(1).gather(1, index))


def _logsumexp_(logits: Tensor) -> Tensor:
    """Log of the sum of exp over the last dimension, in place of the logits.

    `torch.logsumexp` writes to fresh memory, which for 10,000 logits a beam takes twice as long as
    computing them.
    """
    top = logits.amax(-1, keepdim=True)
    return logits.sub_(top).exp_().sum(-1).log_() + top.squeeze(-1)


def sampled_continuations(
    temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Continuations:
    """A function like `best_continuations` that draws one token for every beam."""

    def sample(scores: Tensor, logits: Tensor, prefix: Tensor | None) -> Candidates:
        log_probs = logits.log_softmax(-1)
        if prefix is not None:
            logits = _forced(logits, prefix)
        probabilities = _truncated(logits / temperature, top_k, top_p).softmax(-1)
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


def _forced(logits: Tensor, prefix: Tensor) -> Tensor:
    """Logits with all tokens but the prefix' set to -inf in the sentences that have one."""
    other = torch.arange(logits.size(-1), device=logits.device) != prefix[:, None, None]
    return logits.masked_fill(other & (prefix >= 0)[:, None, None], NEVER)
