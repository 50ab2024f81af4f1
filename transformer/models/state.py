"""The Transformer's decoding state: a key/value cache that is written once and never moved.

Shapes: B sentences, N beams, H heads, S source, K head size, P positions decoded so far.
"""

import torch
from torch import Tensor


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
        self.memory = memory
        self.beams = beams
        self.position = 0
        self.mask: Tensor | None = None
        self.lengths: Tensor | None = lengths
        self._slots: list[list[Tensor]] = [[] for _ in memory]
        self._ancestors = lengths.new_zeros(len(lengths), beams, 0)
        self._own = torch.arange(beams, device=lengths.device)
        if len(lengths) == 1:
            self.lengths = None  # a sentence alone has no padding

    def advance(self) -> None:
        """Make room for one more position, where every beam stands in its own slot."""
        self.position += 1
        if self.beams == 1:
            return  # a single beam has no other's past to hide
        own = self._own.expand(len(self._ancestors), self.beams)[:, :, None]
        self._ancestors = torch.cat([self._ancestors, own], 2)
        visible = self._ancestors[:, :, :, None] == self._own
        self.mask = visible.flatten(2)[:, None]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write this step's keys and values (B, H, N, K); return all, (B, H, N * P, K)."""
        filled, needed = (self.position - 1) * self.beams, self.position * self.beams
        slots = self._slots[layer]
        if not slots or slots[0].size(2) < needed:
            slots[:] = [
                _grown(old, new, filled)
                for old, new in zip(slots or (None, None), (key, value), strict=True)
            ]
        for slot, new in zip(slots, (key, value), strict=True):
            slot[:, :, filled:needed] = new
        return slots[0][:, :, :needed], slots[1][:, :, :needed]

    def reorder(self, beams: Tensor) -> None:
        """Let beam n of sentence b go on from what was beam `beams[b, n]`; beams: (B, N)."""
        if self.beams > 1:
            index = beams[:, :, None].expand_as(self._ancestors)
            self._ancestors = self._ancestors.gather(1, index)

    def keep(self, sentences: Tensor) -> None:
        """Drop all sentences but these; sentences: (B',), indices into the batch."""
        self.memory = [(key[sentences], value[sentences]) for key, value in self.memory]
        self._ancestors = self._ancestors[sentences]
        if self.lengths is not None:
            self.lengths = self.lengths[sentences]
        for slots in self._slots:
            slots[:] = [slot[sentences] for slot in slots]


def _grown(old: Tensor | None, new: Tensor, filled: int) -> Tensor:
    """A buffer with twice the room (16 positions at first) and the old contents."""
    batch, heads, beams, size = new.shape
    grown = new.new_empty(batch, heads, max(16 * beams, 2 * filled), size)
    if old is not None:
        grown[:, :, :filled] = old[:, :, :filled]
    return grown
