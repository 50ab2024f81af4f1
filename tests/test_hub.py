"""Data sets of the hub, with and without a network."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from test_corpus import PAIRS, fails, hub, read, rows

from transformer import hub as hub_under_test
from transformer.data.corpus import Pair, open_corpus
from transformer.data.files import file_digest


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
    assert list(replace(corpus, limit=3).pairs(1)) == PAIRS[1:3]
    assert corpus.identity() == open_corpus(spec, "en", "de", streaming=streaming).identity()
    with pytest.raises(ValueError, match=r"data.train: hub:.*:test cannot be loaded \("):
        read(spec.removesuffix("train") + "test", streaming=streaming)


@pytest.mark.parametrize(
    ("spec", "called"),
    [
        ("hub:wmt/wmt14:de-en:train", ("wmt/wmt14", "de-en", "train", None)),
        ("hub:bentrevett/multi30k:validation", ("bentrevett/multi30k", None, "validation", None)),
        ("hub:name:train[:10%]", ("name", None, "train[:10%]", None)),
        ("hub:name@refs/pr/1:train[:10%]", ("name", None, "train[:10%]", "refs/pr/1")),
        ("hub:wmt/wmt14@1.0:de-en:train", ("wmt/wmt14", "de-en", "train", "1.0")),
    ],
)
def test_name_config_split_and_revision_reach_the_library(
    monkeypatch: pytest.MonkeyPatch, spec: str, called: tuple[str, str | None, str, str | None]
) -> None:
    calls = []

    def load(
        name: str, config: str | None, *, split: str, streaming: bool, revision: str | None,
        cache_dir: str | None,
    ) -> datasets.Dataset:  # fmt: skip
        calls.append((name, config, split, revision))
        assert streaming and cache_dir is None
        return datasets.Dataset.from_list(rows(nested=True))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformer.data.hub.answers", lambda address: True)
    assert read(spec, streaming=True) == PAIRS
    assert calls == [called]


def test_a_bad_row_of_a_parquet_file_or_a_hub_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    raw = pa.array([b"gut"] * 1500 + [b"Stra\xdfe"]).cast(pa.string(), safe=False)
    bad = pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:])
    null = pa.array(["fine"] * 1200 + [None] * 301)
    folder = tmp_path / "set"
    folder.mkdir()
    for name, column, message in (
        ("bytes", bad, "row 1501: not UTF-8 (invalid"),
        ("null", null, "row 1201: column 'en' is null; "),
    ):
        table = pa.table({"de": pa.array(["x"] * len(column)), "en": column})
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet")
        fails(open_corpus(f"{folder}/{name}.parquet", "en", "de"), f"{name}.parquet, {message}")
    (folder / "bytes.parquet").unlink()
    for streaming in (False, True):
        corpus = open_corpus(f"hub:{folder}:train", "en", "de", streaming=streaming)
        fails(corpus, f"hub:{folder}:train, row 1201: column 'en' is null; ")
        assert next(corpus.pairs(1100)) == Pair("fine", "x")
        with pytest.raises(ValueError, match="row 1201: column 'en' is null"):
            list(corpus.pairs(1100))


def test_a_network_that_vanishes_is_one_line_with_the_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Vanishes(Exception):
        """As httpx has them."""

    def rows() -> Iterator[dict[str, str]]:
        yield {"de": "eins", "en": "one"}
        raise Vanishes("Server disconnected")

    data = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr("transformer.data.corpus.load", lambda *_: data)
    corpus = open_corpus("hub:org/name:train", "de", "en", streaming=True)
    fails(corpus, "hub:org/name:train, row 1: cannot be read (Server disconnected)")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_that_changed_is_read_again_whatever_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "set/train.jsonl"
    file.parent.mkdir()
    for pairs in ([Pair("eins", "one")], [Pair("zwei", "two"), Pair("drei", "three")]):
        lines = (json.dumps({"de": pair.src, "en": pair.tgt}) for pair in pairs)
        file.write_text("\n".join(lines))
        os.utime(file, (0, 0))
        corpus = open_corpus(f"hub:{file.parent}:train", "de", "en", streaming=streaming)
        assert list(corpus.pairs()) == pairs


def test_a_stream_of_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    file = folder / "train.jsonl"
    file.write_text('{"de": "eins", "en": "one"}\n')
    corpora = [
        open_corpus(f"hub:{folder}:train", "de", "en", streaming=streaming)
        for streaming in (True, False)
    ]
    before = [corpus.identity() for corpus in corpora]
    file.write_text('{"de": "zwei", "en": "two"}\n')
    assert [corpus.identity() == old for corpus, old in zip(corpora, before, strict=True)] == [
        False, False
    ]  # fmt: skip
    assert corpora[0].digests() == [file_digest(file)]
    assert not open_corpus("hub:org/name:train", "de", "en", streaming=True).digests()


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub takes connections, and never answers."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_under_test, "SECONDS", 0.2)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        yield


def test_without_a_network_the_hub_costs_a_line_and_no_time(
    no_network: None, capfd: pytest.CaptureFixture[str]
) -> None:
    start = time.perf_counter()
    fails(open_corpus("hub:some/set:train", "en", "de"), "hub:some/set:train cannot be loaded (Cou")
    assert time.perf_counter() - start < 5
    assert capfd.readouterr() == ("", "")


def test_without_a_network_a_copy_of_the_hub_is_read(no_network: None, tmp_path: Path) -> None:
    assert read(hub(tmp_path, nested=False)) == PAIRS  # a folder needs none
    [made] = {file.parent for file in (tmp_path / "cache").rglob("*-train.arrow")}
    copy = tmp_path / "cache/some___set/default/0.0.0/abc"
    shutil.copytree(made, copy)
    next(copy.glob("*-train.arrow")).rename(copy / "set-train.arrow")
    info = json.loads((copy / "dataset_info.json").read_text())
    info |= {"config_name": "default", "dataset_name": "set"}
    (copy / "dataset_info.json").write_text(json.dumps(info))
    assert read("hub:some/set:train") == PAIRS
