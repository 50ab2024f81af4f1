"""Pieces as SentencePiece has them: whole characters, and `▁` for a space.

Two languages may share one vocabulary while the text of each is cut by a model of its own. The
entries of a side's file are those of all ids. Text is never cut into one that begins with a space,
as none has a space left when it is cut: so are written special tokens and pieces that only the
other side's text is cut into. An entry that is nothing but a space ends the ids; behind it come
pieces that text is cut into but that have no id.
"""

from __future__ import annotations

import base64
import json
from typing import NamedTuple

import tokenizers as hf
from tokenizers import decoders, models, normalizers, processors

from transformer.data.charsmap import CharsMap
from transformer.data.vocabulary import EOS, SPECIALS, UNK, Vocabulary

SPACE, HIDDEN = "▁", " "
CLEAN = (
    decoders.Replace(hf.Regex(" (?=[.?!,])"), ""),
    decoders.Replace(" ' ", "'"),
    decoders.Replace(hf.Regex(" (?=n't|'m|'s|'ve|'re)"), ""),
)


class Metaspace(Vocabulary):
    """A vocabulary whose file `metaspace_file` wrote. An unknown run of characters is one piece."""

    def __init__(self, library: hf.Tokenizer) -> None:
        super().__init__(library)
        end = library.token_to_id(HIDDEN)
        self.size = self.size if end is None else int(end)
        self._ids = {self.piece(i): i for i in range(len(self.specials), self.size)}
        self.normalize = str
        steps = list(library.normalizer)
        if isinstance(steps[0], normalizers.Precompiled):  # which is not exact
            state = json.loads(steps[0].__getstate__())
            self.normalize = CharsMap(base64.b64decode(state["precompiled_charsmap"]))
            library.normalizer = normalizers.Sequence(steps[1:])

    def encode(self, lines: list[str]) -> list[list[int]]:
        lines = [self.normalize(line) for line in lines]
        ids = super().encode(lines)
        odd = [n for n, line in enumerate(ids) if UNK in line or max(line) >= self.size]
        encodings = self.library.encode_batch([lines[n] for n in odd])
        for n, encoding in zip(odd, encodings, strict=True):
            ids[n] = [*(self._ids.get(token, UNK) for token in encoding.tokens[:-1]), EOS]
        return ids

    def pieces(self, ids: list[int]) -> list[str]:
        return [self.specials.get(i) or self.spelled(i).decode() for i in ids]

    def spelled(self, i: int) -> bytes:
        return self.piece(i).replace(SPACE, " ").encode()

    def piece(self, i: int) -> str:
        """How SentencePiece writes a piece."""
        return self.entry(i).removeprefix(HIDDEN)

    def cut(self, piece: bytes) -> list[int]:
        try:
            text = piece.decode().replace(" ", SPACE)
        except UnicodeDecodeError:
            return []
        ids = [self._ids.get(token.value, UNK) for token in self.library.model.tokenize(text)]
        return [] if UNK in ids else ids


class Rules(NamedTuple):
    """What a SentencePiece model says of how text is cut.

    Args:
        scores: Piece -> log probability, of those that text is cut into.
        table: What characters are normalised to (see `CharsMap`); empty for none.
        prefix: Whether a space is put before the text.
        clean: Whether text is written without spaces before punctuation, as Hugging Face does where
            `clean_up_tokenization_spaces` is set.
    """

    scores: dict[str, float]
    table: bytes
    prefix: bool
    clean: bool = False


def metaspace_file(specials: list[str], pieces: list[str], rules: Rules) -> str:
    """A `tokenizer.json` that cuts text as a unigram model does (Kudo 2018).

    Args:
        specials: The special tokens and tags, which have the first ids.
        pieces: The pieces that have the next ids.
        rules: How text is cut.

    Raises:
        UserError: The table of characters is damaged.
    """
    scores = rules.scores
    if rules.table:
        CharsMap(rules.table)
    without_id = scores.keys() - {*pieces}
    entries = [(HIDDEN + special, 0.0) for special in specials]
    entries += [(p, scores[p]) if p in scores else (HIDDEN + p, 0.0) for p in pieces]
    if without_id:
        entries += [(HIDDEN, 0.0), *((piece, scores[piece]) for piece in sorted(without_id))]
    tokenizer = hf.Tokenizer(models.Unigram(entries, UNK))
    tokenizer.add_special_tokens([HIDDEN + special for special in specials])
    tokenizer.normalizer = normalizers.Sequence(_steps(rules))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {SPECIALS[EOS]}", special_tokens=[(SPECIALS[EOS], EOS)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(hf.Regex(rf"\A{HIDDEN}"), ""),
            decoders.Replace(SPACE, " "),
            decoders.Fuse(),
            decoders.Replace(hf.Regex(r"\A\s+|\s+\z"), ""),
            *(CLEAN if rules.clean else ()),
        ]
    )
    return str(tokenizer.to_str(pretty=True))


def _steps(rules: Rules) -> list[normalizers.Normalizer]:
    table = [normalizers.Precompiled(rules.table)] if rules.table else []
    return [
        *table,
        normalizers.Replace(hf.Regex(rf"\A +|[ {SPACE}]+\z"), ""),
        normalizers.Replace(hf.Regex(" {2,}"), " "),
        *([normalizers.Prepend(SPACE)] if rules.prefix else []),
        normalizers.Replace(" ", SPACE),
    ]


def metaspace_rules(text: str) -> Rules:
    """What `metaspace_file` was given, from the text that it returned."""
    file = json.loads(text)
    steps = {step["type"]: step for step in file["normalizer"]["normalizers"]}
    scores = {p: score for p, score in file["model"]["vocab"] if not p.startswith(HIDDEN)}
    table = steps.get("Precompiled", {}).get("precompiled_charsmap", "")
    clean = len(file["decoder"]["decoders"]) > len(CLEAN) + 1
    return Rules(scores, base64.b64decode(table), "Prepend" in steps, clean)
