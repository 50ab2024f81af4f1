"""Which tokens may come next: the best ones of a beam search, or ones drawn at random.

Shapes: B sentences still open, N beams, V vocabulary, C candidates.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NEVER = float("-inf")
GROUP = 100  # tokens whose maximum is looked at first


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
    # In place: what is written to fresh memory takes longer than to compute it.
    log_probs = torch.log_softmax(logits, -1, out=logits)
    if prefix is not None:
        log_probs = _forced(log_probs, prefix)
    vocabulary = log_probs.size(-1)
    count = min(2 * scores.size(1), log_probs[0].numel())
    totals, places = _promising(scores, log_probs, count)
    best, index = totals.topk(count, -1)
    places = places.gather(1, index)
    return Candidates(best, places // vocabulary, places % vocabulary)


def _promising(scores: Tensor, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Some totals (B, C) that include the `count` best of all N * V, and their places among all.

    The best lie in the `count` groups of tokens with the highest maxima. To look for those takes
    a tenth of the time of `topk` over 10,000 logits, which took as long as computing them.
    """
    batch, beams, vocabulary = log_probs.shape
    groups = vocabulary // GROUP
    grouped = groups * GROUP if beams * groups > count else 0
    starts = torch.arange(0, beams * vocabulary, vocabulary, device=scores.device)
    rest = torch.arange(grouped, vocabulary, device=scores.device)
    places = [(starts[:, None] + rest).flatten().expand(batch, -1)]
    totals = [(log_probs[:, :, grouped:] + scores[:, :, None]).flatten(1)]
    if grouped:
        maxima = log_probs[:, :, :grouped].unflatten(-1, (groups, GROUP)).amax(-1)
        chosen = (maxima + scores[:, :, None]).flatten(1).topk(count, -1, sorted=False).indices
        parents = chosen // groups
        firsts = starts[parents] + chosen % groups * GROUP
        inside = firsts[:, :, None] + torch.arange(GROUP, device=scores.device)
        found = log_probs.flatten(1).gather(1, inside.flatten(1)).view_as(inside)
        places.append(inside.flatten(1))
        totals.append((found + scores.gather(1, parents)[:, :, None]).flatten(1))
    return torch.cat(totals, 1), torch.cat(places, 1)


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
