"""An export to ONNX translates as its bundle does, and one that does not is not kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from toys import ROOT, sentences

from transformer.bundle import load_bundle, save_bundle
from transformer.data.tokenizer import TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.errors import UserError
from transformer.inference.translator import Translator
from transformer.interop import onnx as under_test
from transformer.interop.gate import BundleSide, compare
from transformer.interop.onnx import export_onnx
from transformer.interop.onnx_runtime import load_export, read_export
from transformer.models import ModelConfig, RNNConfig, TransformerConfig

SIZES: dict[str, Any] = {"d_model": 16, "d_ff": 32, "num_heads": 2}
#: Of the paper; and with everything that can be otherwise.
PAPER = TransformerConfig(**SIZES, num_layers=1)
OTHER = TransformerConfig(
    **SIZES,
    num_layers=2,
    d_k=5,
    norm="pre",
    positions="learned",
    max_positions=60,
    tied="none",
    activation="gelu",
    output_bias=True,
)
SENTENCES = [src for src, _ in sentences(20, seed=2)]
FILES = ["README.md", "config.json", "decoder.onnx", "encoder.onnx", "parity.json"]


def make_bundle(folder: Path, network: ModelConfig, tags: bool = False) -> Path:
    """A bundle whose translations depend on the source, and end."""
    config = TokenizerConfig(vocab_size=300, shared=network != OTHER)
    tokenizer = train_tokenizer(config, lambda: sentences(60, seed=1), ["de", "en"] if tags else ())
    torch.manual_seed(0)
    model = network.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    about: dict[str, Any] = {"src": "de", "tgt": "en", "search": {"beam": 3}, "evaluation": {}}
    save_bundle(folder, model, tokenizer, card="", max_length=40, training={}, **about)
    return folder


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, made by the command, and beside it its bundle, which has tags."""
    folder = tmp_path_factory.mktemp("paper")
    make_bundle(folder / "bundle", PAPER, tags=True)
    command = [sys.executable, "-m", "transformer", "export", "onnx", "bundle", "export"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("bundle -> export\n", "")  # torch's exporter says more
    return folder / "export"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export, and beside it its bundle."""
    folder = tmp_path_factory.mktemp("other")
    export_onnx(make_bundle(folder / "bundle", OTHER), folder / "export")
    return folder / "export"


def failure(export: Path, folder: Path) -> str:
    """What the gate says of a changed copy of an export."""
    ours = BundleSide(load_bundle(export.with_name("bundle")))
    found = compare(ours, BundleSide(read_export(folder), "ONNX Runtime")).failure
    assert found is not None
    return found


def change(path: Path, name: str, place: tuple[int, ...], value: float) -> None:
    """Puts another number into a tensor of a graph."""
    graph = onnx.load(path)
    [tensor] = [tensor for tensor in graph.graph.initializer if tensor.name == name]
    array = numpy_helper.to_array(tensor).copy()
    array[place] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(graph, path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "other"])
def test_an_export_translates_as_its_bundle(request: pytest.FixtureRequest, name: str) -> None:
    export: Path = request.getfixturevalue(name)
    bundle = export.with_name("bundle")
    tokenizers = [file.name for file in bundle.glob("tokenizer*")]
    assert sorted(file.name for file in export.iterdir()) == sorted(FILES + tokenizers)
    for graph in ("encoder.onnx", "decoder.onnx"):  # no name of a folder of this machine
        assert b".py" not in (export / graph).read_bytes()
    report = json.loads((export / "parity.json").read_text())
    assert (report["failure"], report["translations"], report["ties"]) == (None, 128, 0)
    assert report["largest_difference"] < 1e-5
    ours, theirs = Translator.load(bundle), load_export(export)
    assert theirs.config == ours.config
    searches: list[dict[str, Any]] = [{}, {"beam": 1}, {"beam": 5, "n_best": 5, "min_length": 4}]
    for settings in searches:
        found = [translator.n_best(SENTENCES, **settings) for translator in (ours, theirs)]
        for one, other in zip(*found, strict=True):
            assert [t.text for t in one] == [t.text for t in other]
            assert [t.score for t in one] == pytest.approx([t.score for t in other], abs=1e-4)
    scores = [[s.log_prob for s in t.score(SENTENCES, SENTENCES)] for t in (ours, theirs)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    with pytest.raises(UserError, match="the graphs give no attention weights: take the bundle"):
        theirs.n_best(SENTENCES[:1], alignments=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "other"])
def test_the_readme_shows_how_to_run_it_elsewhere(
    request: pytest.FixtureRequest, name: str
) -> None:
    export: Path = request.getfixturevalue(name)
    text = (export / "README.md").read_text(encoding="utf-8")
    [program] = re.findall(r"```python\n(.*)```", text, re.DOTALL)
    programs = "\n".join(program.replace('"..."', repr(line)) for line in SENTENCES[:2])
    command = [sys.executable, "-c", programs]
    run = subprocess.run(command, cwd=export, capture_output=True, text=True)
    ours = Translator.load(export.with_name("bundle"))
    found = [ours.translate([line], beam=1)[0] for line in SENTENCES[:2]]
    assert (run.stdout, run.stderr) == ("".join(f"{line}\n" for line in found), "")


@pytest.mark.slow
def test_the_gate_sees_one_weight_one_position_one_id(other: Path, tmp_path: Path) -> None:
    for name, place in (("decoder.0.feed_forward.inner.bias", (3,)),
                        ("tgt_embedding.positions.table", (2, 3)),
                        ("src_embedding.positions.table", (39, 0))):  # fmt: skip
        folder = shutil.copytree(other, tmp_path / name)
        file = "encoder.onnx" if name.startswith("src") else "decoder.onnx"
        change(folder / file, f"model.{name}", place, 2.5)
        assert re.match(r"probe \d+ \(.*\), (greedy|beam 4|logits)", failure(other, folder)), name
    folder = shutil.copytree(other, tmp_path / "id")
    path = folder / "tokenizer.src.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["h"], vocabulary["u"] = vocabulary["u"], vocabulary["h"]
    path.write_text(json.dumps(content))
    assert re.match(r"probe \d+ \(.*\), source, token \d+: ", failure(other, folder))


@pytest.mark.slow
def test_a_damaged_export_is_named(other: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(other, tmp_path / "export")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for text, message in (
        (json.dumps(config | {"special_ids": {"pad": 3, "bos": 1, "eos": 2}}), "special_ids must"),
        (json.dumps(config | {"max_length": "60"}), "max_length is '60', but must be int"),
        (json.dumps({"format_version": 2}), "is not that of an ONNX export"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_export(folder)
    path.write_text(json.dumps(config))
    graph = folder / "encoder.onnx"
    graph.write_bytes(graph.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"encoder.onnx cannot be read \(.*export the bundle again"):
        read_export(folder)
    with pytest.raises(UserError, match="is no ONNX export"):
        read_export(tmp_path)


@pytest.mark.slow
def test_an_export_that_does_not_pass_leaves_nothing(
    other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any, folder: Path) -> None:
        for graph in ("encoder.onnx", "decoder.onnx"):
            shutil.copy(other / graph, folder)
        change(folder / "encoder.onnx", "model.encoder.1.feed_forward.inner.bias", (3,), 2.5)

    monkeypatch.setattr(under_test, "write_graphs", wrong)
    with pytest.raises(UserError, match="ONNX Runtime do not translate alike, so nothing was kept"):
        export_onnx(other.with_name("bundle"), tmp_path / "export")
    assert not [*tmp_path.iterdir()]


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "rnn", RNNConfig(d_model=8))
    with pytest.raises(UserError, match="rnn is an RNN: only a Transformer is exported to ONNX"):
        export_onnx(bundle, tmp_path / "export")
    bundle = make_bundle(tmp_path / "bundle", PAPER)
    with pytest.raises(UserError, match="rnn exists already"):
        export_onnx(bundle, tmp_path / "rnn")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"onnxscript .*pip install 'transformer-recipes\[onnx\]'"):
        export_onnx(bundle, tmp_path / "export")
    assert not (tmp_path / "export").exists()
