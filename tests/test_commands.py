"""translate and score as a user runs them, against the Python API."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from test_translator import ANSWERS, LINES, SEARCH, save
from toys import feed, write_lines

from transformer.commands.text import BREAKS
from transformer.inference.translator import Translator


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run") / "bundle"
    save(folder)
    return str(folder)


pytestmark = pytest.mark.usefixtures("own_log")


def test_texts_become_a_line_each(run: Any, bundle: str) -> None:
    assert run("translate", bundle, *LINES) == ANSWERS
    assert run("translate", bundle, LINES[0], "", " ", LINES[1]) == [ANSWERS[0], "", "", ANSWERS[1]]


def test_options_may_stand_anywhere(run: Any, bundle: str) -> None:
    for args in (
        ["--beam", "1", bundle, LINES[0]],
        [bundle, "--beam", "1", LINES[0]],
        [bundle, LINES[0], "--beam=1"],
        ["--beam", "1", "--device", "cpu", "--", bundle, LINES[0]],
    ):
        assert run("translate", *args) == [ANSWERS[0]]


def test_a_text_may_begin_with_a_dash(run: Any, bundle: str) -> None:
    assert len(run("translate", bundle, "--beam=1", "--", "--beam")) == 1


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_files_become_a_file(run: Any, bundle: str, tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}.en{suffix}" for name in "ab"]
    for file, lines in zip(files, (LINES, ["", LINES[1]]), strict=True):
        text = "".join(f"{line}\r\n" for line in lines).encode()
        file.write_bytes(gzip.compress(text) if suffix else text)
    out = tmp_path / "out.xx"
    assert run("translate", bundle, "--input", *files, "--output", out) == []
    assert out.read_text().splitlines() == [*ANSWERS, "", ANSWERS[1]]


def test_standard_input_is_read(run: Any, bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, "\n".join([LINES[2], "", LINES[0]]).encode())
    assert run("translate", bundle) == [ANSWERS[2], "", ANSWERS[0]]


def test_many_lines_keep_their_order(
    run: Any, bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformer.commands.text.CHUNK", 2)
    assert run("translate", bundle, *LINES, *LINES) == [*ANSWERS, *ANSWERS]
    numbers = [row.split("\t")[0] for row in run("translate", bundle, *LINES, "--n_best=2")]
    assert numbers == ["1", "1", "2", "2", "3", "3"]


def test_a_line_that_grows_too_long_is_refused_before_any_is_translated(
    refused: Any, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFC makes 12 bytes of the 4 of a quaver."""
    monkeypatch.setattr("transformer.commands.text.CHUNK", 1)
    (file := tmp_path / "in").write_text(f"{LINES[1]}\n{5 * chr(0x1D160)}\n")
    args = ["--input", file, "--output", tmp_path / "out", "--max_length", "30"]
    assert "in, line 2: 61 tokens, the limit is 30" in refused("translate", bundle, *args)


def test_columns_are_those_of_the_api(run: Any, bundle: str) -> None:
    found = Translator.load(bundle).n_best(LINES[:2], beam=3, n_best=2, alignments=True)
    expected = [
        f"{number}\t{t.score:.4f}\t{t.log_prob:.4f}\t{t.text}\t"
        + " ".join(f"{s}-{t}" for s, t in t.alignment or [])
        for number, translations in enumerate(found, 1)
        for t in translations
    ]
    options = ["--beam", "3", "--n_best", "2", "--scores", "--alignments"]
    assert run("translate", bundle, *options, *LINES[:2]) == expected
    best = f"{found[0][0].score:.4f}\t{found[0][0].log_prob:.4f}\t{ANSWERS[0]}"
    assert run("translate", bundle, "--scores", LINES[0], "") == [best, "0.0000\t0.0000\t"]


def test_search_options_not_given_are_the_bundles(refused: Any, bundle: str) -> None:
    assert SEARCH.beam == 3
    assert "n_best is 4 with beam 3" in refused("translate", bundle, "x", "--n_best", "4")


def test_prefix_and_seeded_sampling(run: Any, bundle: str) -> None:
    assert run("translate", bundle, "--prefix", "A DOG", LINES[0])[0].startswith("A DOG")
    sampled = [
        run("translate", bundle, "--sample", "--temperature=3", f"--seed={seed}", *LINES)
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_nothing_in_a_translation_breaks_a_line() -> None:
    text = "a\tb\nc\rd\u2028e\x85f"
    assert text.translate(BREAKS) == "a b c d e f"


def test_output_is_never_overwritten(refused: Any, bundle: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("precious")
    assert "exists already" in refused("translate", bundle, "x", "--output", out)
    assert out.read_text() == "precious"


def test_a_failed_translation_leaves_no_output(refused: Any, bundle: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.en"
    bad.write_bytes(b"good\nb\xe9d\n")
    message = refused("translate", bundle, "--input", bad, "--output", tmp_path / "out")
    assert f"{bad}, line 2: not UTF-8" in message
    assert list(tmp_path.iterdir()) == [bad]


def test_bad_input_is_named(
    refused: Any, bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, f"{LINES[0]}\n\n".encode() + b"b\xe9d\n")
    assert "standard input, line 3: not UTF-8" in refused("translate", bundle)
    assert "text 2: not UTF-8" in refused("translate", bundle, "a", "b\udce9d")
    assert "no.en: No such file" in refused("translate", bundle, "--input", tmp_path / "no.en")
    both = refused("translate", "no-bundle", "text", "--input", "file")
    assert "texts and --input files" in both
    assert "not a bundle" in refused("translate", tmp_path, "text")
    assert "nearest is '--n_best'" in refused("translate", bundle, "--nbest", "3", "x")
    assert "required: bundle" in refused("translate")
    assert "prefix line 1: not UTF-8" in refused("translate", bundle, "a", "--prefix", "b\udce9d")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--max_extra=-3", "max_extra is -3: it must be 0 or more"),
        (f"--alpha={'9' * 400}", "a number has too many digits"),
        ("--max_tokens=-5", "max_tokens is -5: it must be 1 or more"),
        ("--max_length=0", "max_length is 0: it must be 1 or more"),
        ("--min_length=60", "min_length is 60 with max_extra 50"),
        ("--seed=99999999999999999999", "--seed is 99999999999999999999"),
    ],
)
def test_numbers_that_make_no_sense(
    refused: Any, bundle: str, option: str, message: str, tmp_path: Path
) -> None:
    assert message in refused("translate", bundle, "a", option)
    if "max_tokens" in option:
        (tmp_path / "x").write_text("x\n")
        files = ["--src", tmp_path / "x", "--tgt", tmp_path / "x"]
        assert message in refused("score", bundle, *files, option)


def test_a_long_line_is_refused_by_name_or_split(
    run: Any, refused: Any, bundle: str, tmp_path: Path
) -> None:
    file = tmp_path / "long.en"
    file.write_text(f"{LINES[0]}\n{' '.join(LINES * 2)}\n")
    args = ["translate", bundle, "--input", file, "--max_length", "30"]
    assert f"{file}, line 2: " in refused(*args)
    short = Translator.load(bundle, max_length=30)
    expected = short.translate([LINES[0], " ".join(LINES * 2)], too_long="split")
    assert run(*args, "--too_long", "split") == expected
    assert "--too_long split" in refused(*args, "--too_long", "split", "--scores")
    dialogue = f"- {LINES[0]}"
    assert run("translate", bundle, dialogue) == Translator.load(bundle).translate([dialogue])
    assert "none of --prefix" in refused(*args, "--too_long", "split", "--prefix", "A")


def test_score_is_that_of_the_api(run: Any, bundle: str, tmp_path: Path) -> None:
    targets = [ANSWERS[0], "", ANSWERS[1]]
    src, tgt = write_lines(tmp_path / "src", LINES), write_lines(tmp_path / "tgt", targets)
    scored = Translator.load(bundle).score(LINES, targets)
    expected = [f"{s.log_prob:.4f}\t{s.tokens}" for s in scored]
    args = ["score", bundle, "--src", src, "--tgt", tgt]
    assert run(*args) == expected
    assert scored[0].log_prob > scored[2].log_prob  # the right translation against a wrong one
    assert run(*args, "--output", tmp_path / "out") == []
    assert (tmp_path / "out").read_text().splitlines() == expected


def test_score_of_files_of_different_length(refused: Any, bundle: str, tmp_path: Path) -> None:
    src, tgt = (
        write_lines(tmp_path / "src", ["a", "b", "c"]),
        write_lines(tmp_path / "tgt", ["a", "b"]),
    )
    message = refused("score", bundle, "--src", src, "--tgt", tgt)
    assert f"{src} has 3 lines but {tgt} has 2" in message
