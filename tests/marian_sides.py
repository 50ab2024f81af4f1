"""Tokenizer files of a Hugging Face Marian model, made of any two texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece


def write_sides(
    folder: Path,
    texts: Sequence[list[str]],
    size: int = 700,
    tags: Iterable[str] = (),
    left_out: int = 0,
    **options: Any,
) -> Path:
    """Writes source.spm, target.spm and vocab.json, as those of an OPUS-MT model.

    Args:
        folder: Is made.
        texts: Lines of the source and of the target.
        size: Pieces of each side.
        tags: Language codes, such as `fra`, in the vocabulary.
        left_out: Every so many-th piece is missing in the vocabulary; 0 for none.
        options: Of SentencePiece's trainer.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pieces: dict[str, None] = {}
    for side, lines in zip(("source", "target"), texts, strict=True):
        with (folder / f"{side}.spm").open("wb") as file:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines), model_writer=file, vocab_size=size,
                hard_vocab_limit=False, minloglevel=2, num_threads=1, **options,
            )  # fmt: skip
        model = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        named = (i for i in range(len(model)) if not (model.is_control(i) or model.is_unknown(i)))
        pieces |= dict.fromkeys(model.id_to_piece(i) for i in named)
    kept = [piece for i, piece in enumerate(pieces, 1) if not left_out or i % left_out]
    kept[7:7] = [f">>{tag}<<" for tag in tags]
    ids = {piece: i for i, piece in enumerate(["</s>", "<unk>", *kept, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(ids))
    special = {"eos_token_id": 0, "pad_token_id": len(ids) - 1}
    config = {"model_type": "marian", "vocab_size": len(ids), **special}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "ko"}))
    return folder
