"""`transformer average` as a user runs it: checkpoints in, a bundle out."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_translator import ANSWERS, LINES, SEARCH, SHAPE

from transformer.bundle import load_bundle
from transformer.data.tokenizer import TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.models import Transformer

pytestmark = pytest.mark.usefixtures("own_log")


def checkpoint(path: Path, seed: int, **changes: Any) -> Transformer:
    """Writes what Lightning would, with random weights."""
    config = TokenizerConfig(vocab_size=changes.get("vocab_size", 300))
    tokenizer = train_tokenizer(config, lambda: zip(LINES, ANSWERS, strict=True))
    shape = replace(SHAPE, d_ff=changes.get("d_ff", SHAPE.d_ff))
    torch.manual_seed(seed)
    model = shape.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    about = {"src": "en", "tgt": "xx", "search": asdict(SEARCH), "evaluation": {}, "max_length": 60}
    bundle = {"architecture": "transformer", "network": asdict(shape), "about": about}
    bundle["tokenizer"] = tokenizer.to_text()
    weights = {f"network.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {"state_dict": weights, "bundle": bundle, "recipe": {"name": "toy"}}
    torch.save({**content, "global_step": changes.get("step", 7), "epoch": 0}, path)
    return model


def test_average_is_the_mean_of_the_weights(run: Any, tmp_path: Path) -> None:
    files = [tmp_path / f"{seed}.ckpt" for seed in range(3)]
    # A shell puts step 10 before step 8.
    models = [checkpoint(f, seed, step=9 - seed % 2) for seed, f in enumerate(files, 1)]
    models[1] = checkpoint(files[1], 2, step=10)
    printed = run("average", *files, tmp_path / "the bundle")
    assert "mean of 3 checkpoints (0.ckpt, 1.ckpt, 2.ckpt)" in printed[0]
    assert f"translate '{tmp_path}/the bundle' <text>" in printed[1]
    (tmp_path / "the bundle").rename(tmp_path / "bundle")
    averaged, _, config = load_bundle(tmp_path / "bundle")
    assert config["training"]["steps"] == 10
    for name, weight in averaged.named_parameters():
        stacked = torch.stack([model.get_parameter(name).double() for model in models])
        torch.testing.assert_close(weight, stacked.mean(0).float(), atol=0, rtol=0)
    assert config["search"]["beam"] == SEARCH.beam
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "# en → xx" in card
    assert f"{averaged.describe()} that translates en into xx" in card
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
