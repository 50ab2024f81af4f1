"""An export to CTranslate2 translates as the bundle does, or is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import tokenizers
from marians import marian
from test_ctranslate2 import SHAPES, random_bundle
from test_translator import LINES, save

from transformer.bundle import load_bundle
from transformer.errors import UserError
from transformer.inference.translator import Translator
from transformer.interop import ctranslate2_export
from transformer.interop.ctranslate2 import specification, write_model
from transformer.interop.ctranslate2_export import CTranslate2Side, export_ctranslate2
from transformer.interop.gate import BundleSide, compare


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that has learned three sentences by heart."""
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    save(path)
    return path


@pytest.mark.parametrize("shape", SHAPES)
def test_an_export_passes_the_gate(shape: str, tmp_path: Path) -> None:
    bundle = random_bundle(shape)
    write_model(bundle, tmp_path)
    bundle.tokenizer.save(tmp_path)
    report = compare(BundleSide(bundle), CTranslate2Side(tmp_path, bundle))
    assert report.failure is None
    assert report.translations == 128
    assert report.largest_difference is not None and report.largest_difference < 1e-5


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.encoder.layer[1].ffn.linear_0.weight.__setitem__((3, 2), 9),
        lambda spec: spec.decoder.position_encodings.encodings.__imul__(1.05),
        lambda spec: spec.decoder.layer[0].attention.linear[1].bias.__iadd__(0.1),
    ],
)
def test_one_wrong_number_closes_the_gate(
    change: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, right = random_bundle("the paper's"), specification

    def wrong(*args: Any) -> Any:
        spec = right(*args)
        change(spec)
        return spec

    monkeypatch.setattr("transformer.interop.ctranslate2.specification", wrong)
    write_model(bundle, tmp_path)
    bundle.tokenizer.save(tmp_path)
    report = compare(BundleSide(bundle), CTranslate2Side(tmp_path, bundle))
    assert report.failure is not None and report.failure.startswith("probe")


def test_two_ids_that_changed_places_close_the_gate(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder)
    write_model(bundle, tmp_path)
    bundle.tokenizer.save(tmp_path)
    path = tmp_path / "shared_vocabulary.json"
    names = json.loads(path.read_text())
    names[-1], names[-2] = names[-2], names[-1]
    path.write_text(json.dumps(names))
    assert compare(BundleSide(bundle), CTranslate2Side(tmp_path, bundle)).failure


def test_an_export_is_used_without_this_package(folder: Path, tmp_path: Path) -> None:
    export_ctranslate2(str(folder), str(tmp_path / "out"))
    translator = ctranslate2.Translator(str(tmp_path / "out"))
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    tokens = tokenizer.encode(LINES[0]).tokens
    [result] = translator.translate_batch([tokens])
    ids = [tokenizer.token_to_id(token) or 0 for token in result.hypotheses[0]]
    assert tokenizer.decode(ids) == LINES[0].upper()
    report = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert report["failure"] is None and "quantized" not in report


def test_two_vocabularies_go_out(tmp_path: Path) -> None:
    save(tmp_path / "bundle", shared=False)
    export_ctranslate2(str(tmp_path / "bundle"), str(tmp_path / "out"))
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"source_vocabulary.json", "tokenizer.src.json", "tokenizer.tgt.json"} < files
    theirs = Translator.load(tmp_path / "bundle", engine="ctranslate2")
    assert theirs.translate(LINES) == [line.upper() for line in LINES]


@pytest.mark.slow
def test_what_came_from_marian_goes_out(tmp_path: Path, run: Callable[..., list[str]]) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    run("import", marian(tmp_path, activation_function="swish"), bundle)
    run("export", "ctranslate2", bundle, out)
    report = json.loads((out / "parity.json").read_text())
    assert report["translations"] == 128 and report["largest_difference"] < 1e-4


@pytest.mark.parametrize("quantization", ["int8", "int8_float16", "int16", "bfloat16"])
def test_quantised_exports_are_compared(folder: Path, tmp_path: Path, quantization: str) -> None:
    before = load_bundle(folder).model.state_dict()
    export_ctranslate2(str(folder), str(tmp_path / "out"), quantization)
    found = json.loads((tmp_path / "out" / "parity.json").read_text())["quantized"]
    assert found["quantization"] == quantization
    assert found["sentences"] == 64 and found["same"] > 30
    size = (tmp_path / "out" / "model.bin").stat().st_size
    assert size < 0.8 * sum(4 * tensor.numel() for tensor in before.values()) + 2048 * 32 * 4


def test_int8_is_held_to_the_bleu_of_a_corpus(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "test.en").write_text("".join(f"{line}\n" for line in LINES))
    (tmp_path / "test.xx").write_text("".join(f"{line.upper()}\n" for line in LINES))
    corpus, out = str(tmp_path / "test"), tmp_path / "out"
    export_ctranslate2(str(folder), str(out), "int8", corpus)
    found = json.loads((out / "parity.json").read_text())["quantized"]
    assert found["bleu"] == pytest.approx(100) and found["bleu_loss"] == 1.0
    assert found["corpus"] == corpus and found["sentences"] == 3
    with pytest.raises(UserError, match="nothing was kept: choose another --quantization"):
        export_ctranslate2(str(folder), str(tmp_path / "two"), "int8", corpus, bleu_loss=-0.5)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the disk is full")])
def test_nothing_stays_of_an_export_that_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def stop(*_: Any) -> None:
        raise error

    monkeypatch.setattr(ctranslate2_export, "compare", stop)
    with pytest.raises(type(error)):
        export_ctranslate2(str(folder), str(tmp_path / "out"))
    assert not [*tmp_path.iterdir()]


def test_a_quantization_that_there_is_not(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="int9 is unknown .*nearest is 'int8'.* int8_float32"):
        export_ctranslate2(str(folder), str(tmp_path / "out"), "int9")
    with pytest.raises(UserError, match="--corpus x is for quantised models"):
        export_ctranslate2(str(folder), str(tmp_path / "out"), corpus="x")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        export_ctranslate2(str(folder), str(tmp_path / "out"))


def test_the_command_exports(
    folder: Path, tmp_path: Path, run: Callable[..., list[str]], refused: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    run("export", "ctranslate2", folder, out, "--quantization", "int8")
    assert json.loads((out / "parity.json").read_text())["quantized"]["quantization"] == "int8"
    assert "exists already" in refused("export", "ctranslate2", folder, out)
    assert "--quantization int4 is unknown" in refused(
        "export", "ctranslate2", folder, tmp_path / "two", "--quantization", "int4"
    )
