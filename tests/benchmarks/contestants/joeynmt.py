"""JoeyNMT, trained: its model, its batch and its loss. Setting: `float32`.

It has no switch for torch's fused attention, and switches autocast off on a CPU.
"""

import math
from typing import Any

import joeynmt
import torch
from joeynmt.batch import Batch
from joeynmt.model import Model, build_model
from joeynmt.transformer_layers import MultiHeadedAttention, PositionwiseFeedForward
from torch import Tensor

from ..worker import Handlers, Workload, run
from .torch_loop import Ids, Loop


class Words:
    """As much of a vocabulary as the model asks for; JoeyNMT's own fixes other special ids."""

    def __init__(self, workload: Workload) -> None:
        self.size = workload.vocab
        self.pad_index, self.bos_index = workload.pad, workload.bos
        self.eos_index, self.unk_index = workload.eos, workload.unk
        self.sep_index = None
        self.specials: list[str] = []
        self.lang_tags: list[str] = []

    def __len__(self) -> int:
        return self.size


def model_of(shape: dict[str, Any], workload: Workload) -> Model:
    """The model of this shape: post-norm, ReLU, tied three ways, dropout on residuals alone."""
    stack = {
        "type": "transformer", "num_layers": shape["num_layers"], "num_heads": shape["num_heads"],
        "hidden_size": shape["d_model"], "ff_size": shape["d_ff"], "dropout": shape["dropout"],
        "embeddings": {"embedding_dim": shape["d_model"], "scale": True},
        "layer_norm": "post", "activation": "relu",
    }  # fmt: skip
    config = {
        "encoder": stack, "decoder": stack, "tied_embeddings": True, "tied_softmax": True,
        "embed_initializer": "normal", "embed_init_weight": shape["d_model"] ** -0.5,
    }  # fmt: skip
    words = Words(workload)
    model = build_model(config, words, words)
    for module in model.modules():
        # The same regularisation as everybody's: what is dropped beside it costs time.
        if isinstance(module, MultiHeadedAttention):
            module.dropout.p = 0.0
        elif isinstance(module, PositionwiseFeedForward):
            module.pwff_layer[2].p = 0.0
    return model


class JoeyLoop(Loop):
    """Its own batch, loss and normalisation."""

    model: Model

    def _loss(self, ids: Ids, smoothing: float) -> Tensor:
        self.model.loss_function = ("crossentropy", smoothing)
        batch = Batch(
            src=ids.src, src_length=ids.src_lengths, src_prompt_mask=None,
            trg=torch.cat([ids.tgt_in[:, :1], ids.tgt_out], 1), trg_prompt_mask=None,
            indices=ids.src_lengths, device=self.device,
            pad_index=self.workload.pad, eos_index=self.workload.eos,
        )  # fmt: skip
        total, *_ = self.model(return_type="loss", **vars(batch))
        loss: Tensor = batch.normalize(total, "tokens")
        return loss + self._entropy(smoothing)

    def _entropy(self, smoothing: float) -> float:
        """Of a smoothed target: JoeyNMT takes the divergence from it, others the cross-entropy."""
        if not smoothing:
            return 0.0
        other = smoothing / (self.workload.vocab - 2)
        return -(1 - smoothing) * math.log(1 - smoothing) - smoothing * math.log(other)


def build(job: dict[str, Any]) -> tuple[Handlers, dict[str, Any]]:
    """Training alone."""
    torch.manual_seed(1)
    workload = Workload(job["workload"])
    model = model_of(job["shape"], workload)
    loop = JoeyLoop(job, model, model)
    ready = loop.ready("float32, its own loss, fused Adam", joeynmt=joeynmt.__version__)
    return loop.handlers, ready


if __name__ == "__main__":
    run(build)
