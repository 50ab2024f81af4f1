"""translate, score, test and average as a user runs them, against the Python API."""

import gzip
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from test_translator import ANSWERS, LINES, SEARCH, SHAPE, save
from toys import feed

from transformer import kernels
from transformer.__main__ import main
from transformer.bundle import TRAINING, load_bundle, save_bundle
from transformer.commands.text import BREAKS
from transformer.data.tokenizer import Tokenizer, TokenizerConfig
from transformer.inference.translator import Translator
from transformer.kernels import has_bfloat16
from transformer.models import Transformer


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run") / "bundle"
    save(folder)
    return str(folder)


pytestmark = pytest.mark.usefixtures("own_log")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must succeed; returns the lines it printed."""

    def command(*args: object) -> list[str]:
        code = main([str(arg) for arg in args])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out.splitlines()

    return command


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command that must fail; returns its one line of error."""

    def command(*args: object) -> str:
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        assert code == 2
        assert printed.err.startswith("transformer: error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return command


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
    for name, lines in (("src", LINES), ("tgt", targets)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    scored = Translator.load(bundle).score(LINES, targets)
    expected = [f"{s.log_prob:.4f}\t{s.tokens}" for s in scored]
    args = ["score", bundle, "--src", tmp_path / "src", "--tgt", tmp_path / "tgt"]
    assert run(*args) == expected
    assert scored[0].log_prob > scored[2].log_prob  # the right translation against a wrong one
    assert run(*args, "--output", tmp_path / "out") == []
    assert (tmp_path / "out").read_text().splitlines() == expected


def test_score_of_files_of_different_length(refused: Any, bundle: str, tmp_path: Path) -> None:
    (tmp_path / "src").write_text("a\nb\nc\n")
    (tmp_path / "tgt").write_text("a\nb\n")
    message = refused("score", bundle, "--src", tmp_path / "src", "--tgt", tmp_path / "tgt")
    assert f"{tmp_path}/src has 3 lines, but {tmp_path}/tgt has 2" in message


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """The three sentences, of which one has another reference."""
    (tmp_path / "set.en").write_text("".join(f"{line}\n" for line in LINES))
    references = [*ANSWERS[:2], "THE OLD MAN READS A BOOK ."]
    (tmp_path / "set.xx").write_text("".join(f"{line}\n" for line in references))
    return str(tmp_path / "set")


def test_test_leaves_scores_and_hypotheses(
    run: Any, bundle: str, corpus: str, tmp_path: Path
) -> None:
    folder = tmp_path / "results"
    options = ["--data.test", corpus, "--data.cache", tmp_path / "cache", "--run_dir", folder]
    printed = run("test", bundle, *options, "--device", "cpu", "--beam", 1)
    assert (folder / "hypotheses.txt").read_text().splitlines() == ANSWERS
    numbers = json.loads((folder / "results.json").read_text())
    references = Path(f"{corpus}.xx").read_text().splitlines()
    bleu = sacrebleu.corpus_bleu(ANSWERS, [references]).score
    chrf = sacrebleu.corpus_chrf(ANSWERS, [references]).score
    assert (numbers["bleu"], numbers["chrf"]) == pytest.approx((bleu, chrf), rel=1e-6)
    assert numbers["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    scored = Translator.load(bundle).score(LINES, references)
    nll = -sum(s.log_prob for s in scored) / sum(s.tokens for s in scored)
    torch.testing.assert_close(
        torch.tensor(numbers["perplexity"]).log(), torch.tensor(nll), atol=1e-4, rtol=1e-4
    )
    assert numbers["loss"] > nll  # smoothed
    assert numbers["parameters"] == sum(p.numel() for p in load_bundle(bundle).model.parameters())
    assert numbers["test_seconds"] > 0
    # How it was trained comes from the bundle.
    assert (numbers["recipe"], numbers["steps"], numbers["seconds"]) == ("toy", 120, None)
    assert numbers.keys() >= {*TRAINING, "loss"}
    assert "torch" in numbers["versions"]
    assert printed[-3] == f"BLEU {numbers['bleu']:.2f}   {numbers['signature']}"


def test_an_empty_source_has_an_empty_translation_in_every_command(
    run: Any, bundle: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sources, references = [LINES[0], "", LINES[1], " \u3000"], [ANSWERS[0], "", ANSWERS[1], ""]
    for side, lines in (("en", sources), ("xx", references)):
        (tmp_path / f"set.{side}").write_text("".join(f"{line}\n" for line in lines))
    folder, corpus = tmp_path / "results", tmp_path / "set"
    options = ["--data.test", corpus, "--data.cache", tmp_path / "cache", "--run_dir", folder]
    run("test", bundle, *options, "--device", "cpu")
    assert json.loads((folder / "results.json").read_text())["bleu"] == pytest.approx(100)
    assert (folder / "hypotheses.txt").read_text().splitlines() == references
    assert run("translate", bundle, "--input", f"{corpus}.en") == references
    message = f"data.test: 2 pairs have an empty side, the first is {corpus}, line 2; an empty"
    assert caplog.text.count(message) == 1


def with_learned_positions(folder: Path, positions: int) -> Path:
    """A bundle with random weights."""
    tokenizer = Tokenizer.train(TokenizerConfig(vocab_size=300), lambda: LINES, lambda: ANSWERS)
    shape = replace(SHAPE, positions="learned", max_positions=positions)
    model = shape.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    about: dict[str, Any] = {"src": "en", "tgt": "xx", "search": asdict(SEARCH), "evaluation": {}}
    about |= {"card": "", "training": {}, "max_length": positions}
    save_bundle(folder, model, tokenizer, **about)
    return folder


@pytest.mark.parametrize(("long", "language"), [("src", "en"), ("tgt", "xx")])
def test_a_line_beyond_the_learned_positions_is_named(
    run: Any, refused: Any, tmp_path: Path, long: str, language: str
) -> None:
    bundle = with_learned_positions(tmp_path / "bundle", 20)
    [text], tokenizer = (LINES if long == "src" else ANSWERS)[:1], load_bundle(bundle).tokenizer
    length = len(tokenizer.encode_tgt([text * 9])[0])
    files = {"src": tmp_path / "set.en", "tgt": tmp_path / "set.xx"}
    files["src"].write_text("a\nb\nc\n")
    files["tgt"].write_text("a\nb\nc\n")
    options = ["--data.test", tmp_path / "set", "--data.cache", tmp_path / "cache"]
    pairs = ["--src", files["src"], "--tgt", files["tgt"]]
    assert len(run("score", bundle, *pairs)) == 3
    files[long].write_text(f"a\nb\n{text * 9}\n")
    message = f"data.test: {tmp_path}/set, line 3: {length} tokens of {language}, the model has 20"
    assert message in refused("test", bundle, *options)
    message = f"{files[long]}, line 3: {length} tokens, the limit is 20: shorten it"
    assert message in refused("score", bundle, *pairs)


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="this CPU only emulates bfloat16")
def test_test_in_bfloat16_scores_the_rounded_weights(
    run: Any, bundle: str, corpus: str, tmp_path: Path
) -> None:
    options = ["--data.test", corpus, "--data.cache", tmp_path / "cache", "--device", "cpu"]
    perplexity = {}
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        run("test", bundle, *options, "--run_dir", folder, "--precision", precision)
        perplexity[precision] = json.loads((folder / "results.json").read_text())["perplexity"]
    scored = Translator.load(bundle, "cpu", "bfloat16").score(
        LINES, Path(f"{corpus}.xx").read_text().splitlines()
    )
    nll = -sum(s.log_prob for s in scored) / sum(s.tokens for s in scored)
    assert math.log(perplexity["bfloat16"]) == pytest.approx(nll, rel=1e-2)
    assert perplexity["bfloat16"] != perplexity["float32"]


def test_bfloat16_is_refused_where_a_cpu_only_emulates_it(
    refused: Any, bundle: str, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "has_bfloat16", lambda device: False)
    for command in (
        ["translate", bundle, "a"],
        ["score", bundle, "--src", f"{corpus}.en", "--tgt", f"{corpus}.xx"],
        ["test", bundle, "--data.test", corpus],
    ):
        said = refused(*command, "--device", "cpu", "--precision", "bfloat16")
        assert "--precision bfloat16 cannot be used here: this CPU only emulates bfloat16" in said
    assert not Path(bundle).with_name("test-set").exists()


def test_test_finds_a_folder_and_never_overwrites_it(
    run: Any, refused: Any, corpus: str, tmp_path: Path
) -> None:
    save(tmp_path / "run" / "bundle")
    config = tmp_path / "run" / "bundle" / "config.json"
    scores = {"label_smoothing": 0.0, "score_tokenize": "char", "score_lowercase": True}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"evaluation": scores}))
    args = ["test", tmp_path / "run" / "bundle", "--data.test", corpus]
    args += ["--data.cache", tmp_path / "cache", "--score_lowercase=false"]
    run(*args)
    (folder,) = (tmp_path / "run").glob("test-*")
    numbers = json.loads((folder / "results.json").read_text())
    assert numbers["perplexity"] == pytest.approx(torch.tensor(numbers["loss"]).exp().item())
    # The bundle's own settings, but for the one that was given.
    assert "case:mixed" in numbers["signature"]
    assert "tok:char" in numbers["signature"]
    assert "exists already: choose another --run_dir" in refused(*args)


def test_test_asks_for_a_corpus_that_is_there(refused: Any, bundle: str, tmp_path: Path) -> None:
    assert "data.test is missing" in refused("test", bundle)
    missing = refused("test", bundle, "--data.test", tmp_path / "no", "--run_dir", tmp_path / "r")
    assert "data.test" in missing
    assert not (tmp_path / "r").exists()
    assert "nearest is '--data.test'" in refused("test", bundle, "--data.tset", "x")


def checkpoint(path: Path, seed: int, **changes: Any) -> Transformer:
    """Writes what Lightning would, with random weights."""
    config = TokenizerConfig(vocab_size=changes.get("vocab_size", 300))
    tokenizer = Tokenizer.train(config, lambda: LINES, lambda: ANSWERS)
    shape = replace(SHAPE, d_ff=changes.get("d_ff", SHAPE.d_ff))
    torch.manual_seed(seed)
    model = shape.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    about = {
        "architecture": "transformer",
        "network": asdict(shape),
        "about": {
            "src": "en",
            "tgt": "xx",
            "search": asdict(SEARCH),
            "evaluation": {},
            "max_length": 60,
        },
        "tokenizer": tokenizer.to_text(),
    }
    weights = {f"network.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {"state_dict": weights, "bundle": about, "recipe": {"name": "toy"}, "global_step": 7}
    content["epoch"] = 0
    torch.save(content, path)
    return model


def test_average_is_the_mean_of_the_weights(run: Any, tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.ckpt" for seed in range(3)]
    models = [checkpoint(file, seed) for seed, file in enumerate(files)]
    printed = run("average", *files, tmp_path / "bundle")
    assert "mean of 3 checkpoints (0.ckpt, 1.ckpt, 2.ckpt)" in printed[0]
    averaged, _, config = load_bundle(tmp_path / "bundle")
    for name, weight in averaged.named_parameters():
        stacked = torch.stack([model.get_parameter(name).double() for model in models])
        torch.testing.assert_close(weight, stacked.mean(0).float(), atol=0, rtol=0)
    assert config["search"]["beam"] == SEARCH.beam
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "# en → xx" in card
    assert "mean of 3 checkpoints" in card
    run("translate", tmp_path / "bundle", "x", "--max_extra", 2)


def test_average_of_one_is_the_checkpoint_itself(run: Any, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "interrupted.ckpt", 1)
    run("average", tmp_path / "interrupted.ckpt", tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle").model
    for name, weight in loaded.named_parameters():
        torch.testing.assert_close(weight, model.get_parameter(name), atol=0, rtol=0)


def test_average_refuses_what_does_not_belong_together(refused: Any, tmp_path: Path) -> None:
    one, bundle = tmp_path / "one.ckpt", tmp_path / "bundle"
    checkpoint(one, 1)
    for name, changes, what in (
        ("shape", {"d_ff": 48}, "different network shapes"),
        ("vocabulary", {"vocab_size": 270}, "different tokenizers"),
    ):
        checkpoint(tmp_path / name, 2, **changes)
        assert what in refused("average", tmp_path / name, one, bundle)
    (tmp_path / "text").write_text("no checkpoint")
    assert "cannot be read as a checkpoint" in refused("average", tmp_path / "text", bundle)
    assert "no such checkpoint" in refused("average", tmp_path / "none.ckpt", bundle)
    assert not bundle.exists()
    bundle.mkdir()
    # The first thing it looks at: averaging may take long.
    assert f"{bundle} exists already" in refused("average", tmp_path / "none.ckpt", bundle)
    assert "required: bundle" in refused("average", one)
