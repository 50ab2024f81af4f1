"""The recurrent encoder–decoder: what there was before the Transformer, with attention or without.

One decoder for every rung of the ladder, that of Luong et al. (2015): at each step its state s_t
and a context vector a_t make tanh(W [a_t; s_t]), which predicts the next token (equation 5).
Without attention a_t is the same at every step: what the encoder says when it has read everything.
It also gives the decoder its first state, as in Sutskever et al. (2014), who have it nowhere else;
Cho et al. (2014) feed it to the recurrence, too. With attention a_t is a weighted sum of all
encoder states. `additive` is the score of Bahdanau et al. (2015) in this decoder: theirs asks with
the state before, s_{t-1}, and feeds a_t to the recurrence.

Shapes: B batch, S source, T target, N beams, D model, V vocabulary, L layers.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from transformer.errors import UserError
from transformer.models.attention import SCORES, Attended, attention, padding_mask
from transformer.models.dropout import Dropout
from transformer.models.seq2seq import Memory, Seq2Seq

NO_ATTENTION = "none"
CELLS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}
#: What cells carry on from step to step: h, and c of an LSTM.
Carried = tuple[Tensor, ...]


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
        if self.d_model < 2 or self.d_model % 2:
            raise UserError(
                f"model.network.d_model is {self.d_model}: it must be even, since each direction "
                "of the encoder has half of it"
            )
        if self.num_layers < 1:
            raise UserError(f"model.network.num_layers is {self.num_layers}: it must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.network.dropout is {self.dropout}: it must be in [0, 1)")
        known = [NO_ATTENTION, *SCORES]
        if self.attention not in known:
            near = get_close_matches(self.attention, known, n=1, cutoff=0.0)[0]
            raise UserError(
                f"model.network.attention is {self.attention!r}: it must be one of "
                f"{', '.join(known)}; the nearest is {near!r}"
            )

    def build(self, src_vocab_size: int, tgt_vocab_size: int) -> "RNN":
        """A freshly initialised model of this shape."""
        return RNN(self, src_vocab_size, tgt_vocab_size)


class Recurrence(nn.Module):
    """One layer of cells, which reads in one direction, all steps in one call.

    Args:
        kind: `gru` or `lstm`.
        inputs: size of what is read at each step.
        size: of the hidden state.
    """

    def __init__(self, kind: str, inputs: int, size: int) -> None:
        super().__init__()
        self.cells = CELLS[kind](inputs, size, batch_first=True)

    def forward(self, x: Tensor, carried: Carried | None = None) -> tuple[Tensor, Carried]:
        """x: (B, T, D) and what was carried on, each (B, D) -> states (B, T, D), carried on."""
        if not (x.is_cuda and torch.is_autocast_enabled("cuda")):
            return self._read(x, carried)
        # Under autocast cuDNN computes in float16, whatever the type that was asked for.
        with torch.autocast("cuda", enabled=False):
            return self._read(x.float(), carried and tuple(part.float() for part in carried))

    def _read(self, x: Tensor, carried: Carried | None) -> tuple[Tensor, Carried]:
        first: Any = carried and tuple(part[None].contiguous() for part in carried)
        if isinstance(self.cells, nn.LSTM):
            states, (hidden, cell) = self.cells(x, first)
            return states, (hidden[0], cell[0])
        states, hidden = self.cells(x, first and first[0])
        return states, (hidden[0],)


class Bidirectional(nn.Module):
    """A layer that reads forwards, and one that reads backwards: h_i = [→h_i; ←h_i]."""

    def __init__(self, config: RNNConfig) -> None:
        super().__init__()
        self.ahead = Recurrence(config.cell, config.d_model, config.d_model // 2)
        self.back = Recurrence(config.cell, config.d_model, config.d_model // 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: (B, S, D) with lengths (B,) -> (B, S, D); what stands at padding means nothing."""
        # Turning each sentence round by itself needs no packing, for which lengths would have to
        # come from the device.
        positions = torch.arange(x.size(1), device=x.device)
        mirrored = lengths[:, None] - 1 - positions
        index = torch.where(mirrored >= 0, mirrored, positions)[:, :, None]
        ahead, _ = self.ahead(x)
        back, _ = self.back(x.gather(1, index.expand_as(x)))
        return torch.cat([ahead, back.gather(1, index.expand_as(back))], -1)


def context_vector(memory: Memory) -> Tensor:
    """What either direction says when it has read everything, (B, D): the fixed context vector."""
    half = memory.hidden.size(-1) // 2
    last = (memory.lengths - 1)[:, None, None].expand(-1, 1, half)
    ahead = memory.hidden[:, :, :half].gather(1, last).squeeze(1)
    return torch.cat([ahead, memory.hidden[:, 0, half:]], -1)


class Keys(NamedTuple):
    """What a decoder looks at: keys and values (B, 1, S, D), and a mask (B, 1, 1, S)."""

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
        function, projects, vector = SCORES[score]
        self.query = nn.Linear(size, size, bias=False) if projects else nn.Identity()
        self.key = nn.Linear(size, size, bias=False) if projects else nn.Identity()
        self.function = function
        self.vector = nn.Parameter(torch.empty(size)) if vector else None
        if self.vector is not None:
            nn.init.uniform_(self.vector, -(size**-0.5), size**-0.5)

    def read(self, memory: Memory) -> Keys:
        """Keys and values, once for each sentence."""
        return Keys(self.key(memory.hidden)[:, None], memory.hidden[:, None], memory.mask)

    def forward(self, states: Tensor, memory: Keys, need_weights: bool = False) -> Attended:
        """States (B, T, D) -> context vectors (B, T, D) and weights (B, 1, T, S)."""
        score = self.function if self.vector is None else partial(self.function, v=self.vector)
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

    def read(self, memory: Memory) -> Keys:
        """The context vector as the only value; the keys keep the number of source tokens."""
        return Keys(memory.hidden[:, None], context_vector(memory)[:, None, None], memory.mask)

    def forward(self, states: Tensor, memory: Keys, need_weights: bool = False) -> Attended:
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
        hidden: what the cells of the decoder carry on, each (L, B, N, D).
        memory: keys and values, once for each sentence.
        fed: (B, N, D), what the last token was predicted from.
    """

    def __init__(self, hidden: Carried, memory: Keys, fed: Tensor) -> None:
        self.hidden, self.memory, self.fed = hidden, memory, fed

    def reorder(self, beams: Tensor) -> None:
        """Let beam n of sentence b go on from what was beam `beams[b, n]`; beams: (B, N)."""
        index = beams[:, :, None].expand_as(self.fed)
        self.hidden = tuple(h.gather(2, index.expand_as(h)) for h in self.hidden)
        self.fed = self.fed.gather(1, index)

    def keep(self, sentences: Tensor) -> None:
        """Drop all sentences but these; sentences: (B',), indices into the batch."""
        self.hidden = tuple(h[:, sentences] for h in self.hidden)
        self.memory = Keys(*(part[sentences] for part in self.memory))
        self.fed = self.fed[sentences]


class RNN(Seq2Seq):
    """A recurrent encoder–decoder, with any attention or none.

    Args:
        config: its shape.
        src_vocab_size: number of source tokens.
        tgt_vocab_size: number of target tokens.
    """

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
        size, layers = config.d_model, config.num_layers
        # Of variance 1, as torch has it: with 1 / D the gates hardly saw the words, and validation
        # perplexity after an epoch of recipes/multi30k/rnn_dot_de_en.yaml was 185, with 1 it is 93.
        self.src_embedding = nn.Embedding(src_vocab_size, size)
        self.tgt_embedding = nn.Embedding(tgt_vocab_size, size)
        self.encoder = cast(
            list[Bidirectional], nn.ModuleList(Bidirectional(config) for _ in range(layers))
        )
        self.parts = 2 if config.cell == "lstm" else 1  # of the state that a cell carries on
        self.bridge = nn.Linear(size, self.parts * layers * size)
        first = 2 * size if config.input_feeding else size
        self.decoder = cast(
            list[Recurrence],
            nn.ModuleList(
                Recurrence(config.cell, size if layer else first, size) for layer in range(layers)
            ),
        )
        self.attention: Attention | FixedContext = (
            FixedContext()
            if config.attention == NO_ATTENTION
            else Attention(config.attention, size)
        )
        self.merge = nn.Linear(2 * size, size, bias=False)
        self.output = nn.Linear(size, tgt_vocab_size)
        self.dropout = Dropout(config.dropout)
        for linear in (self.bridge, self.merge, self.output):
            nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(self.bridge.bias)
        nn.init.zeros_(self.output.bias)

    def describe(self) -> str:
        score = self.config.attention.replace("_", " ")
        how = "without attention" if score == NO_ATTENTION else f"with {score} attention"
        return f"A recurrent encoder–decoder ({self.config.cell.upper()}) {how}"

    def encode(self, src: Tensor, src_lengths: Tensor) -> Memory:
        x = self.src_embedding(src)
        for layer in self.encoder:
            x = layer(self.dropout(x), src_lengths)
        return Memory(x, src_lengths, padding_mask(src_lengths, src.size(1)))

    def forward(self, src: Tensor, src_lengths: Tensor, tgt_in: Tensor) -> Tensor:
        state = self.start(self.encode(src, src_lengths))
        return self._decode(tgt_in, state)[0]

    def cross_attention(self, src: Tensor, src_lengths: Tensor, tgt_in: Tensor) -> Tensor:
        state = self.start(self.encode(src, src_lengths))
        weights = self._decode(tgt_in, state, need_weights=True)[1]
        assert weights is not None
        return weights[:, None]

    def project(self, hidden: Tensor) -> Tensor:
        return self.output(hidden)

    def start(self, memory: Memory, beams: int = 1) -> RNNState:
        first = torch.tanh(self.bridge(context_vector(memory)))
        hidden = first.view(len(first), self.parts, -1, 1, self.config.d_model)
        hidden = hidden.expand(-1, -1, -1, beams, -1).permute(1, 2, 0, 3, 4)
        fed = first.new_zeros(len(first), beams, self.config.d_model)
        return RNNState(tuple(hidden), self.attention.read(memory), fed)

    def step(self, token: Tensor, state: RNNState) -> tuple[Tensor, RNNState]:
        hidden, _ = self._advance(token[:, :, None], state)
        return hidden, state

    def combine(self, context: Tensor, states: Tensor) -> Tensor:
        """tanh(W [a_t; s_t]) (Luong et al. 2015, equation 5); all (B, T, D)."""
        return torch.tanh(self.merge(torch.cat([context, states], -1)))

    def _decode(
        self, tgt_in: Tensor, state: RNNState, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """All target steps of one beam, at once where none waits for the one before."""
        size = 1 if self.config.input_feeding else tgt_in.size(1)
        parts = [
            self._advance(tokens[:, None], state, need_weights) for tokens in tgt_in.split(size, 1)
        ]
        hidden, weights = zip(*parts, strict=True)
        return torch.cat(hidden, 1), torch.cat(weights, 2) if need_weights else None

    def _advance(
        self, tokens: Tensor, state: RNNState, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """T tokens for each of N beams, of which one is 1: (B, N, T) -> (B, N * T, D), weights."""
        batch, beams, _ = tokens.shape
        x = self.dropout(self.tgt_embedding(tokens))
        if self.config.input_feeding:
            x = torch.cat([x, state.fed[:, :, None].to(x)], -1)
        states, after = x.flatten(0, 1), []
        for layer, (cells, *carried) in enumerate(zip(self.decoder, *state.hidden, strict=True)):
            states = self.dropout(states) if layer else states
            states, last = cells(states, tuple(part.flatten(0, 1) for part in carried))
            after.append(last)
        state.hidden = tuple(
            torch.stack(parts).unflatten(1, (batch, beams)) for parts in zip(*after, strict=True)
        )
        states = states.reshape(batch, -1, self.config.d_model)
        context, weights = self.attention(states, state.memory, need_weights)
        hidden = self.dropout(self.combine(context, states))
        state.fed = hidden.view_as(state.fed) if self.config.input_feeding else state.fed
        return hidden, weights
