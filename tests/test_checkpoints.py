"""Checkpoints: which are kept, their mean, the bundle made of one, and what is none."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import datamodule, module, trainer

from transformer.bundle import load_bundle
from transformer.training.checkpoint_files import average_checkpoints, read_checkpoint
from transformer.training.checkpoints import Checkpoints
from transformer.training.logging import TrainingLog
from transformer.training.module import Seq2SeqModule
from transformer.training.results import checkpoint_to_bundle, load_final_weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Seq2SeqModule, Path]:
    """Four epochs with every kind of checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    saved = Checkpoints(folder / "c", keep_best=2, average=3, save_every=None)
    model = module(learning_rate=0.01)
    run = trainer(folder, TrainingLog(), saved, max_epochs=4)
    run.fit(model, datamodule=datamodule(folder))
    return run, model, folder / "c"


def test_checkpoints_are_what_was_asked_for(trained: Any) -> None:
    run, _, folder = trained
    names = sorted(path.name for path in folder.iterdir())
    per_epoch = run.global_step // 4
    weights = {f"weights-step{per_epoch * epoch}.ckpt" for epoch in (2, 3, 4)}
    assert weights == {name for name in names if name.startswith("weights")}
    assert len([n for n in names if re.fullmatch(r"best-step\d+-bleu\d+\.\d\d\.ckpt", n)]) == 2
    assert "last.ckpt" in names
    assert len(names) == 6


def test_checkpoint_carries_what_a_bundle_needs(trained: Any, tmp_path: Path) -> None:
    run, model, folder = trained
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    assert "hyper_parameters" not in checkpoint
    assert checkpoint["bundle"]["tokenizer"] == model.tokenizer.to_text()
    assert checkpoint["micro_batches"] == run.global_step
    checkpoint_to_bundle(read_checkpoint(folder / "last.ckpt"), tmp_path / "bundle", "last.ckpt")
    bundle = load_bundle(tmp_path / "bundle")
    assert (bundle.config["src"], bundle.config["tgt"]) == ("de", "en")
    assert bundle.config["search"]["beam"] == 2
    for name, weight in bundle.model.named_parameters():
        torch.testing.assert_close(weight, checkpoint["state_dict"][f"network.{name}"])
    assert (tmp_path / "bundle" / "README.md").read_text().startswith("# de → en\n")


def test_average_is_the_mean(trained: Any) -> None:
    _, _, folder = trained
    paths = sorted(folder.glob("weights-*.ckpt"))
    states = [read_checkpoint(path)["state_dict"] for path in paths]
    mean = average_checkpoints(paths)
    for name, weight in mean["state_dict"].items():
        expected = torch.stack([state[name] for state in states]).mean(0)
        torch.testing.assert_close(weight, expected)
        assert weight.dtype == states[0][name].dtype
    one = average_checkpoints(paths[:1])["state_dict"]
    assert all(torch.equal(one[name], states[0][name]) for name in one)


def test_final_model_is_the_average_else_the_best_else_the_last(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model, folder = trained
    (saved,) = run.checkpoint_callbacks
    last = copy.deepcopy(model.model.state_dict())

    def final() -> tuple[str, dict[str, torch.Tensor]]:
        weights = load_final_weights(run, model), copy.deepcopy(model.model.state_dict())
        model.model.load_state_dict(last)
        return weights

    what, weights = final()
    assert what == "mean of the last 3 checkpoints"
    mean = average_checkpoints(sorted(folder.glob("weights-*.ckpt")))["state_dict"]
    torch.testing.assert_close(weights, {k.removeprefix("network."): v for k, v in mean.items()})

    monkeypatch.setattr(saved, "to_average", saved.to_average[-1:])
    what, weights = final()
    assert what == "last checkpoint"
    torch.testing.assert_close(weights, last)

    monkeypatch.setattr(saved, "to_average", [])
    what, weights = final()
    assert "highest validation BLEU" in what
    by_bleu = sorted(folder.glob("best-*.ckpt"), key=lambda p: float(p.stem.split("bleu")[1]))
    best = read_checkpoint(by_bleu[-1])["state_dict"]
    torch.testing.assert_close(weights, {k.removeprefix("network."): v for k, v in best.items()})

    monkeypatch.setattr(saved, "best_scores", {})
    what, weights = final()
    assert what == "last weights"
    torch.testing.assert_close(weights, last)


def test_checkpoints_of_lightning_s_own_callbacks_are_known(trained: Any, tmp_path: Path) -> None:
    """As version 0.1 wrote them: paths that may have changed, and a state for each kind."""
    run, model, folder = trained
    names = ["best-step9-bleu1.00.ckpt", "weights-step4.ckpt", "weights-step12.ckpt"]
    best = {f"/old/{names[0]}": torch.tensor(1.0)}
    weights = {f"/old/{name}": torch.tensor(float(name[12:-5])) for name in reversed(names[1:])}
    checkpoint = torch.load(folder / "last.ckpt", weights_only=True)
    states: dict[str, Any] = {
        f"RunCheckpoint{{'monitor': '{monitor}'}}": {"monitor": monitor, "best_k_models": kept}
        for monitor, kept in (("val/rank", best), ("step", weights), (None, {}))
    }
    checkpoint["callbacks"] = states
    for name in names:
        torch.save(checkpoint, tmp_path / name)
    (tmp_path / "best-step3-bleu0.50.ckpt").write_text("torn")
    saved = Checkpoints(tmp_path, keep_best=1, average=2, save_every=None)
    saved.on_load_checkpoint(run, model, checkpoint)
    assert (saved.best_names()[0], saved.to_average) == (names[0], names[1:])
    for average, kept in {1: names[-1:], 0: []}.items():  # as if it had been so from the start
        saved = Checkpoints(tmp_path, keep_best=0, average=average, save_every=None)
        saved.on_load_checkpoint(run, model, checkpoint)
        assert (saved.best_names(), saved.to_average) == ([], kept)


def test_checkpoints_that_do_not_belong_together(trained: Any, tmp_path: Path) -> None:
    _, _, folder = trained
    path = folder / "last.ckpt"
    other = read_checkpoint(path)
    other["bundle"]["network"]["d_ff"] = 99
    torch.save(other, tmp_path / "shape.ckpt")
    with pytest.raises(ValueError, match=r"shape\.ckpt and .*last\.ckpt have different network"):
        average_checkpoints([tmp_path / "shape.ckpt", path])
    other = read_checkpoint(path)
    other["bundle"]["tokenizer"] = {"tokenizer.json": "{}"}
    torch.save(other, tmp_path / "vocabulary.ckpt")
    with pytest.raises(ValueError, match="different tokenizers"):
        average_checkpoints([tmp_path / "vocabulary.ckpt", path])


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.ckpt: no such checkpoint"):
        read_checkpoint(tmp_path / "missing.ckpt")
    (tmp_path / "broken.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=r"broken\.ckpt cannot be read"):
        read_checkpoint(tmp_path / "broken.ckpt")
    state: dict[str, Any] = {"state_dict": {}, "bundle": {}, "optimizer_states": []}
    torch.save(state, tmp_path / "older.ckpt")
    torch.save(state, tmp_path / "torn.ckpt")
    os.truncate(tmp_path / "torn.ckpt", 1000)
    torch.save({"state_dict": {}, "bundle": {}}, tmp_path / "weights-step9.ckpt")
    for name in ("broken", "torn"):
        with pytest.raises(ValueError, match=rf"{name}\.ckpt cannot be read .* is .*older\.ckpt$"):
            read_checkpoint(tmp_path / f"{name}.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match=r"foreign\.ckpt is not a checkpoint that"):
        read_checkpoint(tmp_path / "foreign.ckpt")
    with pytest.raises(ValueError, match="no checkpoints to average"):
        average_checkpoints([])
