"""Several languages in one model: tags from the recipe to `--to`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import recipe, write_corpus

from transformer.__main__ import main
from transformer.commands.reproduce import moved
from transformer.data.tokenizer import EOS, Tokenizer, TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.inference import forced
from transformer.inference.translator import Translator

pytestmark = pytest.mark.usefixtures("own_log")


# Tags


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
@pytest.mark.parametrize("shared", [True, False])
def test_text_that_spells_a_tag_is_text(kind: Any, shared: bool) -> None:
    pairs = lambda: [(line, line) for line in ["<2de> <s> ein haus", "<2en> a house </s>"] * 20]  # noqa: E731
    config = TokenizerConfig(kind, 300, shared)
    tokenizer = train_tokenizer(config, pairs, ["en", "de"])
    assert tokenizer.tags == {"de": 4, "en": 5}
    assert Tokenizer(tokenizer.to_text()).tags == tokenizer.tags
    text = "<2de> <2en> ein haus"
    [found] = tokenizer.encode_src([text], "en")
    assert (found[0], found[-1]) == (5, EOS)
    assert not {4, 5} & {*found[1:], *(tokenizer.encode_tgt([text])[0] if shared else [])}
    assert (
        tokenizer.decode([[5, *tokenizer.encode_tgt(["a house"])[0]]]) == ["a house"] or not shared
    )
    assert tokenizer.pieces("src", found)[0] == "<2en>"
    assert tokenizer.words("src", found[:-1])[0] == 0
    assert tokenizer.words("src", found[:-1])[-1] == 3, "a tag was counted"
    with pytest.raises(
        ValueError, match="^language 'it' is unknown .*: it translates into de, en$"
    ):
        tokenizer.encode_src([text], "it")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model of German to English and back."""
    folder = tmp_path_factory.mktemp("mixture")
    path = recipe(folder, extra=f"run_dir: {folder}/run\nlogger: none\n")
    also = f"{{train: {folder}/corpus/train, src: en, tgt: de, share: 0.4}}"
    path.write_text(
        path.read_text().replace("src: de,", f"src: de, tags: true, extra_corpora: [{also}],")
    )
    assert main(["fit", "--config", str(path), "--trainer.enable_progress_bar", "false"]) == 0
    return folder


def test_a_model_translates_into_each_of_its_languages(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    translator = Translator.load(trained / "run/bundle")
    lines = ["rot haus", "", "vier baum"]
    into = {to: translator.translate(lines, to=to) for to in ("de", "en")}
    assert translator.translate(lines) == into["en"]
    scores = {to: translator.score(["rot"], ["red"], to)[0].log_prob for to in ("de", "en")}
    assert scores["de"] != scores["en"] == translator.score(["rot"], ["red"])[0].log_prob
    assert translator.attention("rot", "red", to="de")[1][0] == "<2de>"
    [[best], _, _] = translator.n_best(lines, to="de", alignments=True, n_best=1)
    assert {s for s, _ in best.alignment or []} <= {0, 1}

    bundle = str(trained / "run/bundle")
    capsys.readouterr()
    for to, expected in into.items():
        assert main(["translate", bundle, "--to", to, "--scores", *lines]) == 0
        found = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert [text for *_, text in found] == expected
        assert found[0][1] == f"{translator.n_best(lines, to=to, n_best=1)[0][0].log_prob:.4f}"
    for side, text in (("src", "rot\n"), ("tgt", "red\n")):
        (trained / side).write_text(text)
    pair = ["--src", str(trained / "src"), "--tgt", str(trained / "tgt")]
    assert main(["score", bundle, *pair, "--to", "de"]) == 0
    assert float(capsys.readouterr().out.split("\t")[0]) == pytest.approx(scores["de"], abs=1e-3)
    card = (trained / "run/bundle/README.md").read_text()
    assert "- training pairs: de → en 60.0 %, en → de 40.0 %" in card
    assert 'translate(["..."], to="de")' in card


def test_a_tag_is_aligned_with_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    translator = Translator.load(trained / "run/bundle")
    src = translator.encode(["rot baum"], "de")[0]
    tgt = translator.tokenizer.encode_tgt(["red"])[0][:-1]
    weights = torch.zeros(1, 1, 1, len(tgt) + 1, len(src))
    weights[..., 0], weights[..., -2] = 0.6, 0.4  # the tag, and the end of "baum"
    monkeypatch.setattr(forced, "cross_attention", lambda *_: weights)
    assert forced.align(translator.model, translator.tokenizer, [(src, tgt)]) == [[(1, 0)]]


def test_the_test_uses_the_tag_of_its_target(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, test = str(trained / "run/bundle"), f"{trained}/corpus/test"
    command = ["test", bundle, "--data.test", test, "--data.cache", f"{trained}/cache"]
    backwards = [*command, "--data.src", "en", "--data.tgt", "de", "--run_dir", f"{trained}/de"]
    assert main(backwards) == 0
    lines = (trained / "corpus/test.en").read_text().splitlines()
    expected = Translator.load(bundle).translate(lines, to="de")
    assert (trained / "de/hypotheses.txt").read_text().splitlines() == expected
    write_corpus(trained / "other", {"test": 3})
    (trained / "other/test.it").write_text("x\n" * 3)
    capsys.readouterr()
    other = ["--data.test", f"{trained}/other/test", "--data.tgt", "it", "--run_dir"]
    assert main([*command, *other, f"{trained}/it"]) == 2
    assert "error: data.tgt: language 'it' is unknown to this model" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["translate", "score"])
def test_a_language_that_the_model_does_not_know(
    trained: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = [
        f"--{side}={trained}/corpus/test.{name}" for side, name in (("src", "de"), ("tgt", "en"))
    ]
    text = ["rot"] if command == "translate" else pair
    assert main([command, str(trained / "run/bundle"), *text, "--to", "it"]) == 2
    message = "--to it: language 'it' is unknown to this model: it translates into de, en\n"
    assert capsys.readouterr().err == f"transformer: error: {message}"


def test_a_model_without_tags_translates_into_one_language(trained: Path) -> None:
    plain = train_tokenizer(TokenizerConfig(vocab_size=300), lambda: [("rot haus", "red house")])
    model = Translator.load(trained / "run/bundle").model
    translator = Translator(model, plain, tgt="en")
    assert (
        translator.encode(["rot"], "en") == translator.encode(["rot"]) == plain.encode_src(["rot"])
    )
    with pytest.raises(ValueError, match="^this model translates into en alone: it was trained wi"):
        translator.translate(["rot"], to="de")


def test_reproduce_takes_the_further_files_from_another_folder_too(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    also = "[{train: a/more, src: en, tgt: de, share: 0.1}, {train: 'hub:x:train'}, 3]"
    path.write_text(path.read_text().replace("src: de,", f"src: de, extra_corpora: {also},"))
    *_, option = moved(path, Path("other"))
    key, _, value = option.partition("=")
    entry = {"train": "other/more", "src": "en", "tgt": "de", "share": 0.1}
    assert (key, json.loads(value)) == (
        "--data.extra_corpora",
        [entry, {"train": "hub:x:train"}, 3],
    )


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (
            "[{train: x, src: en, tgt: de, share: much}]",
            "share: expected float or null, got 'much'",
        ),
        ("[{train: x, src: en, tgt: de, shre: 0.1}]", "key 'shre' does not exist, the nearest is"),
        ("[corpus/train]", "expected group of settings or null, got \"['corpus/train']\""),
        ("corpus/train", "expected list or null, got 'corpus/train'"),
    ],
)
def test_a_wrong_entry_is_one_line(
    tmp_path: Path, also: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path)
    path.write_text(path.read_text().replace("src: de,", f"src: de, extra_corpora: {also},"))
    assert main(["fit", "--config", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"transformer: error: {path}:2: data.extra_corpora: ")
    assert message in line
