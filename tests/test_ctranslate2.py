"""CTranslate2 as an engine finds what the house's own search finds, behind the same translator."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import torch
from test_translator import LINES, parts, save
from torch import nn

from transformer.bundle import Bundle, load_bundle
from transformer.data.tokenizer import EOS
from transformer.errors import UserError
from transformer.inference.engines import Engine, TorchEngine, make_engine
from transformer.inference.search import Hypothesis, SearchConfig
from transformer.inference.translator import Translator
from transformer.interop.ctranslate2_engine import make
from transformer.models import RNNConfig, TransformerConfig

CONFIG = {"max_length": 60, "tgt": "xx", "src": "en", "search": {}, "evaluation": {}}
SHAPES: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "pre-norm": {"norm": "pre", "activation": "gelu", "tied": "none"},
    "learned positions": {"positions": "learned", "max_positions": 90, "activation": "swish"},
    "pre-norm, two-way, bias": {"norm": "pre", "tied": "two_way", "output_bias": True},
}


@cache
def random_bundle(name: str) -> Bundle:
    """A bundle with a random model, whose translations end and differ from each other."""
    _, tokenizer = parts()
    config = TransformerConfig(d_model=32, d_ff=48, num_heads=4, num_layers=2, **SHAPES[name])
    torch.manual_seed(3)
    model = config.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size).eval()
    for key, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm.weight" in key), std=0.3)
    return Bundle(model, tokenizer, dict(CONFIG))


def engines(bundle: Bundle) -> tuple[Engine, Engine]:
    return TorchEngine(bundle.model, 4096), make(bundle, "cpu", "float32", 300)


def sources(bundle: Bundle, count: int = 30) -> list[list[int]]:
    rng = random.Random(1)
    ids = range(4, bundle.tokenizer.src_vocab_size)
    return [[*rng.choices(ids, k=rng.randint(1, 20)), EOS] for _ in range(count)]


def alike(ours: list[list[Hypothesis]], theirs: list[list[Hypothesis]]) -> None:
    """The same hypotheses and numbers; where the limit came before the end, of the best alone."""
    for one, other in zip(ours, theirs, strict=True):
        if not all(h.ended for h in (*one, *other)):
            one, other = one[:1], other[:1]
        assert [(h.ids, h.ended) for h in one] == [(h.ids, h.ended) for h in other]
        numbers = [number for h in one for number in (h.score, h.log_prob)]
        assert numbers == pytest.approx(
            [number for h in other for number in (h.score, h.log_prob)], rel=1e-4, abs=1e-4
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "search",
    [
        {"beam": 1, "length_norm": "none"},
        {"beam": 4, "length_norm": "none", "n_best": 4},
        {"beam": 4},
        {"beam": 3, "length_norm": "power", "n_best": 2, "alpha": 1.1},
    ],
)
def test_it_finds_what_our_own_search_finds(shape: str, search: dict[str, Any]) -> None:
    bundle = random_bundle(shape)
    ours, theirs = engines(bundle)
    config = SearchConfig(**search, max_extra=6)  # limits that differ within a batch
    src = sources(bundle)
    alike(ours.search(src, config), theirs.search(src, config))
    prefix = bundle.tokenizer.encode_tgt(["the old man"])[0][:-1]
    alike(ours.search(src[:9], config, prefix), theirs.search(src[:9], config, prefix))


def test_banned_tokens_do_not_come_and_log_probabilities_are_the_models() -> None:
    bundle = random_bundle("the paper's")
    ours, theirs = engines(bundle)
    config = SearchConfig(beam=1, min_length=4, no_repeat_ngram=2, max_extra=6)
    src = sources(bundle)
    found = theirs.search(src, config)
    alike(ours.search(src, config), found)
    for (one,) in found:
        pairs = list(zip(one.ids, one.ids[1:], strict=False))
        assert len(one.ids) >= 4 and len(set(pairs)) == len(pairs)


def test_nothing_found_is_nothing_and_no_source_is_no_result() -> None:
    _, theirs = engines(random_bundle("the paper's"))
    assert theirs.search([], SearchConfig()) == []
    assert theirs.search([[EOS]], SearchConfig())[0][0] == Hypothesis([], 0.0, 0.0)


def test_sampling_is_refused() -> None:
    _, theirs = engines(random_bundle("the paper's"))
    with pytest.raises(UserError, match="sample: .* take engine torch"):
        theirs.search([[5, EOS]], SearchConfig(sample=True))


def test_weights_that_are_no_numbers_are_named() -> None:
    bundle = random_bundle("the paper's")
    model = deepcopy(bundle.model)
    with torch.no_grad():
        model.output.weight[5] = float("nan")
    _, theirs = engines(bundle._replace(model=model))
    with pytest.raises(UserError, match="not a number"):
        theirs.search([[5, EOS]], SearchConfig())


# Behind a translator


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that has learned three sentences by heart."""
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    save(path)
    return path


def test_a_translator_has_the_same_interface(folder: Path) -> None:
    ours, theirs = Translator.load(folder), Translator.load(folder, engine="ctranslate2")
    lines = [LINES[0], "", "  ", *LINES[1:], "the cat 7"]
    assert theirs.translate(lines) == ours.translate(lines)
    assert theirs.translate(lines, guard=True)[1:3] == ["", ""]
    long = " ".join(LINES * 9)
    assert theirs.translate([long], too_long="split") == ours.translate([long], too_long="split")
    with pytest.raises(UserError, match="source line 1: .* the limit is 60"):
        theirs.translate([long])
    options: dict[str, Any] = {"n_best": 3, "beam": 3, "alignments": True, "prefix": "A"}
    for one, other in zip(
        ours.n_best(LINES, **options), theirs.n_best(LINES, **options), strict=True
    ):
        assert [t.text for t in one] == [t.text for t in other]
        assert [t.alignment for t in one] == [t.alignment for t in other]
        assert [t.score for t in one] == pytest.approx([t.score for t in other], abs=1e-4)
    assert theirs.score(LINES, LINES)[0].log_prob == pytest.approx(
        ours.score(LINES, LINES)[0].log_prob, abs=1e-4
    )
    assert theirs.attention(LINES[0], LINES[0])[0].shape[:2] == (2, 2)


def test_the_commands_take_an_engine(
    folder: Path, tmp_path: Path, run: Callable[..., list[str]], refused: Callable[..., str]
) -> None:
    options = ["--engine", "ctranslate2", "--precision", "int8"]
    assert run("translate", folder, LINES[0], *options) == [LINES[0].upper()]
    (tmp_path / "test.en").write_text("".join(f"{line}\n" for line in LINES))
    (tmp_path / "test.xx").write_text("".join(f"{line.upper()}\n" for line in LINES))
    found = {}
    for engine in ("torch", "ctranslate2"):
        path = tmp_path / engine
        args = ["--data.test", tmp_path / "test", "--data.cache", tmp_path / "cache"]
        run("test", folder, *args, "--run_dir", path, "--engine", engine)
        found[engine] = json.loads((path / "results.json").read_text())
        assert found[engine]["engine"] == engine
    assert found["torch"]["bleu"] == found["ctranslate2"]["bleu"] > 99
    assert found["torch"]["loss"] == pytest.approx(found["ctranslate2"]["loss"])
    assert "take one of them, or engine ctranslate2" in refused(
        "translate", folder, "a", "--precision", "int8"
    )


def test_what_it_cannot_be_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer = parts()
    sizes = tokenizer.src_vocab_size, tokenizer.tgt_vocab_size
    for config, reason in (
        (RNNConfig(d_model=16), "no recurrent models"),
        (TransformerConfig(d_model=32, d_ff=8, num_heads=2, d_k=8), "d_k is 8, .* here 16"),
    ):
        bundle = Bundle(config.build(*sizes).eval(), tokenizer, dict(CONFIG))
        with pytest.raises(UserError, match=reason):
            make(bundle, "cpu", "auto", 100)
    bundle = load_bundle(folder)
    with pytest.raises(UserError, match="device mps: CTranslate2 computes on cpu and cuda"):
        make(bundle, "mps", "auto", 100)
    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda _: {"float32", "int8"})
    with pytest.raises(UserError, match="precision int16: .* on this cpu: there are float32, int8"):
        make(bundle, "cpu", "int16", 100)
    with pytest.raises(UserError, match="engine 'ctranslate' is unknown, the nearest is 'ctransl"):
        make_engine("ctranslate", bundle, "cpu", "auto")
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    with pytest.raises(UserError, match=r"pip install 'transformer-recipes\[ctranslate2\]'"):
        Translator.load(folder, engine="ctranslate2")
