"""Text as nobody should write it, and files of it: strategies of hypothesis."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from hypothesis import strategies as st

PIECES = (
    " ", "  ", "\t", "\r", "\0", "\x01", "\v", "\f", "\x1c", "\x1f", "\x7f", "\x85", "\xa0",
    "\u200b", "\u200d", "\u200e", "\u202e", "\u2028", "\u2029", "\u2066", "\u2069", "\u3000",
    "\ufeff", "\ufffd",
    '"', "'", '""', ",", ";", "\\", "\\u0041", "\\n", "{", "]", "null", "NA", "NaN", "None", "true",
    "007", "1e999", "-0", "2024-02-29", "12:30", "<s>", "</s>", "<pad>", "<unk>", "<2en>", "<2de>",
    "e\u0301", "\u0301", "\u0958", "\U0001d160", "ﷺ", "가", "\u1100\u1161", "日本",
    "\U0001f468\u200d\U0001f469",
    "a", "B", "İ", "ß", "Σ", "the", "haus", ".", "! ", "。",
)  # fmt: skip
ENDINGS = ("\n", "\n", "\n", "\r\n", "\r", "\u2028", "\x85")
ENCODINGS = ("utf-8",) * 8 + ("utf-8-sig", "latin-1", "utf-16", "utf-16-le", "utf-16-be", "cp949")

letters = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=12)
phrases = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
usual = st.lists(st.sampled_from(["the", "cat", "haus", "ein", "가다"]), min_size=1, max_size=6)
#: Up to 20 characters; or many of one piece, as long as no line should be.
short_lines = letters | phrases | usual.map(" ".join)
long_lines = st.builds(lambda piece, n: piece * n, st.sampled_from(PIECES), st.just(3000))
huge_lines = st.sampled_from(PIECES).map(lambda piece: (piece * 100_000)[:100_000])


@st.composite
def texts(draw: Any, most: int = 6, least: int = 0, longest: int = 100_000) -> list[str]:
    """A list of lines, of which now and then one is very long."""
    found: list[str] = draw(st.lists(short_lines, min_size=least, max_size=most))
    chance = draw(st.integers(0, 99))
    if found and chance < 4 and longest >= 3000:
        found[0] = draw(huge_lines if chance == 0 and longest >= 100_000 else long_lines)
    return found


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """A file that lost its end, some bits, or got bytes of something else."""
    how = draw(st.sampled_from(["cut", "flip", "flip", "insert", "zeros"]))
    place = draw(st.integers(0, max(0, len(data) - 1)))
    if how == "cut":
        return data[:place]
    if how == "flip" and data:
        flipped = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            flipped[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(flipped)
    more = draw(st.binary(min_size=1, max_size=6)) if how == "insert" else b"\0" * 9
    return data[:place] + more + data[place:]


def seldom(draw: Any, percent: int) -> bool:
    """Whether to do something that is done in so many cases of a hundred."""
    return bool(draw(st.integers(0, 99)) >= 100 - percent)


@st.composite
def zipped(draw: Any, data: bytes) -> bytes:
    """A gzip file, mostly a whole one."""
    found = gzip.compress(data, 1, mtime=0)
    if seldom(draw, 15):  # several files behind each other are one
        found += gzip.compress(draw(st.binary(max_size=5)), mtime=0)
    if seldom(draw, 10):
        found += draw(st.sampled_from([b"\0\0\0", b"rest", b"\x1f"]))
    return draw(damaged(found)) if seldom(draw, 25) else found


@st.composite
def files(draw: Any, lines: list[str], zip_it: bool | None = None) -> tuple[bytes, bool]:
    """The bytes of a file of these lines, in some encoding, whole or not; and whether it is .gz."""
    ending = draw(st.sampled_from(ENDINGS))
    text = ending.join(lines) + (ending if lines and not seldom(draw, 25) else "")
    data = text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
    if seldom(draw, 10):
        data = draw(damaged(data))
    if seldom(draw, 5):
        data = draw(st.binary(max_size=40))
    zip_it = draw(st.booleans()) if zip_it is None else zip_it
    return (draw(zipped(data)) if zip_it else data), zip_it


numbers = st.sampled_from([0, -1, 10**18, 1e300, True, None])
values: Any = short_lines | numbers | st.just([]) | st.just({}) | st.lists(short_lines, max_size=2)


@st.composite
def json_lines(draw: Any) -> str:
    """A line of a JSONL file that may be any kind of JSON, or none."""
    kind = draw(st.sampled_from(["flat", "flat", "flat", "nested", "nested", "odd"]))
    ascii_only = draw(st.booleans())
    if kind == "odd":
        deep = draw(st.sampled_from([50, 100_000]))
        digits = "9" * draw(st.sampled_from([30, 5000]))
        odd = [
            "", "null", "1", "[]", "{}", '"en"', '{"en": "a", "de": "b"} x', '{"en": "a"',
            '{"en": "a", "en": "c", "de": "b"}', '{"en": "a", "de": "\\ud800"}', "NaN",
            '{"en": "\\ud83d\\ude00", "de": "\\u0000"}', '{"en": 1e999, "de": ""}',
            f'{{"en": "a", "de": "b", "n": {digits}}}', f'{{"en": {digits}, "de": "b"}}',
            "[" * deep, "[" * deep + "]" * deep, f'{{"en": "a", "de": "b", "x": {"[" * deep}',
            f'{{"en": {"[" * deep}{"]" * deep}, "de": "b"}}',
            f'{{"en": "a", "de": "b", "x": {"[" * deep}{"]" * deep}}}',
            '{"de": {"a": ' * deep + "1" + "}" * deep,
        ]  # fmt: skip
        return str(draw(st.sampled_from(odd) | letters))
    strange = seldom(draw, 10)
    row = {name: draw(values if strange else short_lines) for name in ("en", "de")}
    if seldom(draw, 5):
        del row[draw(st.sampled_from(["en", "de"]))]
    if seldom(draw, 20):
        row[draw(short_lines)] = draw(values)
    found: Any = {"translation": row} if kind == "nested" else row
    return json.dumps(found, ensure_ascii=ascii_only)


TYPES = {
    "string": pa.string(), "large": pa.large_string(),
    "words": pa.dictionary(pa.int8(), pa.string()),
    "bytes": pa.binary(), "whole": pa.int64(), "real": pa.float32(),
    "list": pa.list_(pa.string()), "null": pa.null(), "time": pa.timestamp("ns"),
    "date": pa.date32(), "decimal": pa.decimal128(9, 2), "month": pa.duration("s"),
}  # fmt: skip
TEXT = ("string", "large", "words")


def _cell(kind: str, text: str, number: int) -> Any:
    whole = {"real": number / 3, "whole": number, "list": [text, None], "null": None}
    whole |= {"time": number * 10**15, "date": number * 1000, "month": number}
    whole |= {"decimal": None, "bytes": text.encode()}
    return whole.get(kind, text)


@st.composite
def columns(draw: Any, lines: list[str]) -> Any:
    """An Arrow column of these lines, of a type that is mostly one of text."""
    kind = draw(st.sampled_from(sorted(TYPES))) if seldom(draw, 15) else draw(st.sampled_from(TEXT))
    cells = [_cell(kind, line, number) for number, line in enumerate(lines)]
    if cells and seldom(draw, 10):
        cells[-1] = None
    return pa.array(cells, TYPES[kind])


@st.composite
def parquets(draw: Any) -> bytes:
    """A Parquet file with columns en and de, flat or inside `translation`, mostly whole."""
    src = draw(texts(longest=3000))
    arrays = [draw(columns(src)), draw(columns(src[::-1]))]
    names = draw(st.sampled_from([["en", "de"]] * 6 + [["en", "fr"], ["en", "en"], ["de", "en"]]))
    table = pa.table(arrays, names)
    if seldom(draw, 30) and len(set(names)) == 2:
        table = pa.table({"translation": pa.StructArray.from_arrays(arrays, names)})
    if seldom(draw, 20):
        table = table.append_column("number", draw(columns(src)))
    options = {"compression": draw(st.sampled_from(["none", "snappy", "zstd", "gzip"]))}
    stream = io.BytesIO()
    size = draw(st.integers(1, 4))
    checked = draw(st.booleans())
    pyarrow.parquet.write_table(
        table, stream, row_group_size=size, write_page_checksum=checked, **options
    )
    data = stream.getvalue()
    return draw(damaged(data)) if seldom(draw, 35) else data
