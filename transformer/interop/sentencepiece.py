"""Tokenizers of Hugging Face folders in the house's form, and out again.

A Marian model (OPUS-MT) has two SentencePiece models, each of which cuts the text of its side, and
one vocabulary that numbers the pieces of both. They become two files of `tokenizers`, which need no
SentencePiece any more, and can become three such files again.
"""

import json
import re
from pathlib import Path
from typing import Any

from transformer.data.tokenizer import (
    SHARED_FILE,
    SPECIALS,
    SRC_FILE,
    TGT_FILE,
    UNK,
    Metaspace,
    Tokenizer,
    metaspace_file,
    metaspace_rules,
)
from transformer.errors import UserError
from transformer.interop.spm import read_spm, write_spm
from transformer.settings import parsed

SIDES = {SRC_FILE: "source.spm", TGT_FILE: "target.spm"}
CONFIG = "tokenizer_config.json"
TAG = re.compile(r">>(.+)<<", re.DOTALL)


def tokenizer_of(folder: Path) -> tuple[Tokenizer, list[int]]:
    """The tokenizer of a Hugging Face Marian folder: source.spm, target.spm and vocab.json.

    It encodes as `transformers.MarianTokenizer` does, which normalises no punctuation, and decodes
    as that does without special tokens. Two things differ, as text is text here: one that spells
    `</s>`, `<pad>` or `<unk>` (Marian: with `split_special_tokens=True`), and one that begins with
    a language code such as `>>fra<<`. The codes in the vocabulary are the tokenizer's tags: what is
    `>>fra<< Hello` there is `Hello` with `to="fra"` here.

    A folder without them is read if it holds what `write_hf_tokenizer` made of other tokenizers.

    Args:
        folder: Holds the three files, and `config.json`, whose `decoder_start_token_id` is BOS.

    Returns:
        The tokenizer, and for each of its ids Marian's. BOS has that of `<pad>` in most models.

    Raises:
        UserError: A file is missing, damaged, or of a kind that cannot be had exactly.
    """
    if not (folder / "vocab.json").is_file() and (folder / "tokenizer.json").is_file():
        return _exported(folder)
    ids = _vocabulary(folder)
    start = _json(folder / "config.json").get("decoder_start_token_id", ids["<pad>"])
    first = next((piece for piece, i in ids.items() if i == start), "<pad>")
    marked = ["<pad>", first, "</s>", "<unk>"]
    tags = [piece for piece in ids if TAG.fullmatch(piece)]
    rest = [piece for piece in ids if piece not in {*marked, *tags}]
    specials = [*SPECIALS, *(TAG.sub(r"<2\1>", tag) for tag in tags)]
    pieces = [f"{piece} " if piece in SPECIALS else piece for piece in rest]  # an unused <s>
    clean = _json(folder / CONFIG).get("clean_up_tokenization_spaces", False)
    files = {name: _side(folder / spm, specials, pieces, clean) for name, spm in SIDES.items()}
    return Tokenizer(files), [ids[piece] for piece in (*marked, *tags, *rest)]


def _vocabulary(folder: Path) -> dict[str, int]:
    """Piece -> id, in the order of the ids."""
    path = folder / "vocab.json"
    if _json(folder / CONFIG).get("separate_vocabs"):
        raise UserError(
            f"{folder / CONFIG}: separate_vocabs is true: "
            "only models with one vocab.json for both languages can be read"
        )
    if not path.is_file():
        raise UserError(f"{path} is missing: copy it from where the model came")
    ids = _json(path)
    if {*map(repr, ids.values())} != {*map(repr, range(len(ids)))}:
        raise UserError(f"{path}: its ids are not 0 to {len(ids) - 1}: copy the file again")
    for special in ("</s>", "<unk>", "<pad>"):
        if special not in ids:
            raise UserError(f"{path}: {special} is missing: it is no vocabulary of Marian's")
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def _json(path: Path) -> dict[Any, Any]:
    """A file's object; an empty one for a file that is not there."""
    return parsed(path.read_bytes(), path) if path.is_file() else {}


def _side(spm: Path, specials: list[str], pieces: list[str], clean: bool) -> str:
    rules = read_spm(spm)._replace(clean=clean)
    try:
        return metaspace_file(specials, pieces, rules)
    except ValueError as error:
        raise UserError(f"{spm}: {error}: copy the file again") from None


def _exported(folder: Path) -> tuple[Tokenizer, list[int]]:
    """Reads the `tokenizer.json`s that `write_hf_tokenizer` wrote; the ids are the same."""
    paths = [folder / "tokenizer.json", folder / "target" / "tokenizer.json"]
    files = [_json(path) for path in paths if path.is_file()]
    for token in (token for file in files for token in file.get("added_tokens", ())):
        token["special"] = True  # a tag is
    texts = [json.dumps(file) for file in files]
    names = (SHARED_FILE,) if len(texts) == 1 else (SRC_FILE, TGT_FILE)
    try:
        tokenizer = Tokenizer(dict(zip(names, texts, strict=True)))
    except ValueError as error:
        raise UserError(
            f"{folder}: {error}: it must hold source.spm, target.spm and vocab.json, or what "
            "`transformer export hf` writes"
        ) from None
    return tokenizer, list(range(max(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)))


def write_hf_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes files of which `AutoTokenizer.from_pretrained(folder)` gives the same ids, and text.

    - SentencePiece's pieces: source.spm, target.spm and vocab.json, as those of any Marian model;
      one tokenizer for both languages.
    - One vocabulary: tokenizer.json.
    - Two: the source's tokenizer.json, and the target's in the subfolder `target`
      (`AutoTokenizer.from_pretrained(folder, subfolder="target")`).

    Text that spells `</s>` stays text, by `split_special_tokens` in tokenizer_config.json. What
    cannot be carried: a tag stands in the text (`code_of`), so that text that spells one is one; a
    tag that a model of words writes is shown; and where SentencePiece knows none of the characters
    of `</s>`, it is the special token.

    Args:
        tokenizer: Whose ids those of the exported model are.
        folder: Where to write; it is there.
        max_length: Of the model's sources, in tokens with EOS.
    """
    side = tokenizer.side("src")
    if isinstance(side, Metaspace):
        names = [side.piece(i) for i in range(side.size)]
        names[len(SPECIALS) : len(side.specials)] = [f">>{tag}<<" for tag in tokenizer.tags]
        _dump(folder / "vocab.json", {name: i for i, name in enumerate(names)})
        rules = {spm: metaspace_rules(tokenizer.to_text()[name]) for name, spm in SIDES.items()}
        for spm, its_rules in rules.items():
            write_spm(its_rules, folder / spm)
        _configure(
            folder,
            "MarianTokenizer",
            max_length,
            clean_up_tokenization_spaces=rules["target.spm"].clean,
            additional_special_tokens=names[len(SPECIALS) : len(side.specials)],  # not written
        )
        return
    for name, text in tokenizer.to_text().items():
        place = folder / "target" if name == TGT_FILE else folder
        place.mkdir(exist_ok=True)
        _dump(place / "tokenizer.json", _library_form(text))
        _configure(place, "PreTrainedTokenizerFast", max_length)


def code_of(tokenizer: Tokenizer, to: str | None) -> str:
    """What stands right before the text of a source in the exported folder; empty without tags."""
    if not tokenizer.tags:
        return ""
    return f">>{to}<< " if isinstance(tokenizer.side("src"), Metaspace) else f"<2{to}>"


def _library_form(text: str) -> dict[str, Any]:
    """A `tokenizer.json` that does on its own what the house does around its own file."""
    file: dict[str, Any] = json.loads(text)
    tags = [token for token in file["added_tokens"] if token["id"] > UNK]
    for token in tags:  # they are read in text
        token["special"] = False
    if file["model"]["type"] == "WordLevel":  # the special tokens are words of the vocabulary
        words = "|".join(map(re.escape, SPECIALS))
        steps = [file["normalizer"], _replace(rf"(?<!\S)(?:{words})(?!\S)", SPECIALS[UNK])]
        file["normalizer"] = {"type": "Sequence", "normalizers": steps}
    elif tags:  # and not written
        words = "|".join(re.escape(token["content"]) for token in tags)
        steps = [_replace(rf"\A(?:{words})\z", ""), file["decoder"]]
        file["decoder"] = {"type": "Sequence", "decoders": steps}
    return file


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _configure(folder: Path, kind: str, max_length: int, **more: Any) -> None:
    names = ("pad_token", "bos_token", "eos_token", "unk_token")
    _dump(
        folder / CONFIG,
        {
            "tokenizer_class": kind,
            **dict(zip(names, SPECIALS, strict=True)),
            "model_max_length": max_length,
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            **more,
        },
    )


def _dump(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
