"""SentencePiece models (Kudo and Richardson 2018), read and written without their library."""

from pathlib import Path
from typing import Any

from transformer.data.tokenizer import Rules
from transformer.errors import UserError
from transformer.interop import needs


def read_spm(path: Path) -> Rules:
    """How a SentencePiece model cuts text.

    Raises:
        UserError: The file is missing or damaged, or the model is none that can be had exactly.
    """
    model = _message(path)
    _check(model, path)
    rules = model.normalizer_spec
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == piece.NORMAL}
    return Rules(scores, rules.precompiled_charsmap, rules.add_dummy_prefix)


def _message(path: Path) -> Any:
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
    return model


def _check(model: Any, path: Path) -> None:
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


def write_spm(rules: Rules, path: Path) -> None:
    """Writes a SentencePiece model that cuts text in the same way."""
    model: Any = needs("sentencepiece.sentencepiece_model_pb2", "hf").ModelProto()
    kinds = model.SentencePiece
    for piece, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        model.pieces.add(piece=piece, score=0.0, type=kind)
    for piece, score in rules.scores.items():
        model.pieces.add(piece=piece, score=score)
    model.trainer_spec.model_type = model.trainer_spec.UNIGRAM
    model.trainer_spec.vocab_size = len(model.pieces)
    model.normalizer_spec.precompiled_charsmap = rules.table
    model.normalizer_spec.add_dummy_prefix = rules.prefix
    path.write_bytes(model.SerializeToString())
