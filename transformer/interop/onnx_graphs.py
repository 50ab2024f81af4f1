"""A Transformer as ONNX graphs: the encoder, and one step of the decoder with a cache.

torch's newer exporter makes them (`dynamo=True`). The older one is ten times as fast and gives the
same here, but is deprecated, and bakes into a graph, without a word, whatever Python decided for
the sizes of its example; the newer one refuses that.

Shapes: B batch, S source, N beams, P target tokens so far, L layers, H heads, K size of a key.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer.models import Transformer
from transformer.models.attention import padding_mask
from transformer.models.positions import LearnedPositions, sinusoidal

OPSET = 20
ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
MEMORY = {1: "batch", 3: "source"}  # names of the sizes that vary, by dimension
PAST = {1: "batch", 3: "past"}


class EncoderGraph(nn.Module):
    """The encoder, and the keys and values that the decoder makes of what it read."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, src: Tensor, src_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, S) and lengths (B,) -> keys and values of the memory, (L, B, H, S, K) each."""
        memory = self.model.encode(src, src_lengths).hidden
        pairs = [layer.cross_attention.project_memory(memory) for layer in self.model.decoder]
        keys, values = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        return keys, values


class DecoderGraph(nn.Module):
    """One step of the decoder, with keys and values of the steps before, and the projection."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        token: Tensor,
        visible: Tensor,
        src_lengths: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, N, V), and keys and values with those of this step, (L, B, H, N * (P + 1), K).

        Args:
            token: (B, N).
            visible: (B, N, N * (P + 1)), which slots are a beam's past or its own token.
            src_lengths: (B,).
            memory_keys: (L, B, H, S, K).
            memory_values: the same; a value may have another size than a key.
            past_keys: (L, B, H, N * P, K), slots in the order in which they were written.
            past_values: the same.
        """
        x = self.model.tgt_embedding(token, past_keys.size(3) // token.size(1))
        mask, keys, values = padding_mask(src_lengths, memory_keys.size(3)), [], []
        memory = zip(memory_keys, memory_values, strict=True)
        past = zip(past_keys, past_values, strict=True)
        for layer, its_memory, its_past in zip(self.model.decoder, memory, past, strict=True):
            cache: Any = _Grown(*its_past, visible[:, None])
            x = layer(x, its_memory, mask, cache)
            keys.append(cache.keys)
            values.append(cache.values)
        logits = self.model.project(self.model.decoder_norm(x))
        return logits, torch.stack(keys), torch.stack(values)


class _Grown:
    """The cache of a layer in a graph, where nothing is written in place."""

    def __init__(self, keys: Tensor, values: Tensor, mask: Tensor) -> None:
        self.keys, self.values, self.mask = keys, values, mask

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of `LayerCache`."""
        self.keys, self.values = (
            torch.cat([self.keys, keys], 2),
            torch.cat([self.values, values], 2),
        )
        return self.keys, self.values, self.mask


class _Positions(nn.Module):
    """Sinusoids that a graph computes, for any length: a table would have to end somewhere.

    Or learned positions, without the check, which a graph cannot make; config.json has the limit.
    """

    def __init__(self, positions: nn.Module, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.table = positions.table if isinstance(positions, LearnedPositions) else None

    def forward(self, start: int, length: int) -> Tensor:
        """As of the positions that it stands for."""
        if self.table is None:
            return sinusoidal(length, self.d_model, start)
        return F.embedding(torch.arange(start, start + length), self.table)


def for_a_graph(model: Transformer) -> Transformer:
    """A copy of a model in float32 whose positions can be traced."""
    model = copy.deepcopy(model).float().cpu().eval()
    for embedding in (model.src_embedding, model.tgt_embedding):
        embedding.positions = _Positions(embedding.positions, model.config.d_model)
    return model


def write_graphs(model: Transformer, folder: Path) -> None:
    """Writes encoder.onnx and decoder.onnx into a folder."""
    model = for_a_graph(model)
    batch, source, beams, past = 2, 5, 3, 4  # an example, of which no size matters
    src, src_lengths = torch.ones(batch, source, dtype=torch.long), torch.tensor([source, 3])
    memory = EncoderGraph(model)(src, src_lengths)
    slots = [part[:, :, :, :1].expand(-1, -1, -1, beams * past, -1).clone() for part in memory]
    token = torch.ones(batch, beams, dtype=torch.long)
    visible = torch.ones(batch, beams, beams * (past + 1), dtype=torch.bool)
    of_encoder = {"src": {0: "batch", 1: "source"}, "src_lengths": {0: "batch"}}
    of_decoder = {
        "token": {0: "batch", 1: "beams"},
        "visible": {0: "batch", 1: "beams", 2: "present"},
        "src_lengths": {0: "batch"},
        "memory_keys": MEMORY,
        "memory_values": MEMORY,
        "past_keys": PAST,
        "past_values": PAST,
    }
    names = ["memory_keys", "memory_values"]
    _write_graph(EncoderGraph(model), (src, src_lengths), of_encoder, names, folder / ENCODER)
    example = (token, visible, src_lengths, *memory, *slots)
    names = ["logits", "keys", "values"]
    _write_graph(DecoderGraph(model), example, of_decoder, names, folder / DECODER)


def _write_graph(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    inputs: dict[str, dict[int, str]],
    outputs: list[str],
    path: Path,
) -> None:
    """Lets torch write a graph; `inputs` has the names of their varying sizes."""
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            graph.eval(), example, dynamo=True, opset_version=OPSET,
            input_names=[*inputs], output_names=outputs, dynamic_shapes=tuple(inputs.values()),
            verbose=False,
        )  # fmt: skip
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # where in which file on this machine it comes from
        program.save(path, external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what the exporter says about packages that it does not need, and its own future."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
