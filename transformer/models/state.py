"""The Transformer's decoding state: a key/value cache that is written once and hardly ever moved.

Shapes: L layers, B sentences, N beams, H heads, S source, K head size, P positions decoded so far.
"""

import torch
from torch import Tensor

POSITIONS = 16  # room at first; doubled whenever it is full
VECTOR = 16  # on a CPU softmax over 14 float32 keys takes 14 times as long as over 16


class TransformerState:
    """Keys and values of the memory and of the target tokens so far.

    Every beam of every step writes its keys into a slot of its own and leaves them there. When
    the search reorders beams, only `ancestors` changes: it says in which slot a beam's own past
    stands at each position, and the mask made from it hides the rest. The N beams of a sentence
    are queries of one attention over the N * P slots, so nothing is copied when beams move, and
    the memory's keys are stored once for each sentence.

    Args:
        memory: for each layer, keys and values (B, H, S, K).
        lengths: (B,), source lengths in tokens.
        beams: N.
    """

    def __init__(self, memory: list[tuple[Tensor, Tensor]], lengths: Tensor, beams: int) -> None:
        self.beams = beams
        self.position = 0
        self.mask: Tensor | None = None
        keys, values = (torch.stack(parts) for parts in zip(*memory, strict=True))
        size = -(-keys.size(3) // VECTOR) * VECTOR
        self._memory = [_keys(keys, size, keys), _values(values, size, values)]
        self._slots = [_keys(keys, POSITIONS * beams), _values(values, POSITIONS * beams)]
        self.memory_mask = _padding_mask(lengths, size)
        self._ancestors = lengths.new_zeros(len(lengths), beams, 0)
        self._own = torch.arange(beams, device=lengths.device)

    def advance(self) -> None:
        """Make room for one more position, where every beam stands in its own slot."""
        self.position += 1
        keys, values = self._slots
        if self.position * self.beams > keys.size(3):
            room = 2 * keys.size(3)
            self._slots = [_keys(keys, room, keys), _values(values, room, values)]
        if self.beams == 1:
            return  # a single beam has no other's past to hide
        own = self._own.expand(len(self._ancestors), self.beams)[:, :, None]
        self._ancestors = torch.cat([self._ancestors, own], 2)
        visible = self._ancestors[:, :, :, None] == self._own
        self.mask = visible.flatten(2)[:, None]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write this step's keys and values (B, H, N, K); return all, (B, H, N * P, K)."""
        end = self.position * self.beams
        keys, values = (slots[layer, :, :, :end] for slots in self._slots)
        keys[:, :, end - self.beams :] = key
        values[:, :, end - self.beams :] = value
        return keys, values

    def memory(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, K) of the memory; S may be padded, as `memory_mask` says."""
        return self._memory[0][layer], self._memory[1][layer]

    def reorder(self, beams: Tensor) -> None:
        """Let beam n of sentence b go on from what was beam `beams[b, n]`; beams: (B, N)."""
        if self.beams > 1:
            index = beams[:, :, None].expand_as(self._ancestors)
            self._ancestors = self._ancestors.gather(1, index)

    def keep(self, sentences: Tensor) -> None:
        """Drop all sentences but these; sentences: (B',), indices into the batch.

        Only those are copied that change their place: a few when the last ones fill the places of
        those that leave.
        """
        places = torch.arange(len(sentences), device=sentences.device)
        moved = places[sentences != places]
        filled = self.position * self.beams
        for part in (*self._memory, *(slots[:, :, :, :filled] for slots in self._slots)):
            part[:, moved] = part[:, sentences[moved]]
        self._memory = [part[:, : len(sentences)] for part in self._memory]
        self._slots = [slots[:, : len(sentences)] for slots in self._slots]
        self._ancestors = self._ancestors[sentences]
        if self.memory_mask is not None:
            self.memory_mask = self.memory_mask[sentences]


def _values(like: Tensor, room: int, filled: Tensor | None = None) -> Tensor:
    """An empty (L, B, H, room, K), or one that begins with what is filled, followed by zeros."""
    cache = like.new_empty(*like.shape[:3], room, like.size(4))
    return cache if filled is None else _fill(cache, filled)


def _keys(like: Tensor, room: int, filled: Tensor | None = None) -> Tensor:
    """The same, but transposed in a CPU's memory: a few queries meet such keys in half the time."""
    if not like.is_cpu:
        return _values(like, room, filled)
    cache = like.new_empty(*like.shape[:3], like.size(4), room).mT
    return cache if filled is None else _fill(cache, filled)


def _fill(cache: Tensor, filled: Tensor) -> Tensor:
    size = filled.size(3)
    cache[:, :, :, :size] = filled
    cache[:, :, :, size:] = 0
    return cache


def _padding_mask(lengths: Tensor, size: int) -> Tensor | None:
    """Which of the memory's positions are real, (B, 1, 1, S); None where all are."""
    real = torch.arange(size, device=lengths.device) < lengths[:, None, None, None]
    return None if bool(real.all()) else real
