"""Attention (paper, section 3.2): scores, equation 1, and several heads of it.

Shapes: B batch, H heads, T queries, S keys, K size of a query or key, V size of a value, D model.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.kernels import tensors
from transformer.models.cache import LayerCache
from transformer.models.seq2seq import initialise

if TYPE_CHECKING:
    from transformer.models.config import TransformerConfig


def dot(query: Tensor, key: Tensor) -> Tensor:
    """q · k (Luong et al. 2015): how well T queries and S keys fit, (..., T, K) -> (..., T, S)."""
    return query @ key.mT


def scaled_dot(query: Tensor, key: Tensor) -> Tensor:
    """q · k / sqrt(d_k) (paper, section 3.2.1): as `dot`, but its variance does not grow with K."""
    return query / math.sqrt(query.size(-1)) @ key.mT


def additive(query: Tensor, key: Tensor, v: Tensor) -> Tensor:
    """v^T tanh(q + k) (Bahdanau et al. 2015), of q = W1 s, k = W2 h and a learned v (K,)."""
    return torch.tanh(query[..., :, None, :] + key[..., None, :, :]) @ v


Score = Callable[..., Tensor]
SCORES: dict[str, Score] = {"dot": dot, "scaled_dot": scaled_dot, "additive": additive}
#: Of queries and keys that go through a learned matrix each first, and with a learned vector (K,).
LEARNED = ("additive",)


class Attended(NamedTuple):
    """Values (..., T, V) and, where they were asked for, the attention weights (B, H, T, S)."""

    values: Tensor
    weights: Tensor | None


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score = scaled_dot,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    need_weights: bool = False,
) -> Attended:
    """softmax(score(Q, K)) V; with the default score softmax(Q K^T / sqrt(d_k)) V (equation 1).

    Args:
        query: (B, H, T, K).
        key: (B, H, S, K).
        value: (B, H, S, V).
        score: a function of query and key, which gives (B, H, T, S).
        mask: boolean, broadcastable to (B, H, T, S), True where a query may attend.
        causal: in place of a mask: query t sees the keys 0..t alone (T = S; section 3.2.3).
        dropout: share of the weights that are set to zero.
        need_weights: also return the weights, for which no fused kernel can be used.
    """
    assert mask is None or not causal, "give a mask that hides the future, too"
    fused = score is scaled_dot and not need_weights
    if fused and not tensors.fused_attention_is_slow(query, dropout):
        values = F.scaled_dot_product_attention(query, key, value, mask, dropout, causal)
        return Attended(values, None)
    if causal:
        mask = causal_mask(query.size(-2), query.device)
    scores_BHTS = score(query, key)
    if mask is not None:
        scores_BHTS = torch.where(mask, scores_BHTS, -math.inf)
    weights_BHTS = tensors.dropout(scores_BHTS.softmax(-1), dropout)
    return Attended(weights_BHTS @ value, weights_BHTS)


def padding_mask(lengths: Tensor, size: int) -> Tensor:
    """Masks padding: (B, 1, 1, size), True at the first `lengths` (B,) tokens of each sentence."""
    return torch.arange(size, device=lengths.device) < lengths[:, None, None, None]


def causal_mask(size: int, device: torch.device) -> Tensor:
    """Masks the future (paper, section 3.2.3): (size, size), True where key s <= query t."""
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


class MultiHeadAttention(nn.Module):
    """Concat(head_1, ..., head_h) W^O, with attention of its own in each head (section 3.2.2)."""

    def __init__(self, config: "TransformerConfig") -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.key_size = config.num_heads * (config.d_k or config.d_model // config.num_heads)
        self.sizes = [self.key_size, self.key_size, config.d_model]  # of query, key and value
        # W^Q, W^K and W^V of all heads in one matrix: self-attention needs a single product.
        self.input_projection = nn.Linear(config.d_model, sum(self.sizes))
        self.output_projection = nn.Linear(config.d_model, config.d_model)
        initialise(self.input_projection, self.output_projection)

    def forward(
        self,
        query_input: Tensor,
        memory: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: LayerCache | None = None,
        need_weights: bool = False,
    ) -> Attended:
        """Self-attention or, with a memory, cross-attention: values (B, T, D) and weights.

        Queries are made of `query_input` (B, T, D), keys and values of `memory` (B, S, D), unless
        it is both already, as `project_memory` makes them. A `cache` of self-attention has keys and
        values of the steps before, and a mask. The rest is as for `attention`.
        """
        if memory is None:
            projected = self.input_projection(query_input)
            query, key, value = map(self._heads, projected.split(self.sizes, -1))
            if cache is not None:
                key, value, mask = cache.append(key, value)
        else:
            query = self._heads(self._project(query_input, slice(None, self.key_size)))
            key, value = self.project_memory(memory) if isinstance(memory, Tensor) else memory
        values, weights = attention(
            query, key, value, mask=mask, causal=causal,
            dropout=self.dropout if self.training else 0.0, need_weights=need_weights,
        )  # fmt: skip
        return Attended(self.output_projection(values.transpose(1, 2).flatten(2)), weights)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, K) of memory (B, S, D)."""
        projected = self._project(memory, slice(self.key_size, None))
        key, value = map(self._heads, projected.split(self.sizes[1:], -1))
        return key, value

    def _project(self, x: Tensor, rows: slice) -> Tensor:
        """The product of x with some rows of the input projection alone."""
        return F.linear(x, self.input_projection.weight[rows], self.input_projection.bias[rows])

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, H * K) -> (B, H, T, K)."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
