"""The recurrent encoder–decoder: what there was before the Transformer, with attention or without.

One decoder for every rung of the ladder, by Luong et al. (2015): at each step its state s_t and a
context vector a_t make tanh(W_c [a_t; s_t]), which predicts the next token (equation 5). Without
attention a_t is the same at every step: the states in which the encoder has read everything. They
also give the decoder its first state, as in Sutskever et al. (2014), who have them nowhere else;
Cho et al. (2014) feed them to the RNN, too. With attention a_t is a weighted sum of all encoder
states. `additive` is the score of Bahdanau et al. (2015) in this decoder: theirs asks with the
state before, s_{t-1}, and feeds a_t to the RNN.

Shapes: B batch, S source, T target, N beams, D model, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from transformer.models.attention import LEARNED, SCORES, Attended, attention, padding_mask
from transformer.models.dropout import Dropout
from transformer.models.seq2seq import Memory, Seq2Seq, initialise

if TYPE_CHECKING:
    from transformer.models.config import RNNConfig

CELLS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}
#: The hidden state that goes from step to step: h, and c of an LSTM.
Hidden = tuple[Tensor, ...]


class RNNLayer(nn.Module):
    """One layer that reads in one direction, all steps in one call.

    Args:
        cell: `gru` or `lstm`.
        input_size: of the vectors that are read.
        hidden_size: of the states.
    """

    def __init__(self, cell: str, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.rnn = CELLS[cell](input_size, hidden_size, batch_first=True)

    def forward(self, x: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """x: (B, T, D) and the hidden state, each (B, D) -> states (B, T, D), hidden state."""
        if not (x.is_cuda and torch.is_autocast_enabled("cuda")):
            return self._read(x, hidden)
        # Under autocast cuDNN computes in float16, whatever the type that was asked for.
        with torch.autocast("cuda", enabled=False):
            return self._read(x.float(), hidden and tuple(part.float() for part in hidden))

    def _read(self, x: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        first: Any = hidden and tuple(part[None].contiguous() for part in hidden)
        if isinstance(self.rnn, nn.LSTM):
            states, (h, c) = self.rnn(x, first)
            return states, (h[0], c[0])
        states, h = self.rnn(x, first and first[0])
        return states, (h[0],)


class Bidirectional(nn.Module):
    """A layer that reads forwards, and one that reads backwards: h_i = [→h_i; ←h_i]."""

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        self.forward_rnn = RNNLayer(config.cell, config.d_model, config.d_model // 2)
        self.backward_rnn = RNNLayer(config.cell, config.d_model, config.d_model // 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (B, S, D) with lengths (B,) -> (B, S, D); states at padding mean nothing."""
        # Turning each sentence round by itself needs no packing, for which lengths would have to
        # come from the device.
        positions = torch.arange(x.size(1), device=x.device)
        mirrored = lengths[:, None] - 1 - positions
        index = torch.where(mirrored >= 0, mirrored, positions)[:, :, None]
        forwards, _ = self.forward_rnn(x)
        backwards, _ = self.backward_rnn(x.gather(1, index.expand_as(x)))
        return torch.cat([forwards, backwards.gather(1, index.expand_as(backwards))], -1)


def context_vector(memory: Memory) -> Tensor:
    """The fixed context vector (B, D): the state of each direction that has read everything."""
    half = memory.hidden.size(-1) // 2
    last = (memory.lengths - 1)[:, None, None].expand(-1, 1, half)
    forwards = memory.hidden[:, :, :half].gather(1, last).squeeze(1)
    return torch.cat([forwards, memory.hidden[:, 0, half:]], -1)


class Attendable(NamedTuple):
    """Keys and values (B, 1, S, D) that a decoder attends to, and a mask (B, 1, 1, S)."""

    keys: Tensor
    values: Tensor
    mask: Tensor


class Attention(nn.Module):
    """Attention with one of the scores: a_t is the sum of all h_i, weighted by softmax(score).

    Args:
        score: a name in `SCORES`.
        size: D.
    """

    def __init__(self, score: str, size: int) -> None:
        super().__init__()
        learned = score in LEARNED
        self.query = nn.Linear(size, size, bias=False) if learned else nn.Identity()
        self.key = nn.Linear(size, size, bias=False) if learned else nn.Identity()
        self.function = SCORES[score]
        self.vector = nn.Parameter(torch.empty(size)) if learned else None
        if self.vector is not None:
            nn.init.uniform_(self.vector, -(size**-0.5), size**-0.5)

    def read(self, memory: Memory) -> Attendable:
        """Keys and values, once for each sentence."""
        return Attendable(self.key(memory.hidden)[:, None], memory.hidden[:, None], memory.mask)

    def learned_score(self, query: Tensor, key: Tensor) -> Tensor:
        """The score of queries (..., T, D) and keys (..., S, D), with the learned vector."""
        return self.function(query, key, self.vector)

    def forward(self, states: Tensor, memory: Attendable, need_weights: bool = False) -> Attended:
        """States (B, T, D) -> context vectors (B, T, D) and weights (B, 1, T, S)."""
        score = self.function if self.vector is None else self.learned_score
        values, weights = attention(
            self.query(states)[:, None], memory.keys, memory.values,
            score=score, mask=memory.mask, need_weights=need_weights,
        )  # fmt: skip
        return Attended(values.squeeze(1), weights)


class FixedContext(nn.Module):
    """No attention: the context vector is the same at every step.

    In the words of attention it has two heads, one for each direction of the encoder, with weight
    1 on the last token and on the first, whatever the decoder asks.
    """

    def read(self, memory: Memory) -> Attendable:
        """The context vector as the only value; the keys keep the number of source tokens."""
        return Attendable(
            memory.hidden[:, None], context_vector(memory)[:, None, None], memory.mask
        )

    def forward(self, states: Tensor, memory: Attendable, need_weights: bool = False) -> Attended:
        """States (B, T, D) -> context vectors (B, T, D) and weights (B, 2, T, S)."""
        values = memory.values[:, 0].expand_as(states)
        if not need_weights:
            return Attended(values, None)
        weights = states.new_zeros(len(states), 2, states.size(1), memory.keys.size(2))
        last = memory.mask.sum(-1).flatten() - 1
        weights[torch.arange(len(states), device=last.device), 0, :, last] = 1
        weights[:, 1, :, 0] = 1
        return Attended(values, weights)


class RNNState:
    """Where decoding stands: hidden states that move with their beam, and the memory's keys.

    Args:
        hidden: the hidden state of the decoder's layers, each (L, B, N, D).
        memory: keys and values, once for each sentence.
        input_feed: (B, N, D), of which the last token was predicted.
    """

    def __init__(self, hidden: Hidden, memory: Attendable, input_feed: Tensor) -> None:
        self.hidden, self.memory, self.input_feed = hidden, memory, input_feed

    def reorder(self, beams: Tensor) -> None:
        """Let beam n of sentence b go on from what was beam `beams[b, n]`; beams: (B, N)."""
        index = beams[:, :, None].expand_as(self.input_feed)
        self.hidden = tuple(h.gather(2, index.expand_as(h)) for h in self.hidden)
        self.input_feed = self.input_feed.gather(1, index)

    def keep(self, sentences: Tensor) -> None:
        """Drop all sentences but these; sentences: (B',), indices into the batch."""
        self.hidden = tuple(h[:, sentences] for h in self.hidden)
        self.memory = Attendable(*(part[sentences] for part in self.memory))
        self.input_feed = self.input_feed[sentences]


class RNN(Seq2Seq):
    """A recurrent encoder–decoder, with any attention or none."""

    config: RNNConfig
    ROWS: ClassVar = {
        "src_embedding.weight": "src",
        "tgt_embedding.weight": "tgt",
        "output.weight": "tgt",
        "output.bias": "tgt",
    }

    def __init__(self, config: RNNConfig, src_vocab_size: int, tgt_vocab_size: int) -> None:
        super().__init__()
        self.config = config
        size, layers = config.d_model, range(config.num_layers)
        # Of variance 1, as torch has it: with 1 / D the gates hardly saw the words, and validation
        # perplexity after an epoch of recipes/multi30k/rnn_dot_de_en.yaml was 185, with 1 it is 93.
        self.src_embedding = nn.Embedding(src_vocab_size, size)
        self.tgt_embedding = nn.Embedding(tgt_vocab_size, size)
        # mypy takes what a ModuleList holds for any Module.
        self.encoder = cast(
            list[Bidirectional], nn.ModuleList(Bidirectional(config) for _ in layers)
        )
        self.parts = 2 if config.cell == "lstm" else 1  # of a hidden state
        self.bridge = nn.Linear(size, self.parts * len(layers) * size)
        sizes = [2 * size if config.input_feeding else size, *[size] * (len(layers) - 1)]
        self.decoder = cast(
            list[RNNLayer],
            nn.ModuleList(RNNLayer(config.cell, input_size, size) for input_size in sizes),
        )
        self.attention: Attention | FixedContext = (
            FixedContext() if config.attention == "none" else Attention(config.attention, size)
        )
        self.output_projection = nn.Linear(2 * size, size, bias=False)  # W_c
        self.output = nn.Linear(size, tgt_vocab_size)
        self.dropout = Dropout(config.dropout)
        initialise(self.bridge, self.output_projection, self.output)

    def describe(self) -> str:
        score = self.config.attention.replace("_", " ")
        how = "without attention" if score == "none" else f"with {score} attention"
        return f"A recurrent encoder–decoder ({self.config.cell.upper()}) {how}"

    def encode(self, src: Tensor, src_lengths: Tensor) -> Memory:
        x = self.src_embedding(src)
        for layer in self.encoder:
            x = layer(self.dropout(x), src_lengths)
        return Memory(x, src_lengths, padding_mask(src_lengths, src.size(1)))

    def decode(self, tgt_in: Tensor, memory: Memory) -> Tensor:
        state = self.start(memory)
        # All steps at once, where none waits for the one before.
        size = 1 if self.config.input_feeding else tgt_in.size(1)
        parts = [self._advance(tokens[:, None], state) for tokens in tgt_in.split(size, 1)]
        return torch.cat(parts, 1)

    def start(self, memory: Memory, beams: int = 1) -> RNNState:
        first = torch.tanh(self.bridge(context_vector(memory)))
        hidden = first.view(len(first), self.parts, -1, 1, self.config.d_model)
        hidden = hidden.expand(-1, -1, -1, beams, -1).permute(1, 2, 0, 3, 4)
        input_feed = first.new_zeros(len(first), beams, self.config.d_model)
        return RNNState(tuple(hidden), self.attention.read(memory), input_feed)

    def step(self, token: Tensor, state: RNNState) -> Tensor:
        return self._advance(token[:, :, None], state)

    def combine(self, context: Tensor, states: Tensor) -> Tensor:
        """tanh(W_c [a_t; s_t]) (Luong et al. 2015, equation 5); all (B, T, D)."""
        return torch.tanh(self.output_projection(torch.cat([context, states], -1)))

    def _advance(self, tokens: Tensor, state: RNNState) -> Tensor:
        """T tokens for each of N beams, of which one is 1: (B, N, T) -> (B, N * T, D)."""
        batch, beams, _ = tokens.shape
        x = self.dropout(self.tgt_embedding(tokens))
        if self.config.input_feeding:
            x = torch.cat([x, state.input_feed[:, :, None].to(x)], -1)
        states, after = x.flatten(0, 1), []
        for number, (layer, *hidden) in enumerate(zip(self.decoder, *state.hidden, strict=True)):
            states = self.dropout(states) if number else states
            states, last = layer(states, tuple(part.flatten(0, 1) for part in hidden))
            after.append(last)
        state.hidden = tuple(
            torch.stack(parts).unflatten(1, (batch, beams)) for parts in zip(*after, strict=True)
        )
        states = states.reshape(batch, -1, self.config.d_model)
        context, _ = self.attention(states, state.memory)
        combined = self.dropout(self.combine(context, states))
        if self.config.input_feeding:
            state.input_feed = combined.view_as(state.input_feed)
        return combined
