"""A tiny bundle, and commands that are called in this process, for the parts of the fuzz."""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple
from unittest import mock

import torch
from hypothesis import strategies as st

from transformer.__main__ import main
from transformer.bundle import save_bundle
from transformer.data.tokenizer import TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.inference.translator import Translator
from transformer.models import TransformerConfig

from .fuzz_corpora import Bad, lines_of
from .odd_text import files, texts

MOST = 60  # tokens of a line
WORDS = ["the cat", "a haus", "eins zwei drei", "가 나 다", "日本"]


@cache
def bundle(tags: bool = False) -> str:
    """A tiny model with random weights, and positions that are learned in the one with tags."""
    torch.manual_seed(0)
    pairs = [*zip(WORDS, reversed(WORDS), strict=True)]
    config = TokenizerConfig(vocab_size=280, shared=not tags)
    tokenizer = train_tokenizer(config, lambda: pairs, ["de", "en"] if tags else [])
    learned: dict[str, Any] = {"tied": "two_way", "positions": "learned", "max_positions": MOST}
    more = learned if tags else {}
    shape = TransformerConfig(
        d_model=16, d_ff=32, num_heads=2, num_layers=1, dropout=0.0, **more
    )  # fmt: skip
    model = shape.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # so that few translations are about as good as the best
    folder = Path(mkdtemp(prefix="fuzz-bundle-")) / "bundle"
    about: dict[str, Any] = {"src": "de", "tgt": "en", "evaluation": {}, "max_length": MOST}
    search = {"beam": 2, "max_extra": 4}
    save_bundle(folder, model, tokenizer, card="", search=search, training={}, **about)
    return str(folder)


@cache
def translator(tags: bool = False) -> Translator:
    return Translator.load(bundle(tags))


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: bytes
    err: str


class Stream(io.TextIOWrapper):
    """Standard output that is kept."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="\n")


def called(*args: str, given: bytes = b"", pipe: bool = True) -> Outcome:
    """Runs a command in this process; what is `given` comes from a pipe, or a file."""
    out, err = Stream(), io.StringIO()
    with _standard_input(given, pipe), contextlib.redirect_stdout(out):
        with contextlib.redirect_stderr(err):
            code = main(args)
        out.flush()
    return Outcome(code, out.buffer.getvalue(), err.getvalue())  # type: ignore[attr-defined]


@contextlib.contextmanager
def _standard_input(given: bytes, pipe: bool) -> Iterator[None]:
    def send(number: int) -> None:
        with contextlib.suppress(BrokenPipeError), open(number, "wb") as stream:
            stream.write(given)

    if pipe:
        end, start = os.pipe()
        threading.Thread(target=send, args=[start], daemon=True).start()
    else:
        end = os.memfd_create("input")
        os.write(end, given)
        os.lseek(end, 0, 0)
    with os.fdopen(end) as stream, mock.patch("sys.stdin", stream):
        yield


def checked(found: Outcome) -> bool:
    """Whether it went well; if not, it must have said why in one line."""
    said = [line for line in found.err.splitlines() if "warning: " not in line]
    if found.code == 0:
        return True
    assert found.code == 2 and said and said[-1].startswith("transformer: error: "), found
    assert len(said[-1]) < 2000
    # One more line may say where the part is that is done.
    assert len(said) == 1 or (len(said) == 2 and "holds what became of" in said[0]), found.err
    return False


@st.composite
def inputs(draw: Any, folder: Path) -> tuple[list[str], dict[str, Any], list[str] | None]:
    """Arguments that name input, what is given to standard input, and the lines in it."""
    lines: list[str] = draw(texts(5, longest=3000))
    how = draw(st.sampled_from(["texts", "pipe", "pipe", "redirected", "file", "files"]))
    if how == "texts":
        lines = [line.replace("\0", "") for line in lines]
        if lines and lines != ["-"]:
            return ["--", *lines], {}, lines
        how = "pipe"
    content, _ = draw(files(lines, False))
    if how in ("pipe", "redirected"):
        return [], {"given": content, "pipe": how == "pipe"}, expected_lines([(content, False)])
    given = [(content, False)] if how == "file" else [draw(files(lines)) for _ in range(2)]
    names = []
    for number, (data, is_zipped) in enumerate(given):
        names.append(str(folder / f"{number}.txt{'.gz' * is_zipped}"))
        Path(names[-1]).write_bytes(data)
    return ["--input", *names], {}, expected_lines(given)


def expected_lines(given: list[tuple[bytes, bool]]) -> list[str] | None:
    try:
        return [line for one in given for line in lines_of(*one)]
    except Bad:
        return None
