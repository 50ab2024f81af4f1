"""eole, trained: its model and its loss. Settings: `float32` and `bf16` (autocast).

Its decoder is pre-norm and knows nothing else, so its encoder is pre-norm, too. On a CPU it does
not use torch's fused attention.
"""

from typing import Any

import eole
import torch
from eole.config.run import TrainConfig
from eole.models.model import EncoderDecoderModel
from eole.modules.transformer_mlp import MLP
from eole.utils.loss import LossCompute
from torch import Tensor

from ..worker import Handlers, Workload, run
from .torch_loop import Ids, Loop


def config_of(job: dict[str, Any]) -> TrainConfig:
    """This shape, tied three ways, with dropout on residuals alone."""
    shape = job["shape"]
    model = {
        "architecture": "transformer", "layers": shape["num_layers"], "heads": shape["num_heads"],
        "hidden_size": shape["d_model"], "transformer_ff": shape["d_ff"],
        "embeddings": {"word_vec_size": shape["d_model"]},
        "add_qkvbias": True, "add_final_linear_bias": True, "add_ffnbias": True,
        "generator_bias": False, "share_embeddings": True, "share_decoder_embeddings": True,
    }  # fmt: skip
    training = {
        "dropout": [shape["dropout"]], "attention_dropout": [0.0],
        "param_init_method": "xavier_uniform", "log_attention_entropy": False,
    }  # fmt: skip
    return TrainConfig(src_vocab="", tgt_vocab="", data={}, model=model, training=training)


def vocabulary_of(workload: Workload) -> dict[str, Any]:
    """Ids in place of words, for only ids are ever looked at."""
    words = {str(id_): id_ for id_ in range(workload.vocab)}
    special = {f"{name}_token": str(getattr(workload, name)) for name in ("pad", "eos", "unk")}
    return {"src": words, "tgt": words, "specials": special}


def model_of(config: TrainConfig, vocabulary: dict[str, Any]) -> EncoderDecoderModel:
    """The model, on the CPU."""
    model = EncoderDecoderModel.for_training(
        config.model, vocabulary, config.training, device_id=-1
    )
    for module in model.modules():
        # The same regularisation as everybody's: what is dropped beside it costs time.
        if isinstance(module, MLP):
            module.dropout_1.p = 0.0
    return model


class EoleLoop(Loop):
    """Its own loss, on batches as its trainer has them."""

    own_loss: LossCompute

    def _loss(self, ids: Ids, smoothing: float) -> Tensor:
        self.own_loss.criterion.label_smoothing = smoothing
        tgt = torch.cat([ids.tgt_in[:, :1], ids.tgt_out], 1)
        batch = {"tgt": tgt, "srclen": ids.src_lengths, "cid": [], "cid_line_number": []}
        with self._autocast():
            hidden, attentions, _ = self.model(ids.src, tgt, ids.src_lengths)
            total, _, _ = self.own_loss(batch, hidden, attentions)
        mean: Tensor = total / ids.tgt_lengths.sum()
        return mean


def build(job: dict[str, Any]) -> tuple[Handlers, dict[str, Any]]:
    """Training alone."""
    torch.manual_seed(1)
    config, vocabulary = config_of(job), vocabulary_of(Workload(job["workload"]))
    model = model_of(config, vocabulary)
    loop = EoleLoop(job, model, model)
    loop.own_loss = LossCompute.from_config(config, model, vocabulary)
    words = "float32" if loop.precision == "float32" else "bfloat16 autocast"
    ready = loop.ready(f"{words}, pre-norm, its own loss, fused Adam", eole=eole.__version__)
    return loop.handlers, ready


if __name__ == "__main__":
    run(build)
