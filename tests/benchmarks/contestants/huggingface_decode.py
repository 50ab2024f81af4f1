"""Hugging Face `generate` with the weights of a bundle. Settings: `float32` and `bf16`."""

import time
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, MarianMTModel

from ..worker import Handlers, Ids, Workload, by_length, run, translated
from .huggingface import LONGEST, model_of
from .weights import Bundle, Names, read_bundle, renamed, sinusoids, until

ATTENTION = ("q_proj", "k_proj", "v_proj")
COMMON = {
    "self_attention.input_projection": tuple(f"self_attn.{name}" for name in ATTENTION),
    "self_attention.output_projection": ("self_attn.out_proj",),
    "feed_forward.inner": ("fc1",),
    "feed_forward.outer": ("fc2",),
    "residuals.0.norm": ("self_attn_layer_norm",),
}
NAMES: Names = {
    "encoder": {**COMMON, "residuals.1.norm": ("final_layer_norm",)},
    "decoder": {
        **COMMON,
        "cross_attention.input_projection": tuple(f"encoder_attn.{name}" for name in ATTENTION),
        "cross_attention.output_projection": ("encoder_attn.out_proj",),
        "residuals.1.norm": ("encoder_attn_layer_norm",),
        "residuals.2.norm": ("final_layer_norm",),
    },
}


def build(job: dict[str, Any]) -> tuple[Handlers, dict[str, Any]]:
    """Decoding alone."""
    workload = Workload(job["workload"])
    model = filled(read_bundle(job["bundle"]), workload).to(job["device"])
    if job["setting"] == "bf16":
        model = model.to(torch.bfloat16)

    def translate(command: dict[str, Any]) -> dict[str, Any]:
        src = workload.test_src[: command["sentences"]]
        found: Ids = [[] for _ in src]
        start = time.perf_counter()
        for rows in by_length(src, command["batch"]):
            best = generate(model, [src[row] for row in rows], job)
            for row, ids in zip(rows, best, strict=True):
                found[row] = ids
        return translated(time.perf_counter() - start, src, found)

    return {"translate": translate}, {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "setting": f"{job['setting']}, SDPA, length^{job['alpha']}",
    }


def filled(bundle: Bundle, workload: Workload) -> MarianMTModel:
    """The model of the bundle."""
    model = model_of({**bundle.network, "vocab": workload.vocab}, workload)
    arrays = renamed(bundle.layers, "model.{stack}.layers.{index}", NAMES)
    # Marian has sines in the first half of a position's vector and cosines in the second: with
    # another table of the same size it computes the same as the model that was trained.
    table = sinusoids(LONGEST, bundle.network["d_model"])
    arrays |= {f"model.{stack}.embed_positions.weight": table for stack in NAMES}
    arrays["model.shared.weight"] = bundle.embedding
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = ("embed_tokens.weight", "lm_head.weight", "final_logits_bias")
    assert not unexpected and all(name.endswith(tied) for name in missing), (missing, unexpected)
    return model.eval()


@torch.inference_mode()
def generate(model: MarianMTModel, src: Ids, job: dict[str, Any]) -> Ids:
    """The best hypothesis of each sentence of a batch."""
    config = model.config
    longest = max(map(len, src))
    rows = [[*row, *[config.pad_token_id] * (longest - len(row))] for row in src]
    ids = torch.tensor(rows, device=model.device)
    found = model.generate(
        input_ids=ids,
        attention_mask=(ids != config.pad_token_id).long(),
        generation_config=GenerationConfig(
            num_beams=job["beam"], length_penalty=job["alpha"], early_stopping=True,
            max_new_tokens=longest + job["max_extra"], use_cache=True,
            pad_token_id=config.pad_token_id, eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        ),
    )  # fmt: skip
    return [until(row[1:], config.eos_token_id) for row in found.tolist()]


if __name__ == "__main__":
    run(build)
