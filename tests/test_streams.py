"""Lines in and out of commands: pipes, terminals, files that are whole, and how work goes on."""

from __future__ import annotations

import gzip
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from test_translator import ANSWERS, LINES, SEARCH, SHAPE, asdict, replace
from toys import ROOT, feed

from transformer.__main__ import main
from transformer.bundle import save_bundle
from transformer.commands.text import Input, Source, writing
from transformer.data.tokenizer import TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.inference.translator import Translator

QUICK = ["--beam=1", "--max_extra=3", "--device=cpu"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained model with 60 learned positions: what it writes is of no use, but its own."""
    folder = tmp_path_factory.mktemp("run") / "bundle"
    tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=300), lambda: zip(LINES, ANSWERS, strict=True)
    )
    torch.manual_seed(0)
    shape = replace(SHAPE, positions="learned", max_positions=60)
    model = shape.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    about: dict[str, Any] = {"search": asdict(SEARCH), "evaluation": {}, "training": {}}
    save_bundle(folder, model, tokenizer, src="en", tgt="xx", max_length=45, card="", **about)
    return str(folder)


@pytest.fixture
def expected(bundle: str) -> Callable[..., str]:
    """Returns the translations of lines, by the Python API."""
    translator = Translator.load(bundle, "cpu")

    def translate(*lines: str) -> str:
        return "".join(f"{x}\n" for x in translator.translate(lines, beam=1, max_extra=3))

    return translate


@pytest.fixture
def error(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail before it prints anything; returns what it says."""

    def command(*args: object) -> str:
        assert main([str(arg) for arg in args]) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        return printed.err

    return command


@pytest.fixture
def start(bundle: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `transformer translate` as a process."""
    started: list[subprocess.Popen[bytes]] = []

    def process(*args: object, stdin: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "transformer", "translate", bundle, *QUICK]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen([*command, *map(str, args)], stdin=stdin, stdout=pipe, stderr=pipe,
                             env=env)
        )  # fmt: skip
        return started[-1]

    yield process
    for one in started:
        one.kill()
        one.communicate()


def test_a_terminal_gets_each_line_at_once(start: Any, expected: Any) -> None:
    terminal, end = pty.openpty()
    process = start(stdin=end)
    hint = b"transformer: reading standard input, a text in each line; Ctrl-D ends it\n"
    assert process.stderr.readline() == hint
    for line in LINES[:2]:
        os.write(terminal, f"{line}\n".encode())
        assert process.stdout.readline().decode() == expected(line)
    os.write(terminal, b"\x04")
    assert process.wait() == 0


def test_what_sigterm_stops_is_kept_and_goes_on(start: Any, expected: Any, bundle: str,
                                                tmp_path: Path) -> None:  # fmt: skip
    """From a pipe that stays open: the two lines that came are done before the third."""
    out = tmp_path / "out.xx"
    process = start("--output", out)
    process.stdin.write("".join(f"{line}\n" for line in LINES[:2]).encode())
    process.stdin.flush()
    whole = expected(*LINES[:2])
    parts: list[Path] = []
    until = time.monotonic() + 120
    while not parts or parts[0].read_text() != whole:
        assert time.monotonic() < until
        time.sleep(0.05)
        parts = list(tmp_path.glob("out.xx.partial-*"))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 143
    (part,) = tmp_path.iterdir()
    assert part.read_text() == whole
    last = said.decode().splitlines()[-1]
    assert last == (
        f"transformer: {part} holds what became of lines 1 to 2: for the rest repeat the command "
        f"with `--skip 2 --output {out}.rest`, then `cat {part} {out}.rest > {out}`"
    )
    # As it says.
    texts = ["translate", bundle, *QUICK, *LINES]
    assert main([*texts, *last.split("`")[1].split()]) == 0
    subprocess.run(last.split("`")[3], shell=True, check=True)
    assert out.read_text() == expected(*LINES)


def test_an_error_in_a_pipe_keeps_what_was_done(
    error: Any, expected: Any, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, f"{LINES[1]}\n{LINES[0]}\nb".encode() + b"\xe9d\n")
    said = error("translate", bundle, *QUICK, "--output", tmp_path / "o", "--skip", 1)
    assert "holds what became of lines 2 to 2" in said
    assert "`--skip 2 --output" in said
    last = said.splitlines()[-1]
    assert last.startswith("transformer: error: standard input, line 3: not UTF-8 (")
    (part,) = tmp_path.iterdir()
    assert part.read_text() == expected(LINES[0])


@pytest.mark.parametrize("last", [b"b\xe9d", b"x" * 46], ids=["not UTF-8", "long"])
def test_files_are_checked_before_anything_is_translated(
    error: Any, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    """The last line of the second file; also of a file that is standard input."""
    monkeypatch.setattr("transformer.commands.text.CHUNK", 1)
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(f"{LINES[1]}\n")
    bad.write_bytes(f"{LINES[1]}\n".encode() + last)
    monkeypatch.setattr(sys, "stdin", bad.open())
    what = {b"b": "not UTF-8", b"x": "47 tokens, the limit is 45"}[last[:1]]
    for names, place in ((["-"], "standard input"), ([good, bad], bad)):
        said = error("translate", bundle, *QUICK, "--input", *names, "--output", tmp_path / "o")
        assert f"error: {place}, line 2: {what}" in said
        assert {*tmp_path.iterdir()} == {good, bad}


def test_a_file_as_standard_input_is_read_from_where_it_stands(
    bundle: str, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "in").write_text("".join(f"{line}\n" for line in LINES))
    stream = (tmp_path / "in").open()
    os.lseek(stream.fileno(), len(LINES[0]) + 1, os.SEEK_SET)
    monkeypatch.setattr(sys, "stdin", stream)
    assert main(["translate", bundle, *QUICK, "-"]) == 0
    assert capfd.readouterr().out == expected(*LINES[1:])


def test_lines_that_arrive_while_others_are_in_work_come_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end, start = os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(end))
    monkeypatch.setattr("transformer.commands.text.CHUNK", 3)
    chunks = Input([Source("-")]).chunks()
    os.write(start, b"one\ntw")
    assert [[line.text for line in row] for row in next(chunks)] == [["one"]]
    os.write(start, b"o\n3\n4\n5\n6")
    os.close(start)
    rest = []
    for _ in range(2):
        time.sleep(0.2)  # the work
        rest.append([row[0].text for row in next(chunks)])
    assert rest == [["two", "3", "4"], ["5", "6"]]
    assert next(chunks, None) is None


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (LINES[1].encode("utf-8-sig"), None),
        (LINES[1].encode("utf-16"), "line 1: not UTF-8, but UTF-16: convert it with iconv"),
        (LINES[1].encode("utf-16-be"), "but UTF-16: convert it with iconv -f UTF-16BE -t"),
        (LINES[1].encode("utf-16-le"), "but UTF-16: convert it with iconv -f UTF-16LE -t"),
        (gzip.compress(LINES[1].encode()), "line 1: not UTF-8, but gzipped: unzip it"),
    ],
    ids=["mark", "utf-16", "utf-16-be", "utf-16-le", "gzip"],
)
def test_encodings_of_standard_input(
    error: Any, expected: Any, bundle: str, encoded: bytes, message: str | None,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    feed(monkeypatch, encoded)
    if message:
        assert message in error("translate", bundle, *QUICK)
    else:
        assert main(["translate", bundle, *QUICK]) == 0
        assert capfd.readouterr().out == expected(LINES[1])


def test_the_usual_names_of_open_streams(
    bundle: str, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    text, answer = LINES[1], expected(LINES[1])
    for output in ("-", "/dev/stdout"):
        assert main(["translate", bundle, *QUICK, text, "--output", output]) == 0
        assert capfd.readouterr().out == answer
    assert main(["translate", bundle, *QUICK, text, "--output=/dev/null"]) == 0
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert main(["translate", bundle, *QUICK, text, "--output=pipe"]) == 0
    assert os.read(reader, 999).decode() == answer
    for names in (["--input", "-"], ["-"], []):
        feed(monkeypatch, text.encode())
        assert main(["translate", bundle, *QUICK, *names]) == 0
        assert capfd.readouterr().out == answer
    Path("tgt").write_text("x\n")
    scores = []
    for src in ("tgt", "-"):
        feed(monkeypatch, b"x\n")
        assert main(["score", bundle, "--src", src, "--tgt", "tgt"]) == 0
        scores.append(capfd.readouterr().out)
    assert scores[0] == scores[1]
    assert {path.name for path in Path().iterdir()} == {"pipe", "tgt"}


def test_input_that_cannot_be(
    error: Any, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, long = tmp_path / "two", tmp_path / "long"
    two.write_text("a\nb\n")
    long.write_text(f"a\n{'x' * 60}\n")
    feed(monkeypatch, b"")
    twice = error("score", bundle, "--src", "-", "--tgt", "-")
    assert "standard input (-) can be read once" in twice
    for command in (["score", bundle, "--src", two, "--tgt", two], ["translate", bundle, "a", "b"]):
        assert "--skip is -1: give a number" in error(*command, "--skip", -1)
        assert "--skip is 3, but there are 2 lines" in error(*command, "--skip", 3)
    # In both places where there are no more than 60 positions.
    for sides in ((two, long), (long, two)):
        said = error("score", bundle, "--src", sides[0], "--tgt", sides[1])
        assert f"{long}, line 2: 61 tokens, the limit is 60" in said
    assert f"{tmp_path}/none: No such file" in error("translate", bundle, "--input", two,
                                                     tmp_path / "none")  # fmt: skip


def test_the_bundle_may_stand_after_input_files(
    bundle: str, expected: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").write_text(LINES[1])
    files = [str(tmp_path / "in")] * 2
    for args in (["--input", *files, bundle], ["--input", *files, bundle, "--skip", "0"]):
        assert main(["translate", *QUICK, *args]) == 0
        assert capfd.readouterr().out == expected(LINES[1], LINES[1])


def test_a_file_is_whole_or_keeps_whole_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where half a line was written, as on a disk that is full; gzipped or not."""
    with suppress(RuntimeError), writing(str(tmp_path / "a")) as out:
        out.write(["one", "two"], 2)
        out.stream.write(b"thr")
        raise RuntimeError
    (part,) = tmp_path.iterdir()
    assert part.name.startswith("a.partial-")
    assert part.read_text() == "one\ntwo\n"
    other = writing(str(tmp_path / "b"))
    other.__enter__().write(["ours"], 1)
    (tmp_path / "b").write_text("theirs")
    with pytest.raises(ValueError, match="b has appeared meanwhile"):
        other.__exit__(None, None, None)
    assert (tmp_path / "b").read_text() == "theirs"
    (part,) = tmp_path.glob("b.partial-*")
    assert part.read_text() == "ours\n"
    with suppress(RuntimeError), writing(str(tmp_path / "d.gz")) as out:
        out.write(["one"], 1)
        out.write(["two"], 1)
        out.stream.write(b"thr")
        raise RuntimeError
    (part,) = tmp_path.glob("d.gz.partial-*")
    assert f"`--skip 2 --output {tmp_path}/d.rest.gz`, then `cat {part} " in capsys.readouterr().err
    with writing(str(tmp_path / "d.rest.gz"), skip=2) as out:
        out.write(["three"], 1)
    whole = part.read_bytes() + (tmp_path / "d.rest.gz").read_bytes()  # as cat puts them together
    assert gzip.decompress(whole) == b"one\ntwo\nthree\n"
    with writing(str(tmp_path / "empty.gz")):
        pass
    assert gzip.decompress((tmp_path / "empty.gz").read_bytes()) == b""
    before = signal.getsignal(signal.SIGTERM)
    with writing(str(tmp_path / "c")) as out:
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "c").read_bytes() == b""
