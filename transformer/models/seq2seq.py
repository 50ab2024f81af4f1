"""What every sequence-to-sequence model here promises.

One training loop, one search and one bundle serve every model that keeps the promise.

Shapes: B batch, S source, T target, N beams, D model, V vocabulary, L layers, H heads.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from transformer.models.recording import recorded


def initialise(*layers: nn.Linear) -> None:
    """Draws Xavier's uniform weights (Glorot and Bengio 2010), and sets biases to zero."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class Memory(NamedTuple):
    """The encoder's output.

    hidden: (B, S, D). lengths: (B,), source tokens. mask: (B, 1, 1, S), True for real tokens.
    """

    hidden: Tensor
    lengths: Tensor
    mask: Tensor


class ModelConfig(Protocol):
    """The settings of a model: a frozen dataclass, one for each entry of `ARCHITECTURES`."""

    @property
    def d_model(self) -> int:
        """Size of the hidden states."""

    def build(self, src_vocab_size: int, tgt_vocab_size: int) -> "Seq2Seq":
        """A freshly initialised model of this shape."""


class State(Protocol):
    """Where decoding stands, for B sentences with N beams each. It is passed from step to step."""

    def reorder(self, beams: Tensor) -> None:
        """Let beam n of sentence b go on from what was beam `beams[b, n]`; beams: (B, N)."""

    def keep(self, sentences: Tensor) -> None:
        """Drop all sentences but these; sentences: (B',), indices into the batch."""


class Seq2Seq(nn.Module, ABC):
    """A model from source tokens to target tokens. Padding stands at the end of a sequence."""

    config: Any
    output: nn.Linear
    #: Parameters that have a row for each token, by name, and whether of the source or the target;
    #: not every configuration has them all.
    ROWS: ClassVar[dict[str, Literal["src", "tgt"]]]
    #: Longest sequence that the model can read or write, in tokens; None for any length.
    max_length: int | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes, and takes its ids."""
        return next(self.parameters()).device

    @abstractmethod
    def describe(self) -> str:
        """What it is, as the beginning of a sentence."""

    @abstractmethod
    def encode(self, src: Tensor, src_lengths: Tensor) -> Memory:
        """Read the source: token ids (B, S) with lengths (B,)."""

    @abstractmethod
    def decode(self, tgt_in: Tensor, memory: Memory) -> Tensor:
        """All target steps: hidden states (B, T, D).

        Args:
            tgt_in: (B, T) token ids, beginning with the start symbol.
            memory: as `encode` makes it.
        """

    def forward(self, src: Tensor, src_lengths: Tensor, tgt_in: Tensor) -> Tensor:
        """Hidden states (B, T, D), each of which predicts the token after its own.

        Args:
            src: (B, S) token ids.
            src_lengths: (B,), tokens.
            tgt_in: (B, T) token ids, beginning with the start symbol.
        """
        return self.decode(tgt_in, self.encode(src, src_lengths))

    def project(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) over the target vocabulary for any hidden states (..., D)."""
        return self.output(hidden)

    @abstractmethod
    def start(self, memory: Memory, beams: int = 1) -> State:
        """The state before the first target token, with `beams` beams for each sentence."""

    @abstractmethod
    def step(self, token: Tensor, state: Any) -> Tensor:
        """Read one token a beam, (B, N): hidden states (B, N, D). The state moves on by a step."""

    def cross_attention(self, src: Tensor, src_lengths: Tensor, tgt_in: Tensor) -> Tensor:
        """How much each target step looked at each source token: weights (B, L, H, T, S)."""
        with recorded(self, "cross") as weights:
            self.decode(tgt_in, self.encode(src, src_lengths))
        return weights["cross"]

    def tie(self) -> None:
        """Make one of the matrices that the model shares, after its weights were replaced."""

    def count_parameters(self) -> int:
        """Number of learned numbers, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
