"""The Transformer's decoding state: a key/value cache that is written once and hardly ever moved.

Shapes: L layers, B sentences, N beams, H heads, S source, K head size, P positions decoded so far.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from transformer.kernels.tensors import rooms, whole_vectors

POSITIONS = 16  # room at first; doubled whenever it is full


class LayerCache(NamedTuple):
    """The part of a state that is one layer's."""

    state: "TransformerState"
    layer: int

    @property
    def memory(self) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, K) of the memory; S may be padded, as `memory_mask` says."""
        keys, values = self.state.memory
        return keys[self.layer], values[self.layer]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Write this step's keys and values (B, H, N, K).

        Returns:
            All keys and values, (B, H, N * P, K), and which each beam may see, (B, 1, N, N * P).
        """
        end = self.state.position * self.state.beams
        start = end - self.state.beams
        all_keys, all_values = (part[self.layer, :, :, :end] for part in self.state.slots)
        all_keys[:, :, start:], all_values[:, :, start:] = keys, values
        return all_keys, all_values, self.state.mask


class Ancestors:
    """In which slot a beam's own past stands at each position: what moves when beams do.

    Args:
        batch: B.
        beams: N.
        device: where the masks shall be.
    """

    def __init__(self, batch: int, beams: int, device: torch.device) -> None:
        self._own = torch.arange(beams, device=device)
        self._slots = self._own.new_zeros(batch, beams, 0)

    def advance(self) -> Tensor:
        """One more position, where every beam stands in its own slot.

        Returns:
            Which of the N * P slots each beam may see, (B, 1, N, N * P).
        """
        own = self._own.expand(self._slots.shape[:2])[:, :, None]
        self._slots = torch.cat([self._slots, own], 2)
        visible = self._slots[:, :, :, None] == self._own
        return visible.flatten(2)[:, None]

    def reorder(self, beams: Tensor) -> None:
        """Let beam n of sentence b go on from what was beam `beams[b, n]`; beams: (B, N)."""
        self._slots = self._slots.gather(1, beams[:, :, None].expand_as(self._slots))

    def keep(self, sentences: Tensor) -> None:
        """Drop all sentences but these; sentences: (B',), indices into the batch."""
        self._slots = self._slots[sentences]


class TransformerState:
    """Keys and values of the memory and of the target tokens so far.

    Every beam of every step writes its keys into a slot of its own and leaves them there. When
    the search reorders beams, only their `Ancestors` change: they say in which slot a beam's own
    past stands at each position, and the mask made of them hides the rest. The N beams of a
    sentence are queries of one attention over the N * P slots, so nothing is copied when beams
    move, and the memory's keys are stored once for each sentence.

    Args:
        memory: for each layer, keys and values (B, H, S, K).
        memory_mask: (B, 1, 1, S), True for real source tokens.
        beams: N.
    """

    def __init__(
        self, memory: list[tuple[Tensor, Tensor]], memory_mask: Tensor, beams: int
    ) -> None:
        self.beams = beams
        self.position = 0
        self.mask: Tensor | None = None
        layers, (keys, values) = len(memory), memory[0]
        size, slots = whole_vectors(keys), POSITIONS * beams
        self.memory = rooms(layers, keys, values, size)
        self.slots = rooms(layers, keys, values, slots)
        for part, filled in zip(self.memory, zip(*memory, strict=True), strict=True):
            part[:, :, :, keys.size(2) :] = 0  # hidden by the mask, but zero times NaN is NaN
            for layer, tensor in enumerate(filled):
                part[layer, :, :, : keys.size(2)] = tensor
        self.memory_mask = _unless_all_true(pad(memory_mask, (0, size - keys.size(2))))
        self._ancestors = Ancestors(len(keys), beams, keys.device)

    def advance(self) -> None:
        """Make room for one more position, where every beam stands in its own slot."""
        self.position += 1
        if self.position * self.beams > self.slots[0].size(3):
            self._make_room(2 * self.slots[0].size(3))
        if self.beams > 1:  # a single beam has no other's past to hide
            self.mask = self._ancestors.advance()

    def layers(self) -> "list[LayerCache]":
        """A view for each layer. They are not kept: memory would wait for the cycle collector."""
        return [LayerCache(self, layer) for layer in range(len(self.slots[0]))]

    def reorder(self, beams: Tensor) -> None:
        """Let beam n of sentence b go on from what was beam `beams[b, n]`; beams: (B, N)."""
        if self.beams > 1:
            self._ancestors.reorder(beams)

    def keep(self, sentences: Tensor) -> None:
        """Drop all sentences but these; sentences: (B',), indices into the batch.

        Only those are copied that change their place: a few when the last ones fill the places of
        those that leave.
        """
        places = torch.arange(len(sentences), device=sentences.device)
        moved = places[sentences != places]
        filled = self.position * self.beams
        for part in (*self.memory, *(slots[:, :, :, :filled] for slots in self.slots)):
            part[:, moved] = part[:, sentences[moved]]
        self.memory = [part[:, : len(sentences)] for part in self.memory]
        self.slots = [slots[:, : len(sentences)] for slots in self.slots]
        self._ancestors.keep(sentences)
        if self.memory_mask is not None:
            self.memory_mask = self.memory_mask[sentences]

    def _make_room(self, size: int) -> None:
        """Move all slots to where there is room for `size` of them."""
        keys, values = self.slots
        larger = rooms(len(keys), keys[0], values[0], size)
        for room, slots in zip(larger, self.slots, strict=True):
            room[:, :, :, : slots.size(3)] = slots
        self.slots = larger


def _unless_all_true(mask: Tensor) -> Tensor | None:
    """The mask, or None where it hides nothing."""
    return None if bool(mask.all()) else mask
