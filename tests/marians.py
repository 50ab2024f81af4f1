"""Small Marian models of Hugging Face, as OPUS-MT's folders are, and bundles made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from marian_sides import write_sides
from toys import sentences
from transformers import GenerationConfig, MarianConfig, MarianMTModel, MarianTokenizer

LANGUAGES = ("--src", "de", "--tgt", "en")
PAIRS = sentences(80, seed=1)
TEXTS = [[pair[side] for pair in PAIRS] for side in (0, 1)]
SHAPE = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "max_position_embeddings": 64, "scale_embedding": True, "dropout": 0.0,
}  # fmt: skip


def marian(folder: Path, tags: tuple[str, ...] = (), **config: Any) -> Path:
    """Writes a folder `opus-mt-de-en` of a model that has learned a little, and returns it.

    Args:
        folder: where the folder is made.
        tags: language codes in the vocabulary.
        config: settings of `MarianConfig` that differ from `SHAPE`.
    """
    path = write_sides(folder / "opus-mt-de-en", TEXTS, size=80, tags=tags)
    tokenizer = MarianTokenizer.from_pretrained(path)
    size, pad = len(tokenizer.encoder), tokenizer.pad_token_id
    ids = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0}
    torch.manual_seed(0)
    model: Any = MarianMTModel(MarianConfig(vocab_size=size, **ids, **{**SHAPE, **config}))
    learn(model, tokenizer, tags[0] if tags else None)
    model.generation_config = GenerationConfig(
        **ids,
        max_length=64,
        bad_words_ids=[[pad]],
        forced_eos_token_id=0,
        num_beams=3,
        renormalize_logits=True,
    )  # fmt: skip
    model.save_pretrained(path)
    return path


def learn(model: Any, tokenizer: MarianTokenizer, tag: str | None) -> None:
    """Steps until translations end and depend on the source; the bias of the logits learns, too."""
    code = f">>{tag}<< " if tag else ""
    batch = tokenizer(
        [code + text for text in TEXTS[0]], text_target=TEXTS[1], padding=True, return_tensors="pt"
    )
    batch["labels"][batch["labels"] == tokenizer.pad_token_id] = -100
    bias = torch.nn.Parameter(torch.randn_like(model.final_logits_bias) * 0.5)
    del model.final_logits_bias
    model.register_parameter("final_logits_bias", bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(60):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    del model.final_logits_bias
    model.register_buffer("final_logits_bias", bias.detach())
    model.eval()
