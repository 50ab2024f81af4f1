"""The bundle: a saved model comes back as it was, and a damaged one is refused in one line."""

import json
import pickle
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_translator import LINES, SEARCH, SHAPE, parts, save

from transformer.bundle import load_bundle, save_bundle
from transformer.inference.translator import Translator
from transformer.models import Transformer


@pytest.mark.parametrize("shared", [True, False])
def test_a_bundle_comes_back_whole(tmp_path: Path, shared: bool) -> None:
    model, tokenizer = save(tmp_path / "bundle", shared)
    loaded, its_tokenizer, config = load_bundle(tmp_path / "bundle")
    assert isinstance(loaded, Transformer)
    assert loaded.config == model.config
    for (name, before), (_, after) in zip(
        model.named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert torch.equal(before, after), name
    assert loaded.count_parameters() == model.count_parameters()
    assert loaded.output.weight is loaded.tgt_embedding.tokens.weight
    assert its_tokenizer.to_text() == tokenizer.to_text()
    assert (config["src"], config["tgt"], config["format_version"]) == ("en", "xx", 2)
    ours, theirs = Translator(model, tokenizer, SEARCH), Translator.load(tmp_path / "bundle")
    assert theirs.config == SEARCH
    assert theirs.max_length == 60  # beyond what it was trained with a model loses text
    assert theirs.translate(LINES) == ours.translate(LINES)


def test_a_model_that_is_loaded_depends_on_its_file_no_more(tmp_path: Path) -> None:
    model, _ = save(tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle").model
    path = tmp_path / "bundle/model.safetensors"
    with path.open("r+b") as file:
        file.write(b"\1" * path.stat().st_size)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(name))


def test_a_bundle_is_never_overwritten(tmp_path: Path) -> None:
    save(tmp_path / "bundle")
    with pytest.raises(ValueError, match=r"bundle exists already: choose another folder"):
        save(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is not a bundle \(no such folder\)"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"it has no config.json"):
        load_bundle(tmp_path)
    save(tmp_path / "bundle")
    path = tmp_path / "bundle" / "config.json"
    config = json.loads(path.read_text())
    for text, message in (
        (json.dumps(config | {"format_version": 99}), r"config.json: format_version is 99"),
        (json.dumps(config | {"architecture": "mamba"}), r"is 'mamba', known are transformer"),
        ("{", r"config.json is not JSON .*: copy the bundle again"),
        ("[]", r"config.json holds no JSON object"),
        ('{"model_type": "marian"}', r"of a Marian model .* `transformer import` makes one"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_bundle(tmp_path / "bundle")
    path.write_text(json.dumps(config), encoding="utf-8-sig")  # as an editor may
    load_bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"color": 1}, "color is unknown: take it out, or install the version"),
        ({"max_lenght": 1}, "max_lenght is unknown, the nearest is 'max_length': take it out"),
        ({"tgt": ...}, "tgt is missing: copy the bundle again"),
        ({"network": ...}, "network is missing"),
        ({"src": 3}, "src is 3, but must be str"),
        ({"max_length": True}, "max_length is True, but must be int"),
        ({"max_length": 0}, "max_length is 0: it must be 1 or more"),
        ({"network": [1]}, r"network is \[1\], but must be dict"),
        ({"network": {"depth": 3}}, "network.depth is unknown"),
        ({"network": {"d_model": "32"}}, "network.d_model is '32', but must be int"),
        ({"network": {"d_k": 0.5}}, "network.d_k is 0.5, but must be int or NoneType"),
        ({"network": {"norm": "x" * 99}}, "network.norm is 'x.*x', but must be 'post' or 'pre'"),
        ({"network": {"num_heads": 3}}, "d_model 32 is not divisible by"),
        ({"search": {"beem": 4}}, "search.beem is unknown, the nearest is 'beam'"),
        ({"search": {"beam": "4"}}, "search.beam is '4', but must be int"),
        ({"search": {"beam": 0}}, "beam is 0: it must be 1"),
        ({"evaluation": {"score_lowercase": 1}}, "score_lowercase is 1, but must be bool"),
    ],
)
def test_settings_of_a_bundle_that_cannot_be(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Each in a line that names file, key, value and fix; whole groups stay as they are."""
    save(tmp_path / "bundle")
    path = tmp_path / "bundle" / "config.json"
    config = json.loads(path.read_text())
    ((key, value),) = changes.items()
    if value is ...:
        del config[key]
    else:
        config[key] = config[key] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"config.json: .*{message}") as error:
        Translator.load(tmp_path / "bundle", "cpu")
    assert len(str(error.value)) < 250 + len(str(tmp_path))
    assert "\n" not in str(error.value)


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """With as many entries; a bundle whose weights do not name their tokenizer is read."""
    model, tokenizer = save(tmp_path / "bundle")
    path = tmp_path / "bundle" / "tokenizer.json"
    vocabulary = json.loads(path.read_text())
    pieces = vocabulary["model"]["vocab"]
    pieces["a"], pieces["b"] = pieces["b"], pieces["a"]
    path.write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match="tokenizer is not the one that model.safetensors was"):
        load_bundle(tmp_path / "bundle")
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    save_file(weights, str(tmp_path / "bundle/model.safetensors"), metadata={"format": "pt"})
    assert load_bundle(tmp_path / "bundle").tokenizer.to_text() != tokenizer.to_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"num_layers": 3}}, r"30 weights are missing or too many, such as encoder.2"),
        ({"network": {"d_ff": 48}}, r"network: d_ff 48: \S+ would be \(48, 32\), .*has \(64, 32\)"),
        ({"network": {"d_model": 48}}, r"network: d_model 48: \S+ would be \(277, 48\), "),
        ({"src_vocab_size": 9}, r"the tokenizer has 277 and 277 entries"),
    ],
)
def test_files_that_do_not_belong_together(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    save(tmp_path / "bundle")
    path = tmp_path / "bundle" / "config.json"
    config = json.loads(path.read_text())
    network = config["network"] | changes.get("network", {})
    path.write_text(json.dumps(config | changes | {"network": network}))
    expected = rf"bundle: its files do not fit config.json .*{message}.*take all from one bundle"
    with pytest.raises(ValueError, match=expected):
        load_bundle(tmp_path / "bundle")


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    """Weights that are a pickle in disguise must fail to load and never run."""

    class Trap:
        def __reduce__(self) -> tuple[type, tuple[str]]:
            return (Path, (str(tmp_path / "sprung"),))

    save(tmp_path / "bundle")
    (tmp_path / "bundle" / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        load_bundle(tmp_path / "bundle")


def test_loading_does_not_import_torchs_compiler(tmp_path: Path) -> None:
    """Random numbers on the meta device did, which took as long as importing torch."""
    _, tokenizer = parts()
    about: dict[str, Any] = {"src": "en", "tgt": "xx", "search": asdict(SEARCH), "evaluation": {}}
    code = "import sys; from transformer import Translator\n"
    kinds: list[Any] = ["sinusoidal", "learned"]
    for kind in kinds:
        shape = replace(SHAPE, positions=kind)
        model = shape.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
        folder = tmp_path / kind
        save_bundle(folder, model, tokenizer, card="", max_length=60, training={}, **about)
        code += f"Translator.load({str(folder)!r}, 'cpu').translate(['a dog'], max_extra=2)\n"
        code += f"assert 'torch._dynamo' not in sys.modules, {kind!r}\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
