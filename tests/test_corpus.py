"""Corpora: every kind of source gives the same pairs, and bad ones say what is wrong and where."""

from __future__ import annotations

import gzip
import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from transformer.data.corpus import Corpus, Pair, open_corpus
from transformer.data.files import lines

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


def test_the_quickstart_has_korean_and_english_in_either_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a folder without recipes
    spec = "recipes/quickstart/val.tsv.gz"
    korean = list(open_corpus(spec, "ko", "en").pairs())[:5]
    english = list(open_corpus(spec, "en", "ko").pairs())[:5]
    assert korean == [Pair(tgt, src) for src, tgt in english]
    assert len(korean) == 5
    assert all("가" <= char <= "힣" for char in korean[0].src if char.isalpha())
    assert list(open_corpus(spec, "ko", "en", limit=4).pairs(2)) == korean[2:4]
    with pytest.raises(ValueError, match=r"test.tv.ko.gz exists, the nearest is 'test.tsv.gz'"):
        open_corpus("recipes/quickstart/test.tv", "ko", "en")


def test_text_in_the_working_folder_goes_before_that_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes/quickstart").mkdir(parents=True)
    write(tmp_path / "recipes/quickstart/val.tsv", "ko\ten\n하나\tone\n")
    assert list(open_corpus("recipes/quickstart/val.tsv", "ko", "en").pairs()) == [("하나", "one")]
    with pytest.raises(ValueError, match=r"neither recipes/quickstart/train.tsv nor train.tsv.gz"):
        open_corpus("recipes/quickstart/train.tsv", "ko", "en")


@pytest.mark.parametrize(("ending", "last"), [("\r\n", "\r\n"), ("\n", ""), ("\r\n", "")])
def test_lines_end_at_newlines_only(tmp_path: Path, ending: str, last: str) -> None:
    assert read(two_files(tmp_path, ending=ending, last=last)) == PAIRS


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    spec = two_files(tmp_path)
    write(tmp_path / "train.en", b"\xef\xbb\xbf" + (tmp_path / "train.en").read_bytes())
    assert read(spec) == PAIRS
    write(tmp_path / "mark", b"\xef\xbb\xbf")
    assert not [*lines(tmp_path / "mark", "data.train")]


@pytest.mark.parametrize("kind", [two_files, jsonl, parquet])
def test_reading_from_a_place_up_to_a_limit(tmp_path: Path, kind: Any) -> None:
    spec = kind(tmp_path)
    for start in range(6):
        for limit in (None, 1, 3, 9):
            corpus = open_corpus(spec, "en", "de", limit=limit)
            assert list(corpus.pairs(start)) == PAIRS[start:limit]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("kind", [two_files, jsonl])
def test_identity_is_that_of_the_content(tmp_path: Path, kind: Any, suffix: str) -> None:
    """Wherever it lies and whatever its times say."""
    (tmp_path / "other").mkdir()
    here, there = kind(tmp_path, suffix), kind(tmp_path / "other", suffix)

    def identity(spec: str = here) -> Any:
        return open_corpus(spec, "en", "de").identity()

    before = identity()
    assert identity() == before == identity(there)
    file = next(tmp_path.glob("*.de*" if kind is two_files else "x.jsonl*"))
    old, data = file.stat(), file.read_bytes()

    def keep_time() -> None:
        os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)

    time.sleep(0.02)  # a clock of the file system ticks every few milliseconds
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # as rsync --inplace -a does
    keep_time()
    assert identity() != before
    file.write_bytes(data)
    keep_time()
    assert identity() == before
    moved = write(tmp_path / "new", data[:-1] + bytes([data[-1] ^ 1]))
    moved.rename(file)
    keep_time()
    assert identity() != before


def test_identity_reads_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = open_corpus(two_files(tmp_path), "en", "de")
    before = corpus.identity()
    monkeypatch.setattr(Path, "open", None)
    assert corpus.identity() == before


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
        (
            "x.jsonl",
            b'{"en": "a", "de": "b"}\n{"en": "cat\\ud83d", "de": "b"}\n',
            r"x.jsonl, line 2: column 'en' holds '\ud83d', half of a character",
        ),
        ("x.jsonl", b'{"en": "a", "de": null}\n', "x.jsonl, line 1: column 'de' is null; write"),
        ("x.jsonl", b'{"en": "a", "de": 7.5}\n', "line 1: column 'de' is not text but '7.5'"),
        ("x.tsv", b"en\tde\ten\na\tb\tc\n", "x.tsv names column 'en' 2 times; rename all"),
        ("x.jsonl", b'{"en": "a", "de": "b"}\n{"en": "a"', "x.jsonl, line 2: not JSON ("),
        ("x.jsonl", b"[1]\n", "x.jsonl, line 1: not a JSON object"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl, line 1: cannot be read (maximum recursion depth"),
        ("x.jsonl", b'{"en": ' + b"9" * 5000, "x.jsonl, line 1: cannot be read (Exceeds the limit"),
        ("x.parquet", b"not parquet", "x.parquet cannot be read ("),
        ("x.tsv.gz", None, "x.tsv.gz is not a whole gzip file ("),
        ("x.parquet.gz", None, "x.parquet.gz cannot be read ("),
    ],
)
def test_broken_files(tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
    whole = gzip.compress(b"en\tde\n" * 1000)
    (tmp_path / name).write_bytes(data or whole[:-10])
    fails(open_corpus(str(tmp_path / name), "en", "de"), message)


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path) -> None:
    (tmp_path / "x.tsv.gz").write_bytes(gzip.compress(b"en\tde\na\tb\n" + bytes(1 << 26), 1))
    tracemalloc.start()
    fails(
        open_corpus(str(tmp_path / "x.tsv"), "en", "de"), "x.tsv.gz, line 3: more than 16,777,216"
    )
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


def test_damaged_parquet(tmp_path: Path) -> None:
    """Its parts say that they are damaged; its text only where it has checksums."""
    table = pa.table({"en": ["some words"] * 3, "de": ["Wörter"] * 3})
    file = tmp_path / "x.parquet"
    pa.parquet.write_table(table, file, compression="none", write_page_checksum=True)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"some", b"sOme", 1))
    fails(open_corpus(str(file), "en", "de"), "x.parquet cannot be read (could not verify page")
    file.write_bytes(data[:4] + b"\xff" * 8 + data[12:])
    fails(open_corpus(str(file), "en", "de"), "x.parquet cannot be read (Couldn't deserialize")


def test_columns_that_are_named_twice(tmp_path: Path) -> None:
    spec = tsv(tmp_path, "", header=False)
    for columns, message in (
        (["de", "de", "en"], "data.columns names column 'de' 2 times"),
        (["x", "x", "en"], "column 'de' does not exist; there are 'x', 'en'"),  # nobody's
    ):
        fails(open_corpus(spec, "en", "de", columns=columns), message)
    twice = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["en", "de", "de"])
    pyarrow.parquet.write_table(twice, tmp_path / "x.parquet")
    message = "x.parquet names column 'de' 2 times"
    fails(open_corpus(str(tmp_path / "x.parquet"), "en", "de"), message)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_other_formats_are_named_with_those_that_are_read(tmp_path: Path, suffix: str) -> None:
    message = rf"x\{suffix}: \{suffix} is not read, .tsv, .jsonl, .*; convert it to .jsonl$"
    with pytest.raises(ValueError, match=message):
        open_corpus(str(tmp_path / f"x{suffix}"), "en", "de")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}/tran", r"neither .*/tran.en nor tran.en.gz exists, the nearest is 'train.en'$"),
        ("{}/train.en", r"neither .*/train.en.en .* exists, the nearest is 'train.en'"),
        ("{}/no/train", r"there is no folder .*/no$"),
        ("{}/data.tsv", r"data.tsv nor .* exists, the nearest is 'dota.tsv'"),
        ("{}/zzz", r"neither .*zzz.en nor zzz.en.gz exists$"),
        ("{}/folder.tsv", r"/folder.tsv is no file: name one"),
        (".", r"neither \.\.en nor \.\.en\.gz exists"),
        ("/", r"neither /.en nor .en.gz exists"),
        ("hub:name", r"'hub:name' must be hub:<name>:<split> or hub:<name>:<config>:<split>"),
        ("grammar:val", r"'grammar:val' is recipes/quickstart/val.tsv.gz now; python recipes/qui"),
    ],
)
def test_specs_that_name_nothing(tmp_path: Path, spec: str, message: str) -> None:
    two_files(tmp_path)
    write(tmp_path / "dota.tsv", "")
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(ValueError, match=rf"^data.val: .*{message}"):
        open_corpus(spec.format(tmp_path), "en", "de", key="data.val")
