"""What is a loop, empty or too long, and what becomes of it; with a model that does all of these."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_commands import feed
from toys import FixedData, module, trainer
from torch import Tensor, nn

from transformer.__main__ import main
from transformer.data.tokenizer import BOS, EOS, UNK, Tokenizer, TokenizerConfig
from transformer.inference.guard import (
    count_repeats,
    find_flaw,
    flaw_rates,
    least_bad,
    probes,
    stricter,
)
from transformer.inference.search import Hypothesis, SearchConfig
from transformer.inference.translator import Translator
from transformer.models.seq2seq import Memory, Seq2Seq
from transformer.training.callbacks import TrainingLog

HABITS = ["loops", "empties", "wanders", "salad", "end"]
LETTERS = [f"w{number}" for number in range(80)]
CONFIG = TokenizerConfig(kind="word", vocab_size=200)
TOKENIZER = Tokenizer.train(CONFIG, lambda: [" ".join(HABITS + LETTERS)] * 2, lambda: [])
LOOPS, EMPTIES, WANDERS, SALAD, END = (ids[0] for ids in TOKENIZER.encode_src(HABITS))
FIRST = TOKENIZER.encode_src(LETTERS[:1])[0][0]


class Standing:
    """Where the decoding of `Habits` stands: it needs the source and the last token alone."""

    def __init__(self, src: Tensor) -> None:
        self.src = src

    def reorder(self, beams: Tensor) -> None:
        """Every beam knows the same."""

    def keep(self, sentences: Tensor) -> None:
        self.src = self.src[sentences]


class Habits(Seq2Seq):
    """Repeats a word, says nothing, never ends, or copies, as the first source word tells it."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def describe(self) -> str:
        return "A model of bad habits"

    def encode(self, src: Tensor, src_lengths: Tensor) -> Memory:
        return Memory(src, src_lengths)

    def forward(self, src: Tensor, src_lengths: Tensor, tgt_in: Tensor) -> Tensor:
        raise NotImplementedError

    def project(self, hidden: Tensor) -> Tensor:
        return hidden

    def start(self, memory: Memory, beams: int = 1) -> Any:
        return Standing(memory.hidden)

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits = torch.zeros(*token.shape, TOKENIZER.tgt_vocab_size)
        for row, words in enumerate(state.src.tolist()):
            for beam, last in enumerate(token[row].tolist()):
                following = dict(zip([BOS, *words], words, strict=False)).get(last, EOS)
                likely = {
                    LOOPS: {SALAD: 9.0, END: 7.0, EOS: 3.0 + 9.0 * (last == END)},
                    EMPTIES: {EOS: 9.0 - 5.0 * (last == SALAD), SALAD: 5.0 - 9.0 * (last == SALAD)},
                    WANDERS: {max(last + 1, FIRST): 9.0},
                }.get(words[0], {following: 9.0})
                for word, logit in likely.items():
                    logits[row, beam, word] = logit
        return logits, state

    def cross_attention(self, src: Tensor, src_lengths: Tensor, tgt_in: Tensor) -> Tensor:
        raise NotImplementedError


def ours(**options: Any) -> Translator:
    return Translator(Habits(), TOKENIZER, SearchConfig(beam=1), **options)
