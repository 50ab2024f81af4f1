"""The Transformer (paper, section 3): sub-layers, layers, and the model of Figure 1.

Shapes: B batch, S source, T target, N beams, D model, H heads, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from transformer.kernels.tensors import in_residual_type
from transformer.models.attention import MultiHeadAttention, padding_mask
from transformer.models.cache import LayerCache, TransformerState
from transformer.models.dropout import Dropout
from transformer.models.positions import LearnedPositions, SinusoidalPositions
from transformer.models.seq2seq import Memory, Seq2Seq, initialise

if TYPE_CHECKING:
    from transformer.models.config import TransformerConfig

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"relu": F.relu, "gelu": F.gelu, "swish": F.silu}


class FeedForward(nn.Module):
    """max(0, x W1 + b1) W2 + b2 at every position (equation 2)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.d_model, config.d_ff)
        self.outer = nn.Linear(config.d_ff, config.d_model)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.activation_dropout)
        initialise(self.inner, self.outer)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D) -> (..., D)."""
        return self.outer(self.dropout(self.activation(self.inner(x))))


class ResidualNorm(nn.Module):
    """The sum around every sub-layer: LayerNorm(x + dropout(sublayer(x))) (section 3.1).

    With `norm: pre` it is x + dropout(sublayer(LayerNorm(x))).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = Dropout(config.dropout)
        self.pre = config.norm == "pre"

    def sublayer_input(self, x: Tensor) -> Tensor:
        """Prepares x (B, T, D) for the sub-layer."""
        return self.norm(x) if self.pre else x

    def add_norm(self, x: Tensor, y: Tensor) -> Tensor:
        """Adds the sub-layer's output y (B, T, D) to x; "Add & Norm" of Figure 1."""
        x = self.dropout(y, x)
        return x if self.pre else self.norm(x)


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config)
        self.feed_forward = FeedForward(config)
        self.residuals = nn.ModuleList(ResidualNorm(config) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, S, D); mask: (B, 1, 1, S), True for real tokens."""
        first, second = cast(list[ResidualNorm], self.residuals)
        y, _ = self.self_attention(first.sublayer_input(x), mask=mask)
        x = first.add_norm(x, y)
        return second.add_norm(x, self.feed_forward(second.sublayer_input(x)))


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the memory, then the feed-forward layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(config)
        self.cross_attention = MultiHeadAttention(config)
        self.feed_forward = FeedForward(config)
        self.residuals = nn.ModuleList(ResidualNorm(config) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        memory: Tensor | tuple[Tensor, Tensor],
        memory_mask: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x: (B, T, D), all target steps, each of which sees itself and those before it.

        With a `cache` of those before it is (B, N, D), one step of N beams. `memory` is (B, S, D),
        or the keys and values of it; `memory_mask` (B, 1, 1, S) is True for real source tokens.
        """
        first, second, third = cast(list[ResidualNorm], self.residuals)
        y, _ = self.self_attention(first.sublayer_input(x), causal=cache is None, cache=cache)
        x = first.add_norm(x, y)
        y, _ = self.cross_attention(second.sublayer_input(x), memory, mask=memory_mask)
        x = second.add_norm(x, y)
        return third.add_norm(x, self.feed_forward(third.sublayer_input(x)))


class Embedding(nn.Module):
    """Token embeddings times sqrt(d_model), plus positions (sections 3.4, 3.5)."""

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.d_model)
        if config.tied == "none":
            # Smaller vectors learn faster, as Adam's steps do not depend on the size: perplexity
            # of recipes/multi30k/transformer_small_de_en.yaml was 7.4 after three epochs, else 9.3.
            nn.init.xavier_uniform_(self.tokens.weight)
        else:
            # Also the output projection, whose logits would be too small. After the factor
            # sqrt(d_model) a coordinate has variance 1, as a position's is at most.
            nn.init.normal_(self.tokens.weight, std=config.d_model**-0.5)
        self.positions: nn.Module = (
            SinusoidalPositions(config.d_model)
            if config.positions == "sinusoidal"
            else LearnedPositions(config.max_positions, config.d_model)
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, ids: Tensor, position: int | None = None) -> Tensor:
        """Ids (B, T) -> (B, T, D); they stand at 0..T-1, or as N beams all at one position."""
        start, length = (0, ids.size(1)) if position is None else (position, 1)
        x = self.tokens(ids) * math.sqrt(self.tokens.embedding_dim) + self.positions(start, length)
        return self.dropout(in_residual_type(x))


class Transformer(Seq2Seq):
    """The model of the paper's Figure 1."""

    config: TransformerConfig
    ROWS: ClassVar = {
        "src_embedding.tokens.weight": "src", "tgt_embedding.tokens.weight": "tgt",
        "output.weight": "tgt", "output.bias": "tgt",
    }  # fmt: skip

    def __init__(self, config: TransformerConfig, src_vocab_size: int, tgt_vocab_size: int) -> None:
        super().__init__()
        config.check_vocabularies(src_vocab_size, tgt_vocab_size)
        self.config = config
        self.max_length = config.max_positions if config.positions == "learned" else None
        self.src_embedding = Embedding(config, src_vocab_size)
        self.tgt_embedding = Embedding(config, tgt_vocab_size)
        layers = range(config.num_layers)
        # mypy takes what a ModuleList holds for any Module.
        self.encoder = cast(list[EncoderLayer], nn.ModuleList(EncoderLayer(config) for _ in layers))
        self.decoder = cast(list[DecoderLayer], nn.ModuleList(DecoderLayer(config) for _ in layers))
        # Only pre-norm leaves the last sum of a stack unnormalised.
        pre = config.norm == "pre"
        self.encoder_norm = nn.LayerNorm(config.d_model) if pre else nn.Identity()
        self.decoder_norm = nn.LayerNorm(config.d_model) if pre else nn.Identity()
        self.output = nn.Linear(config.d_model, tgt_vocab_size, config.output_bias)
        initialise(self.output)
        self.tie()

    def tie(self) -> None:
        if self.config.tied == "three_way":
            self.tgt_embedding.tokens.weight = self.src_embedding.tokens.weight
        if self.config.tied != "none":
            self.output.weight = self.tgt_embedding.tokens.weight

    def describe(self) -> str:
        return "A Transformer (Vaswani et al. 2017)"

    def encode(self, src: Tensor, src_lengths: Tensor) -> Memory:
        x = self.src_embedding(src)
        mask = padding_mask(src_lengths, src.size(1))
        for layer in self.encoder:
            x = layer(x, mask)
        return Memory(self.encoder_norm(x), src_lengths, mask)

    def decode(self, tgt_in: Tensor, memory: Memory) -> Tensor:
        x = self.tgt_embedding(tgt_in)
        for layer in self.decoder:
            x = layer(x, memory.hidden, memory.mask)
        return self.decoder_norm(x)

    def start(self, memory: Memory, beams: int = 1) -> TransformerState:
        projected = [layer.cross_attention.project_memory(memory.hidden) for layer in self.decoder]
        return TransformerState(projected, memory.mask, beams)

    def step(self, token: Tensor, state: TransformerState) -> Tensor:
        x = self.tgt_embedding(token, state.position)
        state.advance()
        for layer, cache in zip(self.decoder, state.layers(), strict=True):
            x = layer(x, cache.memory, state.memory_mask, cache)
        return self.decoder_norm(x)
