"""ONNX Runtime as a model: it keeps the promise of `Seq2Seq`, so that our own search runs it.

Shapes: B batch, S source, N beams, P target tokens so far, L layers, H heads, K size of a key.
"""

from pathlib import Path
from typing import Any, Literal, NoReturn, TypedDict

import torch
from torch import Tensor

from transformer.bundle import Bundle
from transformer.data.tokenizer import BOS, EOS, PAD, UNK, Tokenizer
from transformer.errors import UserError
from transformer.inference.search import search_of
from transformer.inference.translator import Translator
from transformer.interop import needs
from transformer.interop.onnx_graphs import DECODER, ENCODER
from transformer.kernels.process import count_workers
from transformer.models import Seq2Seq
from transformer.models.cache import Ancestors
from transformer.settings import parsed, settings

EXTRA = "onnx"
CONFIG = "config.json"
SPECIAL_IDS = {"pad": PAD, "bos": BOS, "eos": EOS, "unk": UNK}
AGAIN = "export the bundle again, or copy the whole folder again"


class OnnxState:
    """Where decoding stands: keys and values so far, in the slots in which they were written.

    Args:
        memory: what every step needs of the source, by its name in the decoder's graph.
        beams: N.
    """

    def __init__(self, memory: dict[str, Tensor], beams: int) -> None:
        self.feeds = memory | {
            f"past_{kind}": memory[f"memory_{kind}"][:, :, :, :0] for kind in ("keys", "values")
        }
        self.ancestors = Ancestors(len(memory["src_lengths"]), beams, torch.device("cpu"))

    def reorder(self, beams: Tensor) -> None:
        """Let beam n of sentence b go on from what was beam `beams[b, n]`; nothing is copied."""
        self.ancestors.reorder(beams)

    def keep(self, sentences: Tensor) -> None:
        """Drop all sentences but these; sentences: (B',), indices into the batch."""
        for name, part in self.feeds.items():
            self.feeds[name] = part[sentences] if name == "src_lengths" else part[:, sentences]
        self.ancestors.keep(sentences)


class OnnxModel(Seq2Seq):
    """The graphs of an export, run on the CPU. Its hidden states are the logits already.

    Args:
        folder: that `transformer export onnx` wrote.
        max_length: longest sequence, in tokens, None for any length.

    Raises:
        UserError: when a graph cannot be read.
    """

    def __init__(self, folder: Path, max_length: int | None) -> None:
        super().__init__()
        self.folder, self.max_length = folder, max_length
        self.encoder, self.decoder = _session(folder / ENCODER), _session(folder / DECODER)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def describe(self) -> str:
        return f"The ONNX graphs of {self.folder}"

    def encode(self, src: Tensor, src_lengths: Tensor) -> Any:
        keys, values = _run(self.encoder, src=src, src_lengths=src_lengths)
        return {"memory_keys": keys, "memory_values": values, "src_lengths": src_lengths}

    def decode(self, tgt_in: Tensor, memory: Any) -> Tensor:
        state = self.start(memory)
        return torch.cat([self.step(token, state) for token in tgt_in.split(1, 1)], 1)

    def cross_attention(self, src: Tensor, src_lengths: Tensor, tgt_in: Tensor) -> NoReturn:
        raise UserError(
            f"{self.folder}: the graphs give no attention weights: take the bundle that they were "
            "made of"
        )

    def project(self, hidden: Tensor) -> Tensor:
        return hidden

    def start(self, memory: Any, beams: int = 1) -> OnnxState:
        return OnnxState(memory, beams)

    def step(self, token: Tensor, state: OnnxState) -> Tensor:
        visible = state.ancestors.advance()[:, 0]
        logits, keys, values = _run(self.decoder, token=token, visible=visible, **state.feeds)
        state.feeds |= {"past_keys": keys, "past_values": values}
        return logits


def _session(path: Path) -> Any:
    """A graph, ready to run; batches are decoded side by side, each with its share of threads."""
    onnxruntime = needs("onnxruntime", EXTRA)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised as well
    options.intra_op_num_threads = max(
        1, torch.get_num_threads() // count_workers(torch.device("cpu"))
    )
    try:
        return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    except Exception as error:  # of many kinds
        raise UserError(f"{path} cannot be read ({error}): {AGAIN}") from None


def _run(session: Any, **inputs: Tensor) -> list[Tensor]:
    arrays = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    return [torch.from_numpy(array) for array in arrays]


class _Config(TypedDict):
    """The keys of an export's config.json."""

    format: Literal["onnx"]
    made_with: str
    opset: int
    src: str
    tgt: str
    tokenizers: list[str]
    src_prefix: list[int]
    special_ids: dict[str, int]
    max_length: int
    max_positions: int | None
    search: dict[str, Any]
    encoder: dict[str, Any]
    decoder: dict[str, Any]


def read_export(folder: str | Path) -> Bundle:
    """Reads what `transformer export onnx` wrote: its graphs as a model, tokenizer and config.

    Raises:
        UserError: when a file is missing or damaged, or is not of this format.
    """
    folder = Path(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} is no ONNX export (it has no {CONFIG}): {AGAIN}")
    config = parsed(path.read_bytes(), path, AGAIN)
    if config.get("format") != "onnx":
        raise UserError(f"{path} is not that of an ONNX export: {AGAIN}")
    settings(_Config, config, path)
    if config["special_ids"] != SPECIAL_IDS:
        raise UserError(f"{path}: special_ids must be {SPECIAL_IDS}, as in every bundle: {AGAIN}")
    model = OnnxModel(folder, config["max_positions"])
    return Bundle(model.eval(), Tokenizer.load(folder), config)


def load_export(folder: str | Path) -> Translator:
    """A translator that runs an ONNX export, with its own search settings; raises as above."""
    model, tokenizer, config = read_export(folder)
    search = search_of(config, folder)
    return Translator(model, tokenizer, search, max_length=config["max_length"], tgt=config["tgt"])
