"""A bundle that is learned in seconds, and `transformer serve` for it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from chromium import ended
from torch.nn.utils.rnn import pad_sequence

from transformer.bundle import save_bundle
from transformer.data.tokenizer import BOS, TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.models import TransformerConfig

ROOT = Path(__file__).resolve().parent.parent
PAIRS = [
    ("나는 학생이다", "I am a student"),
    ("그는 의사다", "He is a doctor"),
    ("그녀는 물을 마신다", "She drinks water"),
    ("우리는 책을 읽는다", "We read books"),
]


@contextmanager
def serving(*bundles: Path) -> Iterator[str]:
    """The address at which `transformer serve` answers."""
    command = [sys.executable, "-m", "transformer", "serve", *map(str, bundles), "--port", "0"]
    with ended(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://\S+/", line):
                yield found[0]
                return
        pytest.fail("".join(said))


def learn(folder: Path) -> Path:
    """Writes a bundle that knows `PAIRS` by heart, after some seconds."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=340, min_frequency=1), lambda: PAIRS)
    sizes = tokenizer.src_vocab_size, tokenizer.tgt_vocab_size
    shape = TransformerConfig(d_model=32, d_ff=64, num_heads=2, num_layers=2, dropout=0.0)
    model = shape.build(*sizes)
    src = tokenizer.encode_src([src for src, _ in PAIRS])
    tgt = [torch.tensor(ids) for ids in tokenizer.encode_tgt([tgt for _, tgt in PAIRS])]
    begun = [torch.cat([torch.tensor([BOS]), ids[:-1]]) for ids in tgt]
    padded = [pad_sequence(rows, True) for rows in ([*map(torch.tensor, src)], begun, tgt)]
    lengths = torch.tensor([*map(len, src)])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        logits = model.project(model(padded[0], lengths, padded[1]))
        loss = F.cross_entropy(
            logits.flatten(0, 1), padded[2].flatten(), ignore_index=0, label_smoothing=0.1
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    about: dict[str, Any] = {"src": "ko", "tgt": "en", "search": {}, "evaluation": {}}
    save_bundle(
        folder, model, tokenizer, card="", max_length=40, **about,
        training={"recipe": "toy", "steps": 150},
    )  # fmt: skip
    return folder
