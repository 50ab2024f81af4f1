"""Attention (paper, section 3.2): the scores, one function, and the multi-head layer around it.

Shapes: B batch, H heads, T queries, S keys, K size of a query or key, V size of a value,
D model.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 8  # queries; see _fused_is_slow


def dot(query: Tensor, key: Tensor) -> Tensor:
    """q · k (Luong et al. 2015): how well T queries and S keys fit, (..., T, K) -> (..., T, S)."""
    return query @ key.mT


def scaled_dot(query: Tensor, key: Tensor) -> Tensor:
    """q · k / sqrt(d_k) (paper, section 3.2.1): as `dot`, but its variance does not grow with K."""
    return query / math.sqrt(query.size(-1)) @ key.mT


def additive(query: Tensor, key: Tensor, v: Tensor) -> Tensor:
    """v^T tanh(q + k) (Bahdanau et al. 2015), where q = W1 s and k = W2 h are projected already.

    Args:
        query: (..., T, K).
        key: (..., S, K).
        v: (K,), learned.

    Returns:
        Scores (..., T, S).
    """
    return torch.tanh(query[..., :, None, :] + key[..., None, :, :]) @ v


class Score(NamedTuple):
    """A score function and what is learned with it.

    Args:
        function: (query, key) -> scores; with `vector` it takes v (K,) as its third argument.
        projects: whether queries and keys go through a learned matrix each before they meet.
        vector: whether it has a learned vector.
    """

    function: Callable[..., Tensor]
    projects: bool = False
    vector: bool = False


SCORES = {
    "dot": Score(dot),
    "scaled_dot": Score(scaled_dot),
    "additive": Score(additive, projects=True, vector=True),
}


class Attended(NamedTuple):
    """What attention returns: the values (B, H, T, V) and, where asked for, the weights."""

    values: Tensor
    weights: Tensor | None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Callable[[Tensor, Tensor], Tensor] = scaled_dot,
    lengths: Tensor | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    need_weights: bool = False,
) -> Attended:
    """softmax(score(Q, K)) V; with the default score softmax(Q K^T / sqrt(d_k)) V (equation 1).

    The only place that decides whether a mask has to be written out and which kernel runs.

    Args:
        query: (B, H, T, K).
        key: (B, H, S, K).
        value: (B, H, S, V).
        score: how well queries and keys fit: (B, H, T, K), (B, H, S, K) -> (B, H, T, S).
        lengths: (B,), how many of the S keys are real; all when left out. With `causal` they
            change nothing for real queries, since padding stands at the end, so leave them out.
        causal: query t sees the keys 0..t only; T and S must be equal.
        mask: boolean, broadcastable to (B, H, T, S), True where a query may attend.
        need_weights: also return the attention weights (B, H, T, S), for which the fused kernel
            cannot be used.
    """
    mask = _written_mask(key.size(-2), lengths, mask)
    if not (need_weights or score is not scaled_dot or _fused_is_slow(query)):
        # The fused kernel has no room for both: `is_causal` is a mask of its own.
        if causal and mask is not None:
            mask, causal = mask & _causal_mask(query), False
        values = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
        return Attended(values, None)
    if causal:
        mask = _causal_mask(query) if mask is None else mask & _causal_mask(query)
    scores_BHTS = score(query, key)
    if mask is not None:
        scores_BHTS = torch.where(mask, scores_BHTS, -math.inf)
    weights_BHTS = scores_BHTS.softmax(-1)
    return Attended(weights_BHTS @ value, weights_BHTS)


def _fused_is_slow(query: Tensor) -> bool:
    """Whether softmax written out takes less time than the fused kernel.

    Training in bfloat16, forward and backward of 132 sentences with 31 tokens and 8 heads of 64 on
    two AMX cores: fused 54 ms, fused in float32 22 ms, written out 16 ms (in float32 21 ms against
    19 ms fused). A decoding step in float32 on one core, 64 sentences with 5 beams and 4 heads of
    32: with 60 keys fused 0.80 ms, written out 0.46 ms; with 16 keys 0.17 ms and 0.12 ms.
    """
    if not query.is_cpu:
        return False
    if query.requires_grad:
        return query.dtype == torch.bfloat16
    return query.dtype == torch.float32 and query.size(-2) <= FEW


def _written_mask(size: int, lengths: Tensor | None, mask: Tensor | None) -> Tensor | None:
    if lengths is None:
        return mask
    real = torch.arange(size, device=lengths.device) < lengths[:, None, None, None]
    return real if mask is None else mask & real


def _causal_mask(query: Tensor) -> Tensor:
    size = query.size(-2)
    return torch.ones(size, size, dtype=torch.bool, device=query.device).tril()


class MultiHeadAttention(nn.Module):
    """Multi-head attention (paper, section 3.2.2): `num_heads` attentions side by side.

    Args:
        d_model: size of the vectors that come in and go out.
        num_heads: number of heads; each has d_model / num_heads values.
        d_k: size of a head's queries and keys; d_model / num_heads when left out.
    """

    def __init__(self, d_model: int, num_heads: int, d_k: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.key_size = num_heads * (d_k or d_model // num_heads)
        # One matrix for queries, keys and values: self-attention needs a single product.
        self.in_proj = nn.Linear(d_model, 2 * self.key_size + d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def project_all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, T, K), of the same vectors x (B, T, D)."""
        sizes = [self.key_size, self.key_size, x.size(-1)]
        query, key, value = self.in_proj(x).split(sizes, -1)
        return self._heads(query), self._heads(key), self._heads(value)

    def project_query(self, x: Tensor) -> Tensor:
        """Queries (B, H, T, K) of x (B, T, D)."""
        weight, bias = self.in_proj.weight, self.in_proj.bias
        return self._heads(F.linear(x, weight[: self.key_size], bias[: self.key_size]))

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, K) of memory (B, S, D)."""
        weight, bias = self.in_proj.weight, self.in_proj.bias
        both = F.linear(memory, weight[self.key_size :], bias[self.key_size :])
        key, value = both.split([self.key_size, memory.size(-1)], -1)
        return self._heads(key), self._heads(value)

    def merge(self, values: Tensor) -> Tensor:
        """Concatenate the heads' values (B, H, T, V) and project them: (B, T, D)."""
        return self.out_proj(values.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
