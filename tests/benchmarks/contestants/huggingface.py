"""Hugging Face `MarianMTModel`, trained."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import MarianConfig, MarianMTModel

from ..worker import Handlers, Workload, run
from .torch_loop import Ids, Loop

LONGEST = 1024  # positions in the table


def model_of(shape: dict[str, Any], workload: Workload) -> MarianMTModel:
    """The model of this shape: post-norm, ReLU, tied three ways, dropout on residuals alone."""
    stack = {
        f"{side}_{name}": shape[key]
        for side in ("encoder", "decoder")
        for name, key in (
            ("layers", "num_layers"), ("ffn_dim", "d_ff"), ("attention_heads", "num_heads")
        )
    }  # fmt: skip
    config = MarianConfig(
        **stack, d_model=shape["d_model"], vocab_size=shape["vocab"], dropout=shape["dropout"],
        attention_dropout=0.0, activation_dropout=0.0, activation_function="relu",
        scale_embedding=True, max_position_embeddings=LONGEST, init_std=shape["d_model"] ** -0.5,
        share_encoder_decoder_embeddings=True, tie_word_embeddings=True,
        pad_token_id=workload.pad, bos_token_id=workload.bos, eos_token_id=workload.eos,
        decoder_start_token_id=workload.bos, forced_eos_token_id=None, use_cache=False,
        attn_implementation="sdpa",
    )  # fmt: skip
    return MarianMTModel(config)


def xavier(model: nn.Module) -> None:
    """The usual initial weights; Marian's own would need another learning rate."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.xavier_uniform_(module.weight)


def build(job: dict[str, Any]) -> tuple[Handlers, dict[str, Any]]:
    """Training alone."""
    torch.manual_seed(1)
    model = model_of(job["shape"], Workload(job["workload"]))
    xavier(model)

    def logits(ids: Ids) -> Tensor:
        real = torch.arange(ids.src.size(1), device=ids.src.device) < ids.src_lengths[:, None]
        found: Tensor = model(
            input_ids=ids.src, attention_mask=real.long(), decoder_input_ids=ids.tgt_in
        ).logits
        return found

    loop = Loop(job, model, logits)
    words = "float32" if loop.precision == "float32" else "bfloat16 autocast"
    compiled = ", torch.compile" if "+compile" in job["setting"] else ""
    ready = loop.ready(
        f"{words}, SDPA, fused Adam{compiled}", transformers=transformers.__version__
    )
    return loop.handlers, ready


if __name__ == "__main__":
    run(build)
