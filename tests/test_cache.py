"""The cache: read again where nothing has changed, made again where anything has."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import make, paths, ready
from toys import raising

from transformer.data import dataset
from transformer.data.tokenizer import TokenizerConfig
from transformer.data.tokenizer_training import tokenizer_path
from transformer.writing import is_part, part


def test_a_second_run_reads_nothing_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ready(corpus)
    monkeypatch.setattr(dataset, "write_table", raising(AssertionError()))
    monkeypatch.setattr("transformer.data.tokenizer_training.train_tokenizer", None)
    start = time.perf_counter()
    second = ready(corpus)
    assert time.perf_counter() - start < 0.5
    assert second.tokenizer.to_text() == first.tokenizer.to_text()
    files = sorted(path.name.split("-")[0] for path in (corpus / "cache").glob("[!.]*"))
    assert files == ["tokenizer", "tokens", "tokens", "tokens"]
    assert not [path for path in (corpus / "cache").iterdir() if is_part(path)]


def test_the_same_text_is_read_once_wherever_it_lies(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ready(corpus)
    shutil.copytree(corpus, tmp_path / "other", ignore=shutil.ignore_patterns("cache", "other"))
    monkeypatch.setattr(dataset, "write_table", raising(AssertionError()))
    monkeypatch.setattr("transformer.data.tokenizer_training.train_tokenizer", None)
    assert paths(ready(tmp_path / "other", cache=f"{corpus}/cache")) == paths(first)


@pytest.mark.parametrize("name", ["train.de", "train.de.gz"])
def test_a_file_changed_in_place_with_its_time_kept_is_read_again(corpus: Path, name: str) -> None:
    file, lines = corpus / name, (corpus / "train.de").read_text()
    old = (corpus / "train.de").stat()

    def write(text: str) -> None:
        (corpus / "train.de").unlink(missing_ok=True)
        data = gzip.compress(text.encode(), 0, mtime=0) if file.suffix == ".gz" else text.encode()
        file.write_bytes(data)
        os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))

    write(lines)
    before = ready(corpus)
    size = file.stat().st_size
    time.sleep(0.02)
    write(lines.replace("w", "v"))
    assert file.stat().st_size == size
    assert paths(ready(corpus))["train"] != paths(before)["train"]


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "zeroed at the end": lambda data: data[:-100] + bytes(100),
    "garbage": lambda data: np.random.default_rng(0).bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["tokens", "tokenizer"])
def test_a_damaged_file_of_the_cache_is_made_again(
    corpus: Path, kind: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = ready(corpus)
    files = list((corpus / "cache").glob("tokens-*.arrow"))
    hurt = files if kind == "tokens" else list((corpus / "cache").glob("tokenizer-*.json"))
    content = {file: file.read_bytes() for file in hurt}
    for file in hurt:
        file.write_bytes(DAMAGE[damage](content[file]))
    caplog.set_level("INFO")
    after = ready(corpus)
    assert {file: file.read_bytes() for file in hurt} == content
    said = [text for text in caplog.messages if "is damaged and made again (" in text]
    assert len(said) == len(hurt)
    assert all(any(text.startswith(str(path)) for text in said) for path in hurt)
    assert not any("\n" in text for text in said)
    assert after.texts("val") == before.texts("val")


def test_old_parts_are_cleared_and_those_of_others_are_not(corpus: Path) -> None:
    cache = corpus / "cache"
    cache.mkdir()
    old, new = part(cache / "old"), part(cache / "new")
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    ready(corpus)
    assert [path for path in cache.iterdir() if is_part(path)] == [new]


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 9},
        {"tokenizer": TokenizerConfig(kind="bpe", vocab_size=300)},
        {"src": "de", "tgt": "en"},
        {"touch": True},
    ],
)
def test_the_cache_is_not_used_for_other_content(corpus: Path, options: dict[str, Any]) -> None:
    before = ready(corpus)
    if options.pop("touch", False):
        (corpus / "train.en").write_text("new\n" * 400)
    after = ready(corpus, **options)
    assert paths(after)["train"] != paths(before)["train"]


def test_another_length_reads_no_text_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ready(corpus)
    monkeypatch.setattr(dataset, "write_table", raising(AssertionError()))
    after = ready(corpus, max_length=12)
    assert paths(after) == paths(before)
    assert after.counts.pairs + after.counts.too_long == before.counts.pairs == 400
    assert max(batch.src.shape[1] for batch in after.train_dataloader()) == 12


def test_an_interrupted_write_leaves_no_cache(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(corpus)
    (corpus / "val.en").write_bytes(b"\xff\n" * 30)
    with pytest.raises(ValueError, match=r"data.val: .*val.en, line 1: not UTF-8"):
        data.prepare_data()
    names = [path.name.split("-")[0] for path in (corpus / "cache").glob("[!.]*")]
    assert sorted(names) == ["tokenizer", "tokens"], "the whole one of train stays, no part of val"


def test_two_runs_may_learn_the_same_vocabulary_at_once(corpus: Path) -> None:
    """Each goes on with its own: learned twice, a unigram vocabulary differs."""
    first, second = (make(corpus, tokenizer=TokenizerConfig("unigram", 290)) for _ in range(2))
    second.cache = corpus / "elsewhere"
    second.prepare_data()
    first.prepare_data()
    shutil.copy(
        tokenizer_path(second.cache, *second.tokenizer_inputs()),
        tokenizer_path(first.cache, *first.tokenizer_inputs()),
    )
    first.setup()
    assert first.counts.pairs == 400
    assert len(list((corpus / "cache").glob("tokenizer-*"))) == 1


def test_a_warm_start_finds_empty_sides_without_pandas(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "CHUNK_ROWS", 37)  # no whole number of bytes
    lines = (corpus / "train.en").read_text().splitlines()
    blank = [number % 7 == 0 for number in range(len(lines))]
    text = (line * (not empty) for line, empty in zip(lines, blank, strict=True))
    (corpus / "train.en").write_text("".join(f"{line}\n" for line in text))
    code = (
        "import pathlib, sys; from transformer.data.dataset import TokenTable; "
        "print(*TokenTable(pathlib.Path(sys.argv[1])).blank(), 'pandas' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(paths(ready(corpus))["train"])]
    found = subprocess.check_output(command, text=True).split()
    assert found == [*map(str, blank), "False"]


MEMORY = """
import sys
from pathlib import Path
from transformer.data.batching import Plan
from transformer.data.corpus import Corpus, Pair
from transformer.data.dataset import TokenTable, write_table
from transformer.data.loaders import CachedLoader
from transformer.data.mixture import Mixture, select

peak = 0

def measure():
    global peak
    [line] = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    peak = max(peak, int(line.split()[1]))

class Lines(Corpus):
    def pairs(self, start=0):
        return (Pair("w " * (i % 23), "w") for i in range(number))

class Quick:  # the library is not what is measured, and it takes its time
    src_vocab_size = tgt_vocab_size = 9
    def encode_src(self, lines, to=None):
        measure()
        return [[7] * (len(line) // 2) + [2] for line in lines]
    encode_tgt = encode_src

def use(path):
    lines = Lines("lines", "en", "de", "data.train")
    write_table([lines], Quick(), path)
    rows, counts = select(table := TokenTable(path), lines, 256, False, 0)
    measure()
    loader = CachedLoader(Plan(4096), 0, lambda: 0, table, Mixture([rows], [], 1.0))
    for step, _ in enumerate(loader):
        if step % 100 == 0:
            measure()
    return counts.pairs

for number in map(int, sys.argv[2:]):
    peak = 0
    print(use(Path(sys.argv[1], str(number))), peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    numbers = (100_000, 1_000_000)
    command = [sys.executable, "-c", MEMORY, str(tmp_path), *map(str, numbers)]
    lines = subprocess.check_output(command, text=True).splitlines()
    found, peaks = zip(*(map(int, line.split()) for line in lines), strict=True)
    assert found == tuple(n - -(-n // 23) for n in numbers), "an empty side is left out"
    sizes = [(tmp_path / str(n)).stat().st_size for n in numbers]
    assert sizes[1] - sizes[0] > 30e6
    assert 1024 * (peaks[1] - peaks[0]) < 8e6, peaks
