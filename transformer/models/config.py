"""The settings of the models: their shapes, checked before anything is built."""

from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, get_args, get_origin, get_type_hints

from transformer.errors import UserError, nearest
from transformer.models.attention import SCORES
from transformer.models.rnn import RNN
from transformer.models.transformer import Transformer

#: The largest sizes: what is beyond them is a slip, and would take all memory before it fails.
SIZES = {
    "d_model": 1 << 16, "d_ff": 1 << 18, "num_heads": 1 << 10, "num_layers": 1000, "d_k": 1 << 16,
    "max_positions": 1 << 20,
}  # fmt: skip


def _check(config: Any) -> None:
    """Refuses impossible sizes, shares outside of [0, 1), and words that are no choices."""
    hints = get_type_hints(type(config))
    for name, value in vars(config).items():
        if name in SIZES and value is not None and not 1 <= value <= SIZES[name]:
            bound = "1 or more" if value < 1 else f"{SIZES[name]:,} or less"
            raise UserError(f"model.network.{name} is {value}: it must be {bound}")
        if name.endswith("dropout") and not 0 <= value < 1:
            raise UserError(f"model.network.{name} is {value}: it must be in [0, 1)")
        choices = get_args(hints[name]) if get_origin(hints[name]) is Literal else ()
        if name == "attention":  # whoever adds a score adds no type
            choices = ("none", *SCORES)
        if choices and value not in choices:
            raise UserError(
                f"model.network.{name} is {value!r}: it must be one of "
                f"{', '.join(choices)}{nearest(str(value), choices)}"
            )


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
        output_bias: add a learned bias to the logits; not in the paper, but in Marian's models.
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
    output_bias: bool = False

    def __post_init__(self) -> None:
        _check(self)
        if self.d_model % self.num_heads:
            raise UserError(
                f"model.network.d_model {self.d_model} is not divisible by "
                f"model.network.num_heads {self.num_heads}: choose a multiple, such as "
                f"{ceil(self.d_model / self.num_heads) * self.num_heads}"
            )

    def check_vocabularies(self, src_vocab_size: int, tgt_vocab_size: int) -> None:
        """Refuses three-way tying of two vocabularies of different sizes."""
        if self.tied == "three_way" and src_vocab_size != tgt_vocab_size:
            raise UserError(
                f"model.network.tied three_way needs one vocabulary, but the source has "
                f"{src_vocab_size} tokens and the target {tgt_vocab_size}: "
                "set data.tokenizer.shared: true, or model.network.tied: two_way"
            )

    def build(self, src_vocab_size: int, tgt_vocab_size: int) -> Transformer:
        """A freshly initialised model of this shape."""
        return Transformer(self, src_vocab_size, tgt_vocab_size)


@dataclass(frozen=True)
class RNNConfig:
    """The shape of a recurrent encoder–decoder.

    Args:
        d_model: size of embeddings and hidden states; each direction of the encoder has half.
        num_layers: layers of the bidirectional encoder, and as many of the decoder.
        dropout: on embeddings, between layers, and on what the next token is predicted from.
        cell: `gru` (Cho et al. 2014) or `lstm` (Hochreiter and Schmidhuber 1997).
        attention: `none`, or the score: `dot` (Luong et al. 2015), `scaled_dot` (divided by
            sqrt(d_model)), `additive` (Bahdanau et al. 2015).
        input_feeding: let the decoder also read what its last token was predicted from (Luong et
            al. 2015, section 3.3); its steps cannot be computed at once then.
    """

    d_model: int = 256
    num_layers: int = 1
    dropout: float = 0.1
    cell: Literal["gru", "lstm"] = "gru"
    attention: str = "additive"
    input_feeding: bool = False

    def __post_init__(self) -> None:
        _check(self)
        if self.d_model % 2:
            raise UserError(
                f"model.network.d_model is {self.d_model}: it must be even, since each direction "
                "of the encoder has half of it"
            )

    def build(self, src_vocab_size: int, tgt_vocab_size: int) -> RNN:
        """A freshly initialised model of this shape."""
        return RNN(self, src_vocab_size, tgt_vocab_size)
