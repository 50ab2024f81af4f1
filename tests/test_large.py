"""What keeps a corpus of millions of pairs quick and small: samples, sizes, the bar."""

from __future__ import annotations

import gzip
import io
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from transformer.data import progress, tokenizer_training
from transformer.data.corpus import Corpus, open_corpus
from transformer.data.progress import shown
from transformer.data.tokenizer import TokenizerConfig


def corpus_of(folder: Path, size: int, **options: Any) -> Corpus:
    """A pair of every number: Arabic and with letters."""
    for side, line in (("en", "{}"), ("de", "n{}")):
        lines = (line.format(i) for i in range(size))
        (folder / f"train.{side}").write_text("\n".join(lines))
    return open_corpus(f"{folder}/train", "en", "de", **options)


def words(tokenizer: Any) -> set[str]:
    return {tokenizer.side("src").entry(i) for i in range(4, tokenizer.src_vocab_size)}


@pytest.mark.parametrize(("size", "step"), [(9, 1), (10, 1), (11, 2), (20, 2), (31, 4)])
def test_a_vocabulary_is_learned_from_pairs_evenly_chosen(
    tmp_path: Path, size: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_training, "LEARNED_FROM", 10)
    config = TokenizerConfig("word", vocab_size=200, min_frequency=1)
    corpus = corpus_of(tmp_path, size)
    learned = tokenizer_training.open_tokenizer(tmp_path / "cache", config, [corpus], [])
    expected = range(0, size, step)
    assert words(learned) == {f"{letter}{i}" for i in expected for letter in ("", "n")}
    # Of a stream nobody knows the size.
    monkeypatch.setattr(type(corpus), "size", lambda self: None)
    learned = tokenizer_training.open_tokenizer(tmp_path / "other", config, [corpus], [])
    assert words(learned) == {f"{letter}{i}" for i in range(min(10, size)) for letter in ("", "n")}


def test_sizes_of_corpora(tmp_path: Path) -> None:
    assert corpus_of(tmp_path, 31).size() == 31
    assert corpus_of(tmp_path, 31, limit=7).size() == 7
    (tmp_path / "x.tsv.gz").write_bytes(gzip.compress(b"en\tde\na\tb\nc\td\n"))
    assert open_corpus(f"{tmp_path}/x.tsv.gz", "en", "de").size() == 2
    assert open_corpus(f"{tmp_path}/x.tsv.gz", "en", "de", ["en", "de"]).size() == 3
    table = pa.table({"en": ["a"] * 5, "de": ["b"] * 5})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert open_corpus(f"{tmp_path}/x.parquet", "en", "de").size() == 5
    for broken in ("x.tsv.gz", "x.parquet"):  # whoever reads it says so
        (tmp_path / broken).write_bytes((tmp_path / broken).read_bytes()[:-9])
        assert open_corpus(f"{tmp_path}/{broken}", "en", "de").size() is None


def test_a_log_has_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert list(shown(range(2000), 2000, "tokenising")) == list(range(2000))
    assert not caplog.messages, "what is quick needs no line"
    monkeypatch.setattr(progress, "BETWEEN_LINES", 0.05)
    for _ in shown(range(2000), 2000, "tokenising"):
        time.sleep(2e-4)
    line = r"tokenising: [\d.]+k? of 2.00k pairs, [\d.]+k? ?pairs/s, 00:00 left"
    assert 2 < len(caplog.messages) < 30
    assert all(re.fullmatch(line, message) for message in caplog.messages), caplog.messages


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    for _ in shown(range(15), 30, "tokenising"):
        time.sleep(0.1)
    assert re.search(r"tokenising +4\d% \|.+\| 1\d.* of 30.* pairs, .*pairs/s, 00:0\d left",
                     terminal.getvalue())  # fmt: skip
    assert terminal.getvalue().endswith("\r"), "it leaves nothing behind"
