"""Odd lines, options and lists for what translates."""

from __future__ import annotations

import gzip
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from transformer.commands.text import BREAKS

from .calling import WORDS, Outcome, bundle, called, checked, expected_lines, inputs, translator
from .fuzz_corpora import refusal
from .odd_text import files, numbers, seldom, short_lines, texts


def lines(data: Any, folder: Path) -> None:
    """One line comes out for each line that goes in, the translation of that line."""
    tags = data.draw(st.booleans())
    args, given, expected = data.draw(inputs(folder))
    skip = data.draw(st.integers(0, 2)) if seldom(data.draw, 10) else 0
    split = seldom(data.draw, 50)
    options = ["--skip", str(skip)] * bool(skip) + ["--too_long", "split"] * split
    options += ["--scores"] * (scores := not split and data.draw(st.booleans()))
    to_file = data.draw(st.sampled_from([None, None, "out", "out.gz"]))
    options += ["--output", str(folder / to_file)] if to_file else []
    found = called("translate", bundle(tags), *options, *args, **given)
    well = checked(found)
    its = translator(tags)
    too_long = any(len(its.encode([line])[0]) > its.max_length for line in (expected or [])[skip:])
    readable = expected is not None and skip <= len(expected) and (split or not too_long)
    assert well == readable, found
    if not well:
        return
    assert expected is not None
    raw = (folder / to_file).read_bytes() if to_file else found.out
    out = (gzip.decompress(raw) if to_file == "out.gz" else raw).decode()
    assert not out or out.endswith("\n")
    rows = out.split("\n")[:-1]
    assert len(rows) == len(expected) - skip and not set("".join(rows)) & set("\r\x85\u2028\v")
    others = 0
    for line, row in zip(expected[skip:], rows, strict=True):
        if scores:
            [[one]] = its.n_best([line])
            assert abs(float(row.split("\t")[1]) - one.log_prob) < 1e-2, (row, one)
        else:
            [alone] = its.translate([line], too_long="split" if split else "refuse")
            others += row != alone.translate(BREAKS)
        assert line.strip() or row.split("\t")[-1] == ""
    # In a batch the last bits differ, and so may a translation that is about as good as the best.
    assert others <= 1, rows


ODD = ("0", "-1", "1", "2", "3", "7", "1.5", "nan", "inf", "-inf", "1e308", "-1e308", "1e-320", "",
       "null", "true", "abc", "[1]", "{}", "10" * 10, "9" * 400, "00", "1_0", "\u0663", " 2", "-",
       "1e-30", "4096", "999999999")  # fmt: skip
NAMES = (
    "beam", "n_best", "alpha", "max_extra", "min_length", "no_repeat_ngram", "temperature", "top_k",
    "top_p", "seed", "max_tokens", "max_length", "skip", "length_norm", "precision", "device",
    "too_long", "to", "prefix",
)  # fmt: skip


@st.composite
def settings(draw: Any) -> list[str]:
    """Options with values that mostly are none."""
    found = []
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=4, unique=True)):
        value = draw(st.sampled_from(ODD) | short_lines.map(lambda text: text.replace("\0", "")))
        if name == "max_extra" and value in ("4096", "1e308"):
            value = "20"  # the user would get the work that was asked for
        found += [f"--{name}", value]
    for name in ("scores", "alignments", "sample", "guard"):
        found += [f"--{name}"] * seldom(draw, 20)
    words = {"length_norm": ["gnmt", "power", "none"], "to": ["en", "de", "fr"]}
    for name, known in words.items():
        found += [f"--{name}", draw(st.sampled_from(known))] if seldom(draw, 20) else []
    return found


def options(data: Any, folder: Path) -> None:
    """A line, or at most `n_best` lines, for each line, with the prefix; or an error."""
    given = data.draw(settings())
    tags = data.draw(st.booleans())
    lines = [*WORDS[:2], "", *WORDS[2:]]
    content, pipe = "\n".join(lines).encode(), data.draw(st.booleans())
    found = called("translate", bundle(tags), *given, given=content, pipe=pipe)
    if not checked(found):
        assert given, "refused without options"
        return
    value = dict(pairwise(given))
    lines = lines[int(value.get("--skip", 0)) :]
    rows = found.out.decode().split("\n")[:-1]
    if (most := int(value.get("--n_best", 1))) > 1:
        numbers = [int(row.split("\t")[0]) - 1 - len(WORDS) - 1 + len(lines) for row in rows]
        assert sorted(numbers) == numbers and {*numbers} == {*range(len(lines))}
        assert all(numbers.count(number) <= most for number in numbers)
    else:
        numbers = [*range(len(rows))]
        assert len(rows) == len(lines)
    tokenizer = translator(tags).tokenizer
    [prefix] = tokenizer.decode(tokenizer.encode_tgt([value.get("--prefix", "")]))
    for number, row in zip(numbers, rows, strict=True):
        assert not lines[number] or prefix.translate(BREAKS) in row
    assert "nan" not in found.out.decode() or "--scores" not in given, found.out


things = (
    short_lines | st.text(max_size=5) | numbers | st.binary(max_size=3) | st.lists(short_lines)
    | st.floats()
)  # fmt: skip


def lists(data: Any, folder: Path) -> None:
    """The methods of a Translator take lists of texts and nothing else."""
    its = translator(tags := data.draw(st.booleans()))
    given = data.draw(
        st.lists(short_lines, max_size=4) | st.lists(things, max_size=4) | things | texts(3)
    )
    method = data.draw(st.sampled_from(["translate", "n_best", "checked", "score"]))
    how: dict[str, Any] = {}
    if method != "score":
        how = data.draw(st.sampled_from([
            {}, {"guard": True}, {"to": "de"}, {"prefix": "the"}, {"prefix": 7}, {"to": 3},
            {"beam": 3}, {"n_best": 0}, {"no_repeat_ngram": 2}, {"sample": True},
        ]))  # fmt: skip
        if method in ("translate", "checked") and seldom(data.draw, 30):
            how["too_long"] = "split"
    args = (given, given) if method == "score" else (given,)
    try:
        found, refused = refusal(lambda: getattr(its, method)(*args, **how))
    except TypeError as error:
        if isinstance(given, list) or "give a list of lines" not in str(error):
            raise
        return
    if refused is None:
        assert len(found) == len([*given]) and all(isinstance(line, str) for line in given)
        for line, one in zip(given, found, strict=True):
            assert line.strip() or method != "translate" or one == ""
    elif isinstance(given, list) and all(isinstance(x, str) for x in given) and not how:
        longest = max((len(x.encode(errors="replace")) for x in given), default=0)
        surrogates = any("\ud800" <= char <= "\udfff" for x in given for char in x)
        assert surrogates or longest > 10 or (method == "score" and tags), refused


def processes(data: Any, folder: Path) -> None:
    """As users run it: bytes in, lines out or an error of one line."""
    content, _ = data.draw(files(data.draw(texts(5, longest=3000)), False))
    command = [sys.executable, "-m", "transformer", "translate", bundle()]
    done = subprocess.run(command, input=content, capture_output=True, timeout=100)
    found = Outcome(done.returncode, done.stdout, done.stderr.decode())
    expected = expected_lines([(content, False)])
    if checked(found):
        assert expected is not None and found.out.decode().count("\n") == len(expected)
    else:
        assert expected is None or max(map(len, expected)) > 10
