"""`transformer import`: what translates as Hugging Face does becomes a bundle, and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from marians import PAIRS, marian
from safetensors.torch import load_file, save_file
from stand_in import run as stand_in_run
from stand_in import stand_in
from transformers import MarianMTModel, MarianTokenizer

from transformer.bundle import load_bundle
from transformer.inference.translator import Translator
from transformer.interop.gate import BundleSide, compare
from transformer.interop.marian_import import find_languages, read_model
from transformer.interop.marian_side import MarianSide
from transformer.interop.marian_weights import fill, weights_of

LINES = [pair[0] for pair in PAIRS[:20]]
Run = Callable[..., list[str]]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marian(tmp_path_factory.mktemp("plain"), activation_function="swish")


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    """The model, which a test may damage."""
    return Path(shutil.copytree(model, tmp_path / model.name))


def change(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def generated(source: Path, lines: list[str]) -> list[str]:
    """What `generate` of Hugging Face writes with the model's own settings."""
    model: Any = MarianMTModel.from_pretrained(source)
    tokenizer: Any = MarianTokenizer.from_pretrained(source)
    found = model.generate(**tokenizer(lines, padding=True, return_tensors="pt"))
    return list(tokenizer.batch_decode(found, skip_special_tokens=True))


def report(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "parity.json").read_text()))


KINDS: dict[str, dict[str, Any]] = {
    "relu": {"activation_function": "relu"},
    "gelu": {"activation_function": "gelu", "encoder_ffn_dim": 33, "decoder_ffn_dim": 33},
    "two embeddings": {"share_encoder_decoder_embeddings": False},
    "three matrices": {"share_encoder_decoder_embeddings": False, "tie_word_embeddings": False},
    "one head": {"d_model": 24, "encoder_attention_heads": 1, "decoder_attention_heads": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_passes_the_gate(kind: str, run: Run, tmp_path: Path) -> None:
    source = marian(tmp_path, **KINDS[kind])
    run("import", source, tmp_path / "bundle")
    found = report(tmp_path / "bundle")
    assert found["failure"] is None
    assert (found["probes"], found["translations"]) == (64, 128)
    assert 0 < found["largest_difference"] < 3e-5


def test_a_bundle_translates_as_hugging_face_does(run: Run, model: Path, tmp_path: Path) -> None:
    """Through `generate` with the model's own settings: three beams, length normalisation."""
    said = run("import", model, tmp_path / "bundle")
    assert said[0] == f"{model} -> {tmp_path}/bundle"
    translator = Translator.load(tmp_path / "bundle")
    found = generated(model, LINES)
    assert translator.translate(LINES) == found
    assert len({*found}) > 10
    assert translator.config.beam == 3
    # SentencePiece leaves a zero-width space out: nothing is left to translate.
    [[nothing], [one]] = translator.n_best(["\u200b", LINES[0]], alignments=True, min_length=2)
    assert (nothing.text, nothing.alignment) == ("", [])
    assert one.alignment


@pytest.mark.parametrize("source", ["me@x/opus-mt-de-en", "org/opus-mt-de-en@refs/pr/1"])
def test_languages_stand_in_the_name(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("me@x/opus-mt-de-en").mkdir(parents=True)
    untagged: Any = SimpleNamespace(tags=())
    assert find_languages(source, untagged, None, None) == ("de", "en")


def test_what_the_bundle_says_of_itself(run: Run, model: Path, tmp_path: Path) -> None:
    run("import", model, tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    assert (bundle.config["src"], bundle.config["tgt"]) == ("de", "en")
    assert bundle.config["max_length"] == 64
    assert bundle.config["training"] == {"recipe": f"imported from {model}"}
    assert bundle.config["network"]["output_bias"] is True
    assert (bundle.model.output.bias[:2] == -100).all()
    assert bundle.model.output.bias[4:].abs().max() > 0.1
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert str(model) in card
    run("import", model, tmp_path / "other", "--src", "deu", "--tgt", "eng")
    config = load_bundle(tmp_path / "other").config
    assert (config["src"], config["tgt"]) == ("deu", "eng")


def test_language_codes_become_tags(run: Run, refused: Refused, tmp_path: Path) -> None:
    source = marian(tmp_path, tags=("eng", "fra"))
    assert "--tgt: 'en' is none of the languages" in refused("import", source, tmp_path / "bundle")
    run("import", source, tmp_path / "bundle", "--tgt", "fra")
    translator = Translator.load(tmp_path / "bundle")
    for tag in ("eng", "fra"):
        found = generated(source, [f">>{tag}<< {line}" for line in LINES])
        assert translator.translate(LINES, to=tag) == found


def test_weights_come_back_as_they_were(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    ours, _, ids = read_model(model / "model.safetensors", config)
    before = load_file(model / "model.safetensors")
    after = weights_of(ours)
    for name in before.keys() & after.keys() - {"model.shared.weight", "final_logits_bias"}:
        assert torch.equal(before[name], after[name]), name
    assert torch.equal(after["model.shared.weight"], before["model.shared.weight"][ids])
    again, _, _ = read_model(model / "model.safetensors", config)
    torch.nn.init.zeros_(again.output.bias)
    fill(again, after, [*range(len(ids))], model)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_an_older_file_of_weights(run: Run, copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    shared = weights["model.shared.weight"]
    names = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    torch.save({**weights, **dict.fromkeys([*names, "lm_head.weight"], shared)},
               copy / "pytorch_model.bin")  # fmt: skip
    (copy / "model.safetensors").unlink()
    run("import", copy, tmp_path / "bundle")
    assert report(tmp_path / "bundle")["failure"] is None


# Mistakes


@pytest.mark.slow
def test_one_weight_one_position_one_id(run: Run, model: Path, tmp_path: Path) -> None:
    """Each is enough to shut the gate."""
    run("import", model, tmp_path / "bundle")
    config = json.loads((model / "config.json").read_text())
    _, _, ids = read_model(model / "model.safetensors", config)

    def failure(break_it: Callable[[MarianSide], None]) -> str:
        theirs = MarianSide(model, ids, never=[ids[0]])
        with torch.no_grad():
            break_it(theirs)
        return str(compare(BundleSide(load_bundle(tmp_path / "bundle")), theirs).failure)

    def weight(theirs: MarianSide) -> None:
        theirs.model.model.decoder.layers[1].fc2.weight[3, 5] += 0.05

    def position(theirs: MarianSide) -> None:
        theirs.model.model.encoder.embed_positions.weight[63, 5] += 0.2

    def bias(theirs: MarianSide) -> None:
        theirs.model.final_logits_bias[0, 17] += 2e-3

    def token(theirs: MarianSide) -> None:
        theirs.ids[10], theirs.ids[11] = theirs.ids[11], theirs.ids[10]
        theirs.ours = {token: i for i, token in enumerate(theirs.ids)}

    assert failure(lambda theirs: None) == "None"
    for broken in (weight, position, bias):
        assert "probe " in failure(broken)
    assert ", source, token " in failure(token)


def damage(copy: Path, kind: str) -> None:
    weights = copy / "model.safetensors"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    if kind == "pickle":
        weights.unlink()
        torch.save({"model": Path("x")}, copy / "pytorch_model.bin")
    if kind in ("missing", "larger", "another's"):
        tensors = load_file(weights)
        name = "model.encoder.layers.1.fc1.weight"
        if kind == "missing":
            del tensors[name]
        elif kind == "larger":
            tensors[name] = torch.zeros(49, 32)
        else:
            tensors["model.encoder.layernorm_embedding.weight"] = torch.zeros(32)
        save_file(tensors, weights)
    if kind == "learned":
        tensors = load_file(weights)
        tensors["model.encoder.embed_positions.weight"] = torch.rand(64, 32)
        save_file(tensors, weights)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("truncated", r"model\.safetensors cannot be read \(.*\): copy the file again"),
        ("pickle", r"pytorch_model\.bin cannot be read \(Weights only load failed.*copy the file"),
        ("missing", r"model\.safetensors: model\.encoder\.layers\.1\.fc1\.weight is missing"),
        ("larger", r"fc1\.weight is \(49, 32\), by config\.json it is \(48, 32\): take both"),
        ("another's", r"layernorm_embedding\.weight is a weight that Marian's models do not have"),
        ("learned", r"encoder\.embed_positions\.weight are not sinusoids"),
    ],
)
def test_damaged_weights(
    kind: str, said: str, refused: Refused, copy: Path, tmp_path: Path
) -> None:
    damage(copy, kind)
    line = refused("import", copy, tmp_path / "bundle")
    assert re.search(said, line), line
    assert {path.name for path in tmp_path.iterdir()} == {copy.name}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model_type": "t5"}, "model_type is 't5': only Marian's models"),
        ({"normalize_before": True}, "normalize_before is true: it normalises before"),
        ({"normalize_embedding": True}, "normalize_embedding is true"),
        ({"scale_embedding": False}, "scale_embedding is false"),
        ({"static_position_embeddings": False}, "static_position_embeddings is false: its posit"),
        ({"activation_function": "tanh"}, "activation_function is 'tanh', known are relu, gelu"),
        ({"decoder_layers": 1}, "encoder_layers is 2 and decoder_layers 1"),
        ({"decoder_ffn_dim": 64}, "encoder_ffn_dim is 48 and decoder_ffn_dim 64"),
        ({"d_model": 30}, "d_model 30 is not divisible by"),
        ({"tie_word_embeddings": False}, "share_encoder_decoder_embeddings is true, tie_word"),
        ({"eos_token_id": 3}, "eos_token_id is 3, but by the vocabulary it is 0"),
        ({"decoder_start_token_id": 999}, "_start_token_id is 999, but by the vocabulary it is 4"),
        ({"vocab_size": 99}, "vocab_size is 99, but by the vocabulary it is"),
        ({"forced_eos_token_id": 1e308}, "cannot be read by transformers"),
    ],
)
def test_models_that_are_not_alike(
    values: dict[str, Any], said: str, refused: Refused, copy: Path, tmp_path: Path
) -> None:
    change(copy / "config.json", **values)
    line = refused("import", copy, tmp_path / "bundle")
    assert said in line
    assert str(copy) in line
    assert {path.name for path in tmp_path.iterdir()} == {copy.name}


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "source.spm", "target.spm"])
def test_a_missing_file(name: str, refused: Refused, copy: Path, tmp_path: Path) -> None:
    (copy / name).unlink()
    assert f"{copy}/{name} is missing: " in refused("import", copy, tmp_path / "bundle")


def test_other_mistakes(refused: Refused, copy: Path, tmp_path: Path) -> None:
    other = copy.rename(copy.with_name("marian"))
    line = refused("import", other, tmp_path / "bundle", "--tgt", "en")
    assert "the name 'marian' does not say the languages" in line
    assert line.endswith("give --src\n")
    (tmp_path / "bundle").mkdir()
    assert "exists already" in refused("import", other, tmp_path / "bundle")
    (other / "model.safetensors").unlink()
    languages = ("--src", "de", "--tgt", "en")
    line = refused("import", other, tmp_path / "new", *languages)
    assert "has neither model.safetensors nor pytorch_model.bin" in line


@pytest.mark.slow
def test_a_model_of_the_hub(model: Path, tmp_path: Path) -> None:
    files = {file.name: file.read_bytes() for file in model.iterdir()}
    command = ("-m", "transformer", "import")
    with stand_in() as hub:
        hub.repositories["org/opus-mt-de-en"] = {"main": files | {"tf_model.h5": b"large"}}
        name, bundle = "org/opus-mt-de-en", str(tmp_path / "bundle")
        found = stand_in_run(tmp_path, hub.address, *command, name, bundle)
        assert found.stdout.startswith(f"{name} -> {bundle}\n"), found.stderr
        assert not any("tf_model" in asked for asked in hub.asked)
        address = hub.address
    config = load_bundle(bundle).config
    assert config["training"]["recipe"] == f"imported from {name}"
    assert (config["src"], config["tgt"]) == ("de", "en")
    found = stand_in_run(tmp_path, address, *command, "org/other", str(tmp_path / "other"))
    assert found.stderr.startswith("transformer: error: org/other is no folder here, and ")
    assert found.stderr.count("\n") == 1


def test_a_gate_that_is_shut_leaves_nothing(
    refused: Refused, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformer.interop.marian_weights.NEVER_WRITTEN", 100.0)
    line = refused("import", model, tmp_path / "bundle")
    assert "the bundle and Hugging Face do not translate alike" in line
    assert ", greedy, token 1: " in line
    assert not [*tmp_path.iterdir()]
