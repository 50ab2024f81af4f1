"""The models, from the ground up: attention, positions, the Transformer."""

from transformer.models.seq2seq import Memory, Seq2Seq, State
from transformer.models.transformer import PRESETS, Transformer, TransformerConfig

# By the name under which a bundle stores them.
ARCHITECTURES = {"transformer": TransformerConfig}

__all__ = [
    "ARCHITECTURES",
    "PRESETS",
    "Memory",
    "Seq2Seq",
    "State",
    "Transformer",
    "TransformerConfig",
]
