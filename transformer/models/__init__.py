"""The models, from the ground up: attention, positions, the RNN, the Transformer."""

from transformer.models.config import RNNConfig, TransformerConfig
from transformer.models.rnn import RNN
from transformer.models.seq2seq import Memory, ModelConfig, Seq2Seq, State
from transformer.models.transformer import Transformer

#: The shapes by the name under which recipes and bundles have them.
ARCHITECTURES: dict[str, type[TransformerConfig] | type[RNNConfig]] = {
    "transformer": TransformerConfig,
    "rnn": RNNConfig,
}


def architecture_of(shape: ModelConfig) -> str:
    """The name of a shape's architecture."""
    return next(name for name, type_ in ARCHITECTURES.items() if isinstance(shape, type_))


__all__ = [
    "ARCHITECTURES",
    "RNN",
    "Memory",
    "ModelConfig",
    "RNNConfig",
    "Seq2Seq",
    "State",
    "Transformer",
    "TransformerConfig",
    "architecture_of",
]
