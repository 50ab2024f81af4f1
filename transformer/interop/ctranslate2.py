"""A bundle's model as one of CTranslate2, for `transformer export ctranslate2` and the engine.

CTranslate2 can be every Transformer here, except one whose heads have a size of their own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from transformer.bundle import Bundle
from transformer.data.tokenizer import BOS, EOS, UNK, Side, Tokenizer
from transformer.errors import UserError
from transformer.interop import needs
from transformer.models import Seq2Seq, Transformer
from transformer.models.positions import LearnedPositions, sinusoidal
from transformer.models.transformer import Embedding

EXTRA = "ctranslate2"
POSITIONS = 2048  # sinusoids that a model holds, in tokens, or twice as many as its longest line
ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "swish": "SWISH"}


class Names:
    """Tokens as CTranslate2 names them, and their ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        sides: tuple[Side, Side] = ("src", "tgt")
        self.vocabulary = {side: _entries(tokenizer.side(side)) for side in sides}
        self.id = {name: id_ for id_, name in enumerate(self.vocabulary["tgt"])}

    def of(self, side: Side, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        """The names of ids."""
        names = self.vocabulary[side]
        return [[names[id_] for id_ in row] for row in rows]

    def ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of target tokens."""
        return [self.id[token] for token in tokens]


def _entries(vocabulary: Any) -> list[str]:
    return [vocabulary.entry(id_) or f"<unused {id_}>" for id_ in range(vocabulary.size)]


def write_model(bundle: Bundle, folder: Path, quantization: str | None = None) -> None:
    """Writes the files that CTranslate2 loads into a folder, which may exist.

    Raises:
        UserError: If CTranslate2 is not installed, or cannot be this model.
    """
    spec = specification(bundle.model, count_positions(bundle))
    names = Names(bundle.tokenizer).vocabulary
    spec.register_source_vocabulary(names["src"])
    spec.register_target_vocabulary(names["tgt"])
    config = spec.config
    config.bos_token = config.decoder_start_token = names["tgt"][BOS]
    config.eos_token, config.unk_token = names["tgt"][EOS], names["tgt"][UNK]
    spec.validate()
    spec.optimize(quantization)
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))


def count_positions(bundle: Bundle) -> int:
    """Tokens of the longest sequence that the model of CTranslate2 can read or write."""
    return bundle.model.max_length or max(POSITIONS, 2 * bundle.config["max_length"])


def specification(model: Seq2Seq, positions: int) -> Any:
    """A model as CTranslate2's specification, without its vocabularies.

    Raises:
        UserError: If CTranslate2 is not installed, or cannot be this model.
    """
    specs = needs("ctranslate2.specs", EXTRA)
    if not isinstance(model, Transformer):
        raise UserError("CTranslate2 has no recurrent models: translate it with engine torch")
    config = model.config
    if config.d_k not in (None, config.d_model // config.num_heads):
        raise UserError(
            f"network.d_k is {config.d_k}, in CTranslate2 it is d_model / num_heads, here "
            f"{config.d_model // config.num_heads}: translate it with engine torch"
        )
    spec = specs.TransformerSpec.from_config(
        config.num_layers, config.num_heads, pre_norm=config.norm == "pre",
        activation=specs.Activation[ACTIVATIONS[config.activation]],
    )  # fmt: skip
    _fill_embedding(spec.encoder, spec.encoder.embeddings[0], model.src_embedding, positions)
    _fill_embedding(spec.decoder, spec.decoder.embeddings, model.tgt_embedding, positions)
    for theirs, encoder_layer in zip(spec.encoder.layer, model.encoder, strict=True):
        _fill_layer(theirs, encoder_layer)
    for theirs, decoder_layer in zip(spec.decoder.layer, model.decoder, strict=True):
        _fill_layer(theirs, decoder_layer)
        _fill_cross_attention(theirs.attention.linear, decoder_layer.cross_attention)
    if config.norm == "pre":
        _fill_norm(spec.encoder.layer_norm, model.encoder_norm)
        _fill_norm(spec.decoder.layer_norm, model.decoder_norm)
    _fill_linear(spec.decoder.projection, model.output)
    return spec


def _fill_embedding(stack: Any, theirs: Any, ours: Embedding, positions: int) -> None:
    theirs.weight = _array(ours.tokens.weight)
    table = sinusoidal(positions, ours.tokens.embedding_dim)
    if isinstance(ours.positions, LearnedPositions):
        table = ours.positions.table
    stack.position_encodings.encodings = _array(table)


def _fill_layer(theirs: Any, ours: Any) -> None:
    """What layers of encoder and decoder have in common, and all normalisations."""
    _fill_linear(theirs.self_attention.linear[0], ours.self_attention.input_projection)
    _fill_linear(theirs.self_attention.linear[1], ours.self_attention.output_projection)
    _fill_linear(theirs.ffn.linear_0, ours.feed_forward.inner)
    _fill_linear(theirs.ffn.linear_1, ours.feed_forward.outer)
    cross = [theirs.attention] if hasattr(theirs, "attention") else []
    sublayers = [theirs.self_attention, *cross, theirs.ffn]
    for sublayer, residual in zip(sublayers, ours.residuals, strict=True):
        _fill_norm(sublayer.layer_norm, residual.norm)


def _fill_cross_attention(theirs: list[Any], ours: Any) -> None:
    """Queries have a matrix of their own there."""
    size = ours.output_projection.in_features
    _fill_linear(theirs[0], ours.input_projection, slice(size))
    _fill_linear(theirs[1], ours.input_projection, slice(size, None))
    _fill_linear(theirs[2], ours.output_projection)


def _fill_linear(theirs: Any, ours: nn.Linear, rows: slice = slice(None)) -> None:
    theirs.weight = _array(ours.weight[rows])
    if ours.bias is not None:
        theirs.bias = _array(ours.bias[rows])


def _fill_norm(theirs: Any, ours: Any) -> None:
    theirs.gamma, theirs.beta = _array(ours.weight), _array(ours.bias)


def _array(tensor: Tensor) -> Any:
    """A copy as NumPy's array: quantization writes into it."""
    return tensor.detach().float().cpu().numpy().copy()
