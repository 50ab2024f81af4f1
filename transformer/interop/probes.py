"""Sentences that hurt: what a copied model or tokenizer gets wrong first."""

import random
from bisect import bisect_right
from collections.abc import Callable

from transformer.data.tokenizer import UNK, Tokenizer

COUNT = 64
PIECES = 12  # of the vocabulary in a probe that is made of it
TEXTS = (
    "", " ", "   ", "\t", "a", "Z", "7", ".", "é", "가", "中", "🙂", "\u00a0", "\u200b",
    "Hello", "HELLO WORLD", "hELLO wORLD", "The CAT sat on THE mat.", "ALL CAPITALS, EVEN THIS!",
    "0", "42", "3.14159", "1,000,000.50", "-273.15 °C", "12/31/1999", "23:59:59", "1111111111",
    "https://example.org/a/b?c=d&e=%20f#g", "name.surname@example.org", "C:\\temp\\new.txt",
    "<b>bold</b> &amp; <br/>", "😀😀😀", "👩‍👩‍👧‍👦 and 🇰🇷", "café naïve cœur", "cafe\u0301",
    "ﬁne ① Ⅷ ｆｕｌｌ", "Der Fluß heißt Spree.", "나는 학교에 간다.", "東京は日本の首都です。",
    "Съешь ещё этих булок", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "</s>", "<pad>", "<unk> <s> </s> <pad>", "before </s> after", "<2xx> >>xxx<< hallo",
    "▁ ▁▁ Ġ Ċ ##ing @@ _", "  two  spaces  ", "tab\tin it", "\u201cquoted\u201d \u2018text\u2019",
)  # fmt: skip


def probes(tokenizer: Tokenizer, max_length: int, to: str | None = None) -> list[str]:
    """The 64 probes for a model: texts for all, then some that are made of its own vocabulary.

    Args:
        tokenizer: the model's.
        max_length: longest source, in tokens with EOS; longer texts are cut, three are that long.
        to: language to translate into, of a model with tags.
    """

    def size(text: str) -> int:
        return len(tokenizer.encode_src([text], to)[0])

    def cut(text: str) -> str:
        while text and size(text) > max_length:
            text = text[: len(text) * 3 // 4]
        return text

    rng = random.Random(0)
    ids = range(UNK + 1 + len(tokenizer.tags), tokenizer.src_vocab_size)
    side = tokenizer.side("src")
    own = side.decode([rng.choices(ids, k=PIECES) for _ in range(COUNT - len(TEXTS) - 3)])
    long = [_filled(text, max_length, size) for text in ("a b ", own[0] + " ", "7, ")]
    return [*map(cut, [*TEXTS, *own]), *long]


def _filled(text: str, length: int, size: Callable[[str], int]) -> str:
    """The text again and again, as much of it as fits into `length` tokens."""
    text *= length
    end = bisect_right(range(len(text)), length, key=lambda end: size(text[:end])) - 1
    while size(text[:end]) > length:  # a longer text may have fewer tokens
        end -= 1
    return text[:end]
