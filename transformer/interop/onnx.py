"""ONNX, out: the encoder and one cached decoder step as graphs, for any runtime that reads ONNX.

- encoder.onnx: source ids -> what every step needs: keys and values of the memory in each layer
- decoder.onnx: a token of each beam, and keys and values so far -> logits, and both one longer
- config.json: names and shapes of inputs and outputs, special ids, search settings
- the bundle's tokenizer files; README.md: how to run it without this package; parity.json

torch's newer exporter makes them (`dynamo=True`). The older one is ten times as fast and gives the
same here, but is deprecated, and bakes into a graph, without a word, whatever Python decided for
the sizes of its example; the newer one refuses that.

Shapes: B batch, S source, N beams, P target tokens so far, L layers, H heads, K size of a key.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer import __version__
from transformer.bundle import Bundle, load_bundle
from transformer.data.tokenizer import BOS, EOS, PAD, UNK
from transformer.errors import UserError
from transformer.interop import needs
from transformer.interop.gate import BundleSide, Report, compare, passed
from transformer.models import Transformer, architecture_of
from transformer.models.attention import padding_mask
from transformer.models.positions import LearnedPositions, sinusoidal
from transformer.writing import whole_folder, write

EXTRA = "onnx"
OPSET = 20
ENCODER, DECODER, CONFIG = "encoder.onnx", "decoder.onnx", "config.json"
SPECIAL_IDS = {"pad": PAD, "bos": BOS, "eos": EOS, "unk": UNK}
MEMORY = {1: "batch", 3: "source"}  # names of the sizes that vary, by dimension
PAST = {1: "batch", 3: "past"}
README = """# {src} → {tgt}, in ONNX

Exported from a bundle of transformer-recipes; `parity.json` says how its translations were
compared with the bundle's. `encoder.onnx` runs once for each source, `decoder.onnx` once for each
target token; `config.json` has the names and shapes. N beams may decode side by side: they write
their keys into slots of their own, and `visible` says which of the slots are a beam's past. Greedy
search has one beam, which sees them all:

```python
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

config = json.load(open("config.json"))
src, tgt = (Tokenizer.from_file(name) for name in config["tokenizers"])
src.encode_special_tokens = True  # text that spells </s> is text
encoder = onnxruntime.InferenceSession("encoder.onnx")
decoder = onnxruntime.InferenceSession("decoder.onnx")

ids = config["src_prefix"] + src.encode("...").ids  # the end symbol is there
source = {{"src": np.array([ids]), "src_lengths": np.array([len(ids)])}}
keys, values = encoder.run(None, source)
memory = {{"memory_keys": keys, "memory_values": values, "src_lengths": source["src_lengths"]}}
past = {{"past_keys": keys[:, :, :, :0], "past_values": values[:, :, :, :0]}}
token, translation = config["special_ids"]["bos"], []
while len(translation) < len(ids) + 50:
    visible = np.ones((1, 1, len(translation) + 1), bool)
    feeds = {{"token": np.array([[token]]), "visible": visible, **memory, **past}}
    logits, past["past_keys"], past["past_values"] = decoder.run(None, feeds)
    token = int(logits.argmax())
    if token == config["special_ids"]["eos"]:
        break
    translation.append(token)
print(tgt.decode(translation))
```
"""


def export_onnx(bundle: str | Path, folder: str | Path) -> Report:
    """Writes a bundle as ONNX graphs, which ONNX Runtime must translate with as the bundle does.

    Args:
        bundle: folder of a Transformer; the RNN's state, which has no positions, is another one.
        folder: where to; it must not exist yet, and does only when the gate was passed.

    Raises:
        UserError: the bundle is no Transformer, the folder exists, a package is not installed, or
            the translations differ.
    """
    from transformer.interop.onnx_runtime import read_export  # which reads what stands here

    for module in ("onnxscript", "onnxruntime"):
        needs(module, EXTRA)
    loaded = load_bundle(bundle)
    if not isinstance(loaded.model, Transformer):
        raise UserError(
            f"{bundle} is an {architecture_of(loaded.model.config).upper()}: only a Transformer is "
            "exported to ONNX, whose decoder goes on from cached keys and values"
        )
    with whole_folder(Path(folder)) as growing:
        write_graphs(loaded.model, growing)
        loaded.tokenizer.save(growing)
        write_config(loaded, growing)
        report = compare(BundleSide(loaded), BundleSide(read_export(growing), "ONNX Runtime"))
        passed(report, growing)
    return report


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


class _Sinusoids(nn.Module):
    """Sinusoids that a graph computes, for any length: a table would have to end somewhere."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model

    def forward(self, start: int, length: int) -> Tensor:
        """As of `SinusoidalPositions`."""
        return sinusoidal(length, self.d_model, start)


class _Learned(nn.Module):
    """Learned positions without the check, which a graph cannot make; config.json has the limit."""

    def __init__(self, positions: LearnedPositions) -> None:
        super().__init__()
        self.table = positions.table

    def forward(self, start: int, length: int) -> Tensor:
        """As of `LearnedPositions`."""
        return F.embedding(torch.arange(start, start + length), self.table)


def for_a_graph(model: Transformer) -> Transformer:
    """A copy of a model in float32 whose positions can be traced."""
    model = copy.deepcopy(model).float().cpu().eval()
    for embedding in (model.src_embedding, model.tgt_embedding):
        positions = embedding.positions
        embedding.positions = (
            _Learned(positions)
            if isinstance(positions, LearnedPositions)
            else _Sinusoids(model.config.d_model)
        )
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


def write_config(bundle: Bundle, folder: Path) -> None:
    """Writes config.json and README.md beside the graphs."""
    tokenizer, its = bundle.tokenizer, bundle.config
    files = [*tokenizer.to_text()]
    config = {
        "format": "onnx",
        "made_with": f"transformer-recipes {__version__}",
        "opset": OPSET,
        "src": its["src"],
        "tgt": its["tgt"],
        "tokenizers": [files[0], files[-1]],
        "src_prefix": [tokenizer.tags[its["tgt"]]] if tokenizer.tags else [],
        "special_ids": SPECIAL_IDS,
        "max_length": its["max_length"],
        "max_positions": bundle.model.max_length,
        "search": its["search"],
        "encoder": _signature(folder / ENCODER),
        "decoder": _signature(folder / DECODER),
    }
    write(folder / CONFIG, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    write(folder / "README.md", README.format(src=its["src"], tgt=its["tgt"]))


def _signature(path: Path) -> dict[str, Any]:
    """The name of a graph's file, and type and shape of each input and output by its name."""
    session = needs("onnxruntime", EXTRA).InferenceSession(path, providers=["CPUExecutionProvider"])
    signature: dict[str, Any] = {"file": path.name}
    for kind, entries in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        signature[kind] = {entry.name: [entry.type, entry.shape] for entry in entries}
    return signature


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
