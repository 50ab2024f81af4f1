"""`transformer export hf`: what Hugging Face loads translates as the bundle does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from marians import LANGUAGES, marian
from safetensors.torch import load_file, save_file
from test_gate import CONFIG, PAIRS, taught
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from transformer.bundle import load_bundle, save_bundle
from transformer.inference.translator import Translator
from transformer.models import ModelConfig, RNNConfig

LINES = [pair[0] for pair in PAIRS[:20]]
Run = Callable[..., list[str]]
Refused = Callable[..., str]
SEARCH = {"beam": 3, "length_norm": "power", "alpha": 1.0}


def save(folder: Path, config: ModelConfig = CONFIG, steps: int = 60, **options: Any) -> Path:
    model, text = taught(config, steps, **options)  # type: ignore[arg-type]
    about = {"src": "de", "tgt": "en", "search": SEARCH, "max_length": 40, "evaluation": {}}
    save_bundle(folder, model, text, training={}, card="", **about)
    return folder


def generated(folder: Path, lines: list[str]) -> list[str]:
    """What `generate` writes with the settings of the export."""
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder)
    src: Any = AutoTokenizer.from_pretrained(folder)
    tgt: Any = src
    if (folder / "target").exists():
        tgt = AutoTokenizer.from_pretrained(folder, subfolder="target")
    found = model.generate(**src(lines, padding=True, return_tensors="pt"))
    return list(tgt.batch_decode(found, skip_special_tokens=True))


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the paper's": ({}, {}),
    "untied, swish, bias": ({"tied": "none", "activation": "swish", "output_bias": True}, {}),
    "two vocabularies": ({"tied": "two_way", "activation": "gelu"}, {"shared": False}),
    "words": ({"num_heads": 1}, {"kind": "word"}),
    "tags": ({}, {"tags": ("en", "fr")}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_passes_the_gate(kind: str, run: Run, tmp_path: Path) -> None:
    shape, options = KINDS[kind]
    bundle = save(tmp_path / "bundle", replace(CONFIG, **shape), **options)
    said = run("export", "hf", bundle, tmp_path / "hf")
    assert said == [f"{bundle} -> {tmp_path}/hf"]
    report = json.loads((tmp_path / "hf" / "parity.json").read_text())
    assert (report["failure"], report["translations"]) == (None, 128)
    assert report["largest_difference"] < 3e-5
    translator = Translator.load(bundle)
    code = "<2en>" if options.get("tags") else ""
    found = generated(tmp_path / "hf", [code + line for line in LINES])
    assert found == translator.translate(LINES)
    assert len({*found}) > 10
    card = (tmp_path / "hf" / "README.md").read_text()
    assert ('subfolder="target"' in card) == (kind == "two vocabularies")
    assert ("`<2fr>`" in card) == (kind == "tags")


def test_an_export_is_imported_again(run: Run, tmp_path: Path) -> None:
    bundle = save(tmp_path / "bundle", replace(CONFIG, tied="two_way"), shared=False)
    run("export", "hf", bundle, tmp_path / "hf")
    run("import", tmp_path / "hf", tmp_path / "again", *LANGUAGES)
    before, after = (Translator.load(folder) for folder in (bundle, tmp_path / "again"))
    assert before.translate(LINES) == after.translate(LINES)


@pytest.mark.slow
def test_an_import_is_exported_again(run: Run, tmp_path: Path) -> None:
    source = marian(tmp_path, tags=("eng", "fra"))
    run("import", source, tmp_path / "bundle", "--tgt", "fra")
    run("export", "hf", tmp_path / "bundle", tmp_path / "hf")
    coded = [f">>fra<< {line}" for line in LINES]
    assert generated(tmp_path / "hf", coded) == generated(source, coded)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(CONFIG, norm="pre"), "network.norm is 'pre': such a model cannot be exported to"),
        (replace(CONFIG, positions="learned"), "network.positions is 'learned'"),
        (replace(CONFIG, d_k=8), "network.d_k is 8"),
        (RNNConfig(d_model=16), "architecture is rnn"),
    ],
)
def test_what_marian_cannot_be(
    config: ModelConfig, said: str, refused: Refused, tmp_path: Path
) -> None:
    bundle = save(tmp_path / "bundle", config, steps=0)
    assert said in refused("export", "hf", bundle, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_search_settings_that_are_none(refused: Refused, tmp_path: Path) -> None:
    bundle = save(tmp_path / "bundle", steps=0)
    path = Path(bundle, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"search": {"beem": 3}}))
    assert "config.json: search.beem" in refused("export", "hf", bundle, tmp_path / "hf")


def break_one(folder: Path, kind: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    if kind == "weight":
        tensors["model.encoder.layers.0.fc1.weight"][3, 5] += 0.1
    if kind == "bias":
        tensors["final_logits_bias"][0, 77] += 1e-3
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if kind == "id":
        file = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = file["model"]["vocab"]
        vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
        (folder / "tokenizer.json").write_text(json.dumps(file))


@pytest.mark.parametrize(
    ("kind", "said"),
    [("weight", ", token "), ("bias", "logits of step 1, id 77: "), ("id", ", source, token ")],
)
def test_a_gate_that_is_shut_leaves_nothing(
    kind: str, said: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformer.interop import marian_export as under_test

    class Broken(under_test.MarianSide):
        def __init__(self, folder: Path, *args: Any) -> None:
            break_one(folder, kind)
            super().__init__(folder, *args)

    monkeypatch.setattr(under_test, "MarianSide", Broken)
    bundle = save(tmp_path / "bundle")
    line = refused("export", "hf", bundle, tmp_path / "hf")
    assert "the bundle and Hugging Face do not translate alike" in line
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_mistakes(refused: Refused, run: Run, tmp_path: Path) -> None:
    assert "no format 'hff', the nearest is 'hf'" in refused("export", "hff", "x", "y")
    assert "is not a bundle" in refused("export", "hf", tmp_path, tmp_path / "hf")
    assert "--help" in "".join(run("export"))
    bundle = save(tmp_path / "bundle", steps=0)
    (tmp_path / "hf").mkdir()
    assert "hf exists already" in refused("export", "hf", bundle, tmp_path / "hf")


def test_the_package_is_missing(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    bundle = save(tmp_path / "bundle", steps=0)
    line = refused("export", "hf", bundle, tmp_path / "hf")
    assert line.endswith("pip install 'transformer-recipes[hf]'\n")


@torch.no_grad()
def test_the_bundle_is_left_as_it_was(run: Run, tmp_path: Path) -> None:
    bundle = save(tmp_path / "bundle")
    before = {name: p.clone() for name, p in load_bundle(bundle).model.named_parameters()}
    run("export", "hf", bundle, tmp_path / "hf")
    after = dict(load_bundle(bundle).model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
