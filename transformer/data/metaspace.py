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
from collections.abc import Callable

import tokenizers as hf
from tokenizers import decoders, models, normalizers, processors

from transformer.data.charsmap import CharsMap
from transformer.data.vocabulary import EOS, SPECIALS, UNK, Vocabulary

SPACE, HIDDEN = "▁", " "


class Metaspace(Vocabulary):
    """A vocabulary whose file `metaspace_file` wrote. An unknown run of characters is one piece."""

    def __init__(self, library: hf.Tokenizer) -> None:
        super().__init__(library)
        end = library.token_to_id(HIDDEN)
        self.size = self.size if end is None else int(end)
        self._ids = {
            self.entry(i).removeprefix(HIDDEN): i for i in range(len(self.specials), self.size)
        }
        self._characters: Callable[[str], str] = str
        steps = list(library.normalizer)
        if isinstance(steps[0], normalizers.Precompiled):  # which is not exact
            state = json.loads(steps[0].__getstate__())
            self._characters = CharsMap(base64.b64decode(state["precompiled_charsmap"]))
            library.normalizer = normalizers.Sequence(steps[1:])

    def encode(self, lines: list[str]) -> list[list[int]]:
        """The ids of each line, EOS last."""
        lines = [self._characters(line) for line in lines]
        ids = super().encode(lines)
        odd = [n for n, line in enumerate(ids) if UNK in line or max(line) >= self.size]
        encodings = self.library.encode_batch([lines[n] for n in odd])
        for n, encoding in zip(odd, encodings, strict=True):
            ids[n] = [*(self._ids.get(token, UNK) for token in encoding.tokens[:-1]), EOS]
        return ids

    def pieces(self, ids: list[int]) -> list[str]:
        """The texts, of which most words begin with a space."""
        return [self.specials.get(i) or self.spelled(i).decode() for i in ids]

    def spelled(self, i: int) -> bytes:
        """The text of a piece."""
        return self.entry(i).removeprefix(HIDDEN).replace(SPACE, " ").encode()

    def _normalize(self, text: str) -> str:
        return self._characters(text)

    def cut(self, piece: bytes) -> list[int]:
        """The pieces of the text, if it is whole characters that this side knows."""
        try:
            text = piece.decode().replace(" ", SPACE)
        except UnicodeDecodeError:
            return []
        ids = [self._ids.get(token.value, UNK) for token in self.library.model.tokenize(text)]
        return [] if UNK in ids else ids


def metaspace_file(
    specials: list[str],
    pieces: list[str],
    scores: dict[str, float],
    table: bytes,
    prefix: bool = True,
) -> str:
    """A `tokenizer.json` that cuts text as a unigram model does (Kudo 2018).

    Args:
        specials: The special tokens and tags, which have the first ids.
        pieces: The pieces that have the next ids.
        scores: Piece -> log probability, of those that text is cut into.
        table: What characters are normalised to (see `CharsMap`); empty for none.
        prefix: A space is put before the text.

    Raises:
        UserError: The table is damaged.
    """
    if table:
        CharsMap(table)
    without_id = scores.keys() - {*pieces}
    entries = [(HIDDEN + special, 0.0) for special in specials]
    entries += [(p, scores[p]) if p in scores else (HIDDEN + p, 0.0) for p in pieces]
    if without_id:
        entries += [(HIDDEN, 0.0), *((piece, scores[piece]) for piece in sorted(without_id))]
    tokenizer = hf.Tokenizer(models.Unigram(entries, UNK))
    tokenizer.add_special_tokens([HIDDEN + special for special in specials])
    tokenizer.normalizer = normalizers.Sequence(_steps(table, prefix))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {SPECIALS[EOS]}", special_tokens=[(SPECIALS[EOS], EOS)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(hf.Regex(rf"\A{HIDDEN}"), ""),
            decoders.Replace(SPACE, " "),
            decoders.Fuse(),
            decoders.Replace(hf.Regex(r"\A\s+|\s+\z"), ""),
        ]
    )
    return str(tokenizer.to_str(pretty=True))


def _steps(table: bytes, prefix: bool) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(table)] if table else []
    # Spaces at the ends are dropped, and several become one.
    steps.append(normalizers.Replace(hf.Regex(rf"\A +|[ {SPACE}]+\z"), ""))
    steps.append(normalizers.Replace(hf.Regex(" {2,}"), " "))
    if prefix:
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]
