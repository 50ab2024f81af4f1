"""Tokenizers of Hugging Face Marian models (OPUS-MT) in the house's own form.

Such a model has two SentencePiece models (Kudo and Richardson 2018), each of which cuts the text of
its side, and one vocabulary that numbers the pieces of both. They become two files of
`tokenizers`, which need no SentencePiece any more.
"""

import json
import re
from pathlib import Path
from typing import Any

from transformer.data.tokenizer import SPECIALS, SRC_FILE, TGT_FILE, Tokenizer, metaspace_file
from transformer.errors import UserError
from transformer.interop import needs

#: The house's special ids -> how Marian writes them: it begins its translations with `<pad>`.
MARIAN_SPECIALS = ("<pad>", "<pad>", "</s>", "<unk>")
TAG = re.compile(r">>(.+)<<", re.DOTALL)


def tokenizer_of(folder: Path) -> tuple[Tokenizer, list[int]]:
    """The tokenizer of a Hugging Face Marian folder: source.spm, target.spm and vocab.json.

    It encodes as `transformers.MarianTokenizer` does, which normalises no punctuation, and decodes
    as that does without special tokens. Two things differ, as text is text here: one that spells
    `</s>`, `<pad>` or `<unk>` (Marian: with `split_special_tokens=True`), and one that begins with
    a language code such as `>>fra<<`. The codes in the vocabulary are the tokenizer's tags: what is
    `>>fra<< Hello` there is `Hello` with `to="fra"` here.

    Args:
        folder: Holds the three files; `config.json` and `tokenizer_config.json` are read if there.

    Returns:
        The tokenizer, and for each of its ids Marian's. BOS and PAD have the same.

    Raises:
        UserError: A file is missing, damaged, or of a kind that cannot be had exactly.
    """
    ids = _vocabulary(folder)
    tags = [piece for piece in ids if TAG.fullmatch(piece)]
    pieces = [piece for piece in ids if piece not in {*MARIAN_SPECIALS, *tags}]
    specials = [*SPECIALS, *(TAG.sub(r"<2\1>", tag) for tag in tags)]
    sides = {SRC_FILE: "source.spm", TGT_FILE: "target.spm"}
    files = {name: _side(folder / spm, specials, pieces) for name, spm in sides.items()}
    return Tokenizer(files), [ids[piece] for piece in (*MARIAN_SPECIALS, *tags, *pieces)]


def _vocabulary(folder: Path) -> dict[str, int]:
    """Piece -> id, in the order of the ids."""
    path = folder / "vocab.json"
    if _json(folder / "tokenizer_config.json").get("separate_vocabs"):
        raise UserError(
            f"{folder / 'tokenizer_config.json'}: separate_vocabs is true: "
            "only models with one vocab.json for both languages can be read"
        )
    if not path.is_file():
        raise UserError(f"{path} is missing: copy it from where the model came")
    ids = _json(path)
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{path}: its ids are not 0 to {len(ids) - 1}: copy the file again")
    config = _json(folder / "config.json")
    for special, key in (("<unk>", None), ("</s>", "eos_token_id"), ("<pad>", "pad_token_id")):
        if special not in ids:
            raise UserError(f"{path}: {special} is missing: it is no vocabulary of Marian's")
        if config.get(key, ids[special]) != ids[special]:
            raise UserError(
                f"{path}: {special} has id {ids[special]}, but {key} in config.json is "
                f"{config[key]}: take both files from one model"
            )
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def _json(path: Path) -> dict[Any, Any]:
    """A file's object; an empty one for a file that is not there."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): copy the file again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object: copy the file again")
    return found


def _side(spm: Path, specials: list[str], pieces: list[str]) -> str:
    """A `tokenizer.json` that cuts text as a SentencePiece model does."""
    model = _read(spm)
    rules = model.normalizer_spec
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == piece.NORMAL}
    try:
        return metaspace_file(
            specials, pieces, scores, rules.precompiled_charsmap,
            prefix=rules.add_dummy_prefix,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"{spm}: {error}: copy the file again") from None


def _read(path: Path) -> Any:
    """The protobuf message of a SentencePiece model that can be had exactly."""
    messages = needs("sentencepiece.sentencepiece_model_pb2", "hf")
    damaged = needs("google.protobuf.message", "hf").DecodeError
    model = messages.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing: copy it from where the model came") from None
    except damaged as error:
        raise UserError(
            f"{path} is no SentencePiece model ({error}): copy the file again"
        ) from None
    if not model.pieces or not model.HasField("normalizer_spec"):
        raise UserError(f"{path} is no whole SentencePiece model: copy the file again")
    trainer, spec = model.trainer_spec, model.normalizer_spec
    kinds = {piece.type for piece in model.pieces}
    piece = model.SentencePiece
    unlike = {
        "a model_type other than unigram": trainer.model_type != trainer.UNIGRAM,
        "byte_fallback": trainer.byte_fallback or piece.BYTE in kinds,
        "user_defined_symbols": piece.USER_DEFINED in kinds,
        "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
        "remove_extra_whitespaces off": not spec.remove_extra_whitespaces,
        "escape_whitespaces off": not spec.escape_whitespaces,
        "a denormalizer": bool(model.denormalizer_spec.precompiled_charsmap),
    }
    if found := [name for name, has in unlike.items() if has]:
        raise UserError(f"{path} was trained with {', '.join(found)}: such a model cannot be read")
    return model
