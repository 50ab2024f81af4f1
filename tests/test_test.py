"""`transformer test` as a user runs it, against sacreBLEU and the Python API."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
from test_translator import ANSWERS, LINES, SEARCH, SHAPE, save
from toys import write_lines

from transformer import kernels
from transformer.bundle import TRAINING, load_bundle, save_bundle
from transformer.commands.test import new_folder
from transformer.commands.test import save as save_test
from transformer.data.tokenizer import TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.inference.translator import Translator
from transformer.kernels import has_bfloat16

pytestmark = pytest.mark.usefixtures("own_log")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run") / "bundle"
    save(folder)
    return str(folder)


@pytest.fixture
def tested(run: Any, tmp_path: Path) -> Any:
    """Runs `test` on the CPU; returns results.json, the hypotheses, and what it printed."""

    def command(bundle: str, corpus: object, *options: object) -> Any:
        folder = tmp_path / "-".join(["results", *map(str, options)])
        given = ["--data.test", corpus, "--data.cache", tmp_path / "cache", "--run_dir", folder]
        printed = run("test", bundle, *given, "--device", "cpu", *options)
        numbers = json.loads((folder / "results.json").read_text())
        return numbers, (folder / "hypotheses.txt").read_text().splitlines(), printed

    return command


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """The three sentences, of which one has another reference."""
    write_lines(tmp_path / "set.en", LINES)
    write_lines(tmp_path / "set.xx", [*ANSWERS[:2], "THE OLD MAN READS A BOOK ."])
    return str(tmp_path / "set")


def test_test_leaves_scores_and_hypotheses(tested: Any, bundle: str, corpus: str) -> None:
    numbers, hypotheses, printed = tested(bundle, corpus, "--beam", 1)
    assert hypotheses == ANSWERS
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
    run: Any, tested: Any, bundle: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sources, references = [LINES[0], "", LINES[1], " \u3000"], [ANSWERS[0], "", ANSWERS[1], ""]
    corpus = write_lines(tmp_path / "set.en", sources).with_suffix("")
    write_lines(tmp_path / "set.xx", references)
    numbers, hypotheses, _ = tested(bundle, corpus)
    assert numbers["bleu"] == pytest.approx(100)
    assert hypotheses == references
    assert run("translate", bundle, "--input", f"{corpus}.en") == references
    message = f"data.test: 2 pairs have an empty side, the first is {corpus}, line 2; an empty"
    assert caplog.text.count(message) == 1


def with_learned_positions(folder: Path, positions: int) -> Path:
    """A bundle with random weights."""
    tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=300), lambda: zip(LINES, ANSWERS, strict=True)
    )
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
    sides = {"src": "set.en", "tgt": "set.xx"}
    files = {side: write_lines(tmp_path / name, ["a", "b", "c"]) for side, name in sides.items()}
    options = ["--data.test", tmp_path / "set", "--data.cache", tmp_path / "cache"]
    pairs = ["--src", files["src"], "--tgt", files["tgt"]]
    assert len(run("score", bundle, *pairs)) == 3
    write_lines(files[long], ["a", "b", text * 9])
    message = f"data.test: {tmp_path}/set, line 3: {length} tokens of {language}, the model has 20"
    assert message in refused("test", bundle, *options)
    message = f"{files[long]}, line 3: {length} tokens, the limit is 20: shorten it"
    assert message in refused("score", bundle, *pairs)


def test_float32_products_are_those_of_fit(tested: Any, bundle: str, corpus: str) -> None:
    """Which on a GPU are in TF32."""
    torch.set_float32_matmul_precision("highest")
    tested(bundle, corpus)
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.skipif(not has_bfloat16("cpu"), reason="this CPU only emulates bfloat16")
def test_test_in_bfloat16_scores_the_rounded_weights(tested: Any, bundle: str, corpus: str) -> None:
    kinds = ("float32", "bfloat16")
    perplexity = {k: tested(bundle, corpus, "--precision", k)[0]["perplexity"] for k in kinds}
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
        assert "precision bfloat16 cannot be used here: this CPU only emulates bfloat16" in said
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
    assert "option '--sample' does not exist" in refused(*args, "--sample")


def test_scores_of_a_bundle_that_one_stands_in_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_folder("..", "x", None) == tmp_path.parent.parent / "test-x"
    assert new_folder(".", "x", None) == tmp_path.parent / "test-x"
    assert new_folder("./sub/bundle", "x", None) == Path("test-x"), "one of the hub"


def test_a_name_that_was_taken_during_the_work_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "test-x").mkdir()
    numbers = {"loss": 1.0, "perplexity": 2.7, "bleu": 1.0, "chrf": 2.0, "signature": "s"}
    save_test(tmp_path / "test-x", {0: "eins"}, numbers)
    assert (tmp_path / "test-x-2/hypotheses.txt").read_text() == "eins\n"


def test_test_asks_for_a_corpus_that_is_there(refused: Any, bundle: str, tmp_path: Path) -> None:
    assert "data.test is missing" in refused("test", bundle)
    missing = refused("test", bundle, "--data.test", tmp_path / "no", "--run_dir", tmp_path / "r")
    assert "data.test" in missing
    assert not (tmp_path / "r").exists()
    assert "nearest is '--data.test'" in refused("test", bundle, "--data.tset", "x")
