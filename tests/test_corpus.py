"""Corpora: every kind of source gives the same pairs, and bad ones say what is wrong and where."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from transformer.data.corpus import Corpus, Pair, open_corpus

PAIRS = [
    Pair("A man walks.", "Ein Mann geht."),
    Pair('  "quoted",\u2028 a comma\x0b\x85 ', "Straße\u2029 über"),
    Pair("", "leer"),
    Pair("가나다", "\x1c日本"),
]


def write(path: Path, data: bytes | str) -> Path:
    raw = data.encode() if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def two_files(folder: Path, suffix: str = "", ending: str = "\n", last: str = "\n") -> str:
    for side, language in enumerate(("en", "de")):
        text = ending.join(pair[side] for pair in PAIRS) + last
        write(folder / f"train.{language}{suffix}", text)
    return str(folder / "train")


def tsv(folder: Path, suffix: str, header: bool) -> str:
    rows = [("de", "note", "en"), *((pair.tgt, "x", pair.src) for pair in PAIRS)]
    text = "".join("\t".join(row) + "\n" for row in rows[not header :])
    return str(write(folder / f"x.tsv{suffix}", text))


def rows(nested: bool) -> list[dict[str, Any]]:
    flat = [{"id": i, "de": pair.tgt, "en": pair.src} for i, pair in enumerate(PAIRS)]
    return [{"translation": row} for row in flat] if nested else flat


def jsonl(folder: Path, suffix: str = "", nested: bool = False) -> str:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(nested))
    return str(write(folder / f"x.jsonl{suffix}", text))


def parquet(folder: Path, suffix: str = "", nested: bool = False) -> str:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows(nested)), sink)
    return str(write(folder / f"x.parquet{suffix}", sink.getvalue().to_pybytes()))


def hub(folder: Path, nested: bool) -> str:
    data = folder / "set"
    data.mkdir()
    parquet(data, nested=nested)
    (data / "x.parquet").rename(data / "train-00000.parquet")
    return f"hub:{data}:train"


def read(spec: str, **options: Any) -> list[Pair]:
    return list(open_corpus(spec, "en", "de", **options).pairs())


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("nested", [False, True])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path: Path, suffix: str, nested: bool) -> None:
    assert read(two_files(tmp_path, suffix)) == PAIRS
    assert read(tsv(tmp_path, suffix, header=True)) == PAIRS
    assert read(tsv(tmp_path, suffix, header=False), columns=["de", "note", "en"]) == PAIRS
    assert read(jsonl(tmp_path, suffix, nested)) == PAIRS
    assert read(parquet(tmp_path, suffix, nested)) == PAIRS


def test_a_gzipped_file_is_found_without_its_suffix(tmp_path: Path) -> None:
    assert read(jsonl(tmp_path, ".gz").removesuffix(".gz")) == PAIRS


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_a_hub_data_set_is_read_flat_and_nested(
    tmp_path: Path, nested: bool, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    spec = hub(tmp_path, nested)
    assert read(spec, streaming=streaming) == PAIRS
    corpus = open_corpus(spec, "en", "de", streaming=streaming)
    assert list(corpus.pairs(2)) == PAIRS[2:]
    assert list(corpus.pairs(1, 3)) == PAIRS[1:3]
    assert corpus.identity() == open_corpus(spec, "en", "de", streaming=streaming).identity()
    with pytest.raises(ValueError, match=r"data.train: hub:.*:test cannot be loaded \("):
        read(spec.removesuffix("train") + "test", streaming=streaming)


@pytest.mark.parametrize(
    ("spec", "called"),
    [
        ("hub:wmt/wmt14:de-en:train", ("wmt/wmt14", "de-en", "train")),
        ("hub:bentrevett/multi30k:validation", ("bentrevett/multi30k", None, "validation")),
        ("hub:name:train[:10%]", ("name", None, "train[:10%]")),
    ],
)
def test_name_config_and_split_reach_the_library(
    monkeypatch: pytest.MonkeyPatch, spec: str, called: tuple[str, str | None, str]
) -> None:
    calls = []

    def load(name: str, config: str | None, *, split: str, streaming: bool) -> datasets.Dataset:
        calls.append((name, config, split))
        assert streaming
        return datasets.Dataset.from_list(rows(nested=True))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read(spec, streaming=True) == PAIRS
    assert calls == [called]


def test_grammar_gives_korean_and_english_in_either_order() -> None:
    pytest.importorskip("transformer.data.grammar")
    korean = list(open_corpus("grammar:val", "ko", "en").pairs(limit=5))
    english = list(open_corpus("grammar:val", "en", "ko").pairs(limit=5))
    assert korean == [Pair(tgt, src) for src, tgt in english]
    assert len(korean) == 5
    assert all("가" <= char <= "힣" for char in korean[0].src if char.isalpha())
    assert list(open_corpus("grammar:val", "ko", "en").pairs(2, 4)) == korean[2:4]


@pytest.mark.parametrize(("ending", "last"), [("\r\n", "\r\n"), ("\n", ""), ("\r\n", "")])
def test_lines_end_at_newlines_only(tmp_path: Path, ending: str, last: str) -> None:
    assert read(two_files(tmp_path, ending=ending, last=last)) == PAIRS


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    spec = two_files(tmp_path)
    write(tmp_path / "train.en", b"\xef\xbb\xbf" + (tmp_path / "train.en").read_bytes())
    assert read(spec) == PAIRS


@pytest.mark.parametrize("kind", [two_files, jsonl, parquet])
def test_reading_from_a_place_up_to_a_limit(tmp_path: Path, kind: Any) -> None:
    corpus = open_corpus(kind(tmp_path), "en", "de")
    for start in range(6):
        for limit in (None, 1, 3, 9):
            assert list(corpus.pairs(start, limit)) == PAIRS[start:limit]


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    spec = two_files(tmp_path)
    before = open_corpus(spec, "en", "de").identity()
    assert open_corpus(spec, "en", "de").identity() == before
    write(tmp_path / "train.de", "other\n")
    assert open_corpus(spec, "en", "de").identity() != before


def fails(corpus: Corpus, message: str) -> None:
    with pytest.raises(ValueError, match="^data.train: ") as caught:
        list(corpus.pairs())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_different_length(tmp_path: Path) -> None:
    spec = two_files(tmp_path)
    for extra, counts in ((b"one more\n", (5, 4)), (b"two\nmore\n", (6, 4))):
        long = tmp_path / "train.en"
        long.write_bytes("".join(pair.src + "\n" for pair in PAIRS).encode() + extra)
        message = f"train.en has {counts[0]} lines but {tmp_path}/train.de has {counts[1]};"
        fails(open_corpus(spec, "en", "de"), message)
    message = f"train.de has 4 lines but {tmp_path}/train.en has 6;"
    fails(open_corpus(spec, "de", "en"), message)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_line_that_is_not_utf8(tmp_path: Path, suffix: str) -> None:
    spec = two_files(tmp_path, suffix)
    write(tmp_path / f"train.de{suffix}", b"gut\nStra\xdfe\nx\nx\n")
    fails(open_corpus(spec, "en", "de"), f"train.de{suffix}, line 2: not UTF-8 (")


def test_empty_files(tmp_path: Path) -> None:
    write(tmp_path / "train.en", "")
    write(tmp_path / "train.de", "")
    fails(open_corpus(str(tmp_path / "train"), "en", "de"), "train is empty")
    write(tmp_path / "x.tsv", "en\tde\n")
    fails(open_corpus(str(tmp_path / "x.tsv"), "en", "de"), "x.tsv is empty")
    write(tmp_path / "train.en", "one line\n")
    fails(open_corpus(str(tmp_path / "train"), "en", "de"), "train.en has 1 lines but")


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    message = "column 'fr' does not exist; there are 'de', 'note', 'en'"
    fails(open_corpus(tsv(tmp_path, "", True), "en", "fr"), message)
    message = "x.jsonl, line 1: column 'fr' does not exist; there are 'id', 'de', 'en'"
    fails(open_corpus(jsonl(tmp_path, nested=True), "en", "fr"), message)
    fails(open_corpus(parquet(tmp_path), "cs", "fr"), "column 'cs' does not exist; there are 'de'")
    write(tmp_path / "x.tsv", "en\tde\na\tb\nonly one\n")
    message = "x.tsv, line 3: column 'de' does not exist; there are 'en'"
    fails(open_corpus(str(tmp_path / "x.tsv"), "en", "de"), message)
    write(tmp_path / "x.jsonl", '{"en": 5, "de": "fünf"}\n')
    fails(open_corpus(str(tmp_path / "x.jsonl"), "en", "de"), "line 1: column 'en' is not text")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", b'{"en": "a", "de": "b"}\n{"en": "a"', "x.jsonl, line 2: not JSON ("),
        ("x.jsonl", b"[1]\n", "x.jsonl, line 1: not a JSON object"),
        ("x.parquet", b"not parquet", "x.parquet cannot be read ("),
        ("x.tsv.gz", None, "x.tsv.gz is not a whole gzip file ("),
        ("x.parquet.gz", None, "x.parquet.gz cannot be read ("),
    ],
)
def test_broken_files(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    whole = gzip.compress(b"en\tde\n" * 1000)
    (tmp_path / name).write_bytes(data or whole[:-10])
    fails(open_corpus(str(tmp_path / name), "en", "de"), message)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}/tran", r"neither .*/tran.en nor tran.en.gz exists; near it: train.en, train.de$"),
        ("{}/train.en", r"neither .*/train.en.en .* exists; near it: train.en"),
        ("{}/no/train", r"there is no folder .*/no$"),
        ("{}/data.tsv", r"data.tsv does not exist; near it: dota.tsv"),
        ("{}/zzz", r"has nothing like it$"),
        ("hub:name", r"'hub:name' must be hub:<name>:<split> or hub:<name>:<config>:<split>"),
        ("grammar:dev", r"'grammar:dev' must be grammar:train, grammar:val or grammar:test"),
        ("grammar:val", r"data.src and data.tgt must be ko and en in either order, not en and de"),
    ],
)
def test_specs_that_name_nothing(tmp_path: Path, spec: str, message: str) -> None:
    two_files(tmp_path)
    write(tmp_path / "dota.tsv", "")
    with pytest.raises(ValueError, match=rf"^data.val: .*{message}"):
        open_corpus(spec.format(tmp_path), "en", "de", key="data.val")
