"""The Transformer (paper, section 3): layers, stacks and the model, with a cache for decoding.

Shapes: B batch, S source, T target, N beams, D model, H heads, K head size, V vocabulary,
L layers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.errors import UserError
from transformer.kernels.tensors import in_residual_type
from transformer.models.attention import MultiHeadAttention, causal_mask, padding_mask
from transformer.models.cache import LayerCache, TransformerState
from transformer.models.dropout import Dropout
from transformer.models.positions import LearnedPositions, SinusoidalPositions
from transformer.models.seq2seq import Memory, Seq2Seq

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "gelu": F.gelu, "swish": F.silu}


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a Transformer. The defaults are the paper's base model (Table 3).

    Args:
        d_model: size of the hidden states.
        d_ff: inner size of the feed-forward layers.
        num_heads: attention heads; they must divide d_model.
        num_layers: layers of the encoder, and as many of the decoder.
        dropout: on embeddings and on the output of every sub-layer (section 5.4).
        activation_dropout: inside of the feed-forward layers, after the activation; like the next
            one not in the paper, but in its code (tensor2tensor).
        attention_dropout: on the attention weights.
        d_k: size of a head's queries and keys; d_model / num_heads when left out (Table 3, row B).
        activation: of the feed-forward layers.
        norm: `post` normalises after each residual sum, as in the paper; `pre` before each
            sub-layer.
        positions: `sinusoidal` (section 3.5) or `learned` (Table 3, row E).
        max_positions: longest sequence, in tokens, that learned positions can serve.
        tied: `three_way`: source embedding, target embedding and output projection are one
            matrix (section 3.4); `two_way`: the last two are; `none`.
    """

    d_model: int = 512
    d_ff: int = 2048
    num_heads: int = 8
    num_layers: int = 6
    dropout: float = 0.1
    activation_dropout: float = 0.0
    attention_dropout: float = 0.0
    d_k: int | None = None
    activation: Literal["relu", "gelu", "swish"] = "relu"
    norm: Literal["post", "pre"] = "post"
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    max_positions: int = 1024
    tied: Literal["three_way", "two_way", "none"] = "three_way"

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("d_model", "d_ff", "num_heads", "num_layers") and value < 1:
                raise UserError(f"model.network.{name} is {value}: it must be 1 or more")
            if name.endswith("dropout") and not 0 <= value < 1:
                raise UserError(f"model.network.{name} is {value}: it must be in [0, 1)")
        if self.d_model % self.num_heads:
            raise UserError(
                f"model.network.d_model {self.d_model} is not divisible by "
                f"model.network.num_heads {self.num_heads}: choose a multiple, such as "
                f"{math.ceil(self.d_model / self.num_heads) * self.num_heads}"
            )

    def attention(self) -> MultiHeadAttention:
        """A freshly initialised attention layer of this shape."""
        return MultiHeadAttention(self.d_model, self.num_heads, self.d_k, self.attention_dropout)

    def build(self, src_vocab_size: int, tgt_vocab_size: int) -> "Transformer":
        """A freshly initialised model of this shape."""
        return Transformer(self, src_vocab_size, tgt_vocab_size)


PRESETS = {
    # Wu et al. 2021, for corpora of the size of Multi30k
    "tiny": TransformerConfig(d_model=128, d_ff=256, num_heads=4, num_layers=4, dropout=0.3),
    "base": TransformerConfig(),
    "big": TransformerConfig(d_model=1024, d_ff=4096, num_heads=16, dropout=0.3),
}


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
        """Adds what the sub-layer made, y (B, T, D), to x; "Add & Norm" of Figure 1."""
        x = self.dropout(y, x)
        return x if self.pre else self.norm(x)


class FeedForward(nn.Module):
    """max(0, x W1 + b1) W2 + b2 at every position (equation 2)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.inner = nn.Linear(config.d_model, config.d_ff)
        self.outer = nn.Linear(config.d_ff, config.d_model)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.activation_dropout)
        for linear in (self.inner, self.outer):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D) -> (..., D)."""
        return self.outer(self.dropout(self.activation(self.inner(x))))


class EncoderLayer(nn.Module):
    """Self-attention, then the feed-forward layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = config.attention()
        self.feed_forward = FeedForward(config)
        self.residuals = nn.ModuleList(ResidualNorm(config) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, S, D); mask: (B, 1, 1, S), True for real tokens."""
        first, second = cast(list[ResidualNorm], self.residuals)
        y, _ = self.attention(first.sublayer_input(x), mask=mask)
        x = first.add_norm(x, y)
        return second.add_norm(x, self.feed_forward(second.sublayer_input(x)))


class DecoderLayer(nn.Module):
    """Masked self-attention, attention to the memory, then the feed-forward layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = config.attention()
        self.cross_attention = config.attention()
        self.feed_forward = FeedForward(config)
        self.residuals = nn.ModuleList(ResidualNorm(config) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        memory: Tensor | tuple[Tensor, Tensor],
        *,
        mask: Tensor | None,
        memory_mask: Tensor | None,
        cache: LayerCache | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """All target steps at once or, with a cache, one step of N beams side by side.

        Args:
            x: (B, T, D), or (B, N, D).
            memory: (B, S, D), or the keys and values that `cross_attention` makes of it.
            mask: what a step or a beam may attend to: `causal_mask`, or that of the cache.
            memory_mask: (B, 1, 1, S), True for real source tokens.
            cache: keys and values of the steps before.
            need_weights: also return the weights of cross-attention.

        Returns:
            x, and weights (B, H, T, S) or None.
        """
        first, second, third = cast(list[ResidualNorm], self.residuals)
        y, _ = self.attention(first.sublayer_input(x), mask=mask, causal=cache is None, cache=cache)
        x = first.add_norm(x, y)
        y, weights = self.cross_attention(
            second.sublayer_input(x), memory, mask=memory_mask, need_weights=need_weights
        )
        x = second.add_norm(x, y)
        return third.add_norm(x, self.feed_forward(third.sublayer_input(x))), weights


class Embedding(nn.Module):
    """Token embeddings times sqrt(d_model), plus positions (sections 3.4, 3.5)."""

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.d_model)
        if config.tied == "none":
            # As all other matrices. Smaller vectors learn faster, since Adam's steps do not depend
            # on the size: in recipes/multi30k/transformer_small_de_en.yaml validation perplexity
            # after three epochs was 7.4, with the other values 9.3.
            nn.init.xavier_uniform_(self.tokens.weight)
        else:
            # Also the output projection, whose logits would be too small. After the factor
            # sqrt(d_model) a coordinate has variance 1, as a position's is at most.
            nn.init.normal_(self.tokens.weight, std=config.d_model**-0.5)
        self.scale = math.sqrt(config.d_model)
        self.positions: nn.Module = (
            SinusoidalPositions(config.d_model)
            if config.positions == "sinusoidal"
            else LearnedPositions(config.max_positions, config.d_model)
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, ids: Tensor, position: int | None = None) -> Tensor:
        """Ids (B, T) -> (B, T, D); they stand at 0..T-1, or as N beams all at one position."""
        start, length = (0, ids.size(1)) if position is None else (position, 1)
        x = self.tokens(ids) * self.scale + self.positions(start, length)
        return self.dropout(in_residual_type(x))


class Transformer(Seq2Seq):
    """The model of the paper's Figure 1.

    Args:
        config: its shape.
        src_vocab_size: number of source tokens.
        tgt_vocab_size: number of target tokens; with `tied: three_way` the same vocabulary.

    Raises:
        ValueError: when three-way tying is asked of two vocabularies of different sizes.
    """

    config: TransformerConfig
    ROWS: ClassVar = {
        "src_embedding.tokens.weight": "src",
        "tgt_embedding.tokens.weight": "tgt",
        "output.weight": "tgt",
    }

    def __init__(self, config: TransformerConfig, src_vocab_size: int, tgt_vocab_size: int) -> None:
        super().__init__()
        self.config = config
        if config.positions == "learned":
            self.max_length = config.max_positions
        if config.tied == "three_way" and src_vocab_size != tgt_vocab_size:
            raise UserError(
                f"model.network.tied three_way needs one vocabulary, but the source has "
                f"{src_vocab_size} tokens and the target {tgt_vocab_size}: "
                "set data.tokenizer.shared: true, or model.network.tied: two_way"
            )
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
        self.output = nn.Linear(config.d_model, tgt_vocab_size, bias=False)
        nn.init.xavier_uniform_(self.output.weight)
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

    def forward(self, src: Tensor, src_lengths: Tensor, tgt_in: Tensor) -> Tensor:
        return self._decode(tgt_in, self.encode(src, src_lengths))[0]

    def cross_attention(self, src: Tensor, src_lengths: Tensor, tgt_in: Tensor) -> Tensor:
        memory = self.encode(src, src_lengths)
        return torch.stack(self._decode(tgt_in, memory, need_weights=True)[1], 1)

    def _decode(
        self, tgt_in: Tensor, memory: Memory, need_weights: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """All target steps at once: hidden states (B, T, D), cross-attention of each layer."""
        x = self.tgt_embedding(tgt_in)
        mask = causal_mask(tgt_in.size(1), x.device)
        weights = []
        for layer in self.decoder:
            x, layer_weights = layer(
                x, memory.hidden, mask=mask, memory_mask=memory.mask, need_weights=need_weights
            )
            weights.append(layer_weights)
        return self.decoder_norm(x), weights

    def project(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)

    def start(self, memory: Memory, beams: int = 1) -> TransformerState:
        projected = [layer.cross_attention.project_memory(memory.hidden) for layer in self.decoder]
        return TransformerState(projected, memory.mask, beams)

    def step(self, token: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        x = self.tgt_embedding(token, state.position)
        state.advance()
        for layer, cache in zip(self.decoder, state.layers(), strict=True):
            x, _ = layer(
                x, cache.memory, mask=state.mask, memory_mask=state.memory_mask, cache=cache
            )
        return self.decoder_norm(x), state
