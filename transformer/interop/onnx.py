"""ONNX, out: the encoder and one cached decoder step as graphs, for any runtime that reads ONNX.

- encoder.onnx: source ids -> what every step needs: keys and values of the memory in each layer
- decoder.onnx: a token of each beam, and keys and values so far -> logits, and both one longer
- config.json: names and shapes of inputs and outputs, special ids, search settings
- the bundle's tokenizer files; README.md: how to run it without this package; parity.json
"""

import json
from pathlib import Path
from typing import Any

from transformer import __version__
from transformer.bundle import Bundle, load_bundle
from transformer.errors import UserError
from transformer.interop import needs
from transformer.interop.gate import BundleSide, compare, passed
from transformer.interop.onnx_graphs import DECODER, ENCODER, OPSET, write_graphs
from transformer.interop.onnx_runtime import CONFIG, EXTRA, SPECIAL_IDS, read_export
from transformer.models import Transformer, architecture_of
from transformer.writing import whole_folder, write

README = """# {src} → {tgt}, in ONNX

Exported from a bundle of transformer-recipes; `parity.json` says how its translations were
compared with the bundle's. `encoder.onnx` runs once for each source, `decoder.onnx` once for each
target token; `config.json` has the names and shapes. N beams may decode side by side: they write
their keys into slots of their own, and `visible` says which of the slots are a beam's past. Greedy
search has one beam, which sees them all. (Where the tokenizer was made of SentencePiece models, the
library below cuts some rare characters otherwise than the package.)

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


def export_onnx(bundle: str | Path, folder: str | Path) -> None:
    """Writes a bundle as ONNX graphs, which ONNX Runtime must translate with as the bundle does.

    Args:
        bundle: Folder of a Transformer, or org/name of the hub.
        folder: Folder to write, which must not exist; it is kept if the gate is passed.

    Raises:
        UserError: the bundle is no Transformer, the folder exists, a package is not installed, or
            the translations differ.
    """
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
        theirs = BundleSide(read_export(growing), "ONNX Runtime")
        passed(compare(BundleSide(loaded), theirs), growing)


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
