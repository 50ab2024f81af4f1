"""What a run leaves at its end: when its folder was moved, its test failed, there was no test."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from toys import raising, recipe

from transformer.__main__ import main
from transformer.bundle import load_bundle
from transformer.errors import UserError
from transformer.evaluation.plots import attention_heatmap
from transformer.training import train
from transformer.training.checkpoint_files import read_checkpoint
from transformer.training.scoring import attention_figure

pytestmark = pytest.mark.usefixtures("own_folder")


def fit(*args: str | Path) -> int:
    return main(["fit", *map(str, args), "--logger", "none"])


def numbers(folder: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(folder, "results.json").read_text())
    return content


@pytest.mark.parametrize("average", ["0", "3"])
def test_a_moved_run_ends_as_one_that_was_not(tmp_path: Path, average: str) -> None:
    """Lightning remembers absolute paths; in another folder it would forget what it kept."""
    path = recipe(tmp_path)
    options = ["--average", average, "--keep_best", "2"]
    weights = []
    for folder in ("here", "moved"):
        assert fit("--config", path, *options, "--run_dir", "runs/here") == 0
        Path("runs/here").rename(f"runs/{folder}")
        last = f"runs/{folder}/checkpoints/last.ckpt"
        resumed = ["--ckpt_path", last, "--run_dir", f"runs/{folder}", "--trainer.max_epochs", "3"]
        assert fit("--config", f"runs/{folder}/config.yaml", *resumed) == 0
        best = {file.name for file in Path(f"runs/{folder}/checkpoints").glob("best-*")}
        weights.append((numbers(f"runs/{folder}")["weights"], len(best)))
        Path("runs/here").rename("runs/there") if folder == "here" else None
    assert weights[0] == weights[1]
    assert weights[0][1] == 2
    assert weights[0][0].startswith("mean of the last 3" if average == "3" else "checkpoint with")


@pytest.mark.parametrize("error", [UserError("the test set is damaged"), KeyboardInterrupt()])
def test_a_test_that_fails_does_not_cost_the_bundle(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    monkeypatch.setattr(train, "evaluate", raising(error))
    assert fit("--config", recipe(tmp_path)) in (2, 130)
    assert "The model was not tested; it is in runs/toy/bundle" in capsys.readouterr().out
    bundle = load_bundle(Path("runs/toy/bundle"))
    assert bundle.config["training"]["steps"] == numbers("runs/toy")["steps"] > 0
    assert numbers("runs/toy")["bleu"] is None
    assert "It was not tested" in Path("runs/toy/bundle/README.md").read_text()


def test_no_test_batches_are_no_test(tmp_path: Path) -> None:
    """And not the scores of the last validation."""
    assert fit("--config", recipe(tmp_path), "--trainer.limit_test_batches", "0") == 0
    found = numbers("runs/toy")
    assert (found["split"], found["bleu"], found["perplexity"]) == (None, None, None)


def test_the_clock_is_not_running_while_a_validation_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What W&B gets at a validation comes before the log, which starts the clock again."""
    order: list[list[str]] = []

    def remember(self: Trainer, *_: Any, **__: Any) -> None:
        order.append([type(callback).__name__ for callback in self.callbacks])  # type: ignore[attr-defined]
        raise UserError("enough")

    monkeypatch.setattr(Trainer, "fit", remember)
    assert fit("--config", recipe(tmp_path)) == 2
    assert order[0].index("WandbTracker") < order[0].index("TrainingLog")


def test_a_trial_validation_is_not_on_the_curve(tmp_path: Path) -> None:
    assert fit("--config", recipe(tmp_path), "--trainer.num_sanity_val_steps", "2") == 0
    found = numbers("runs/toy")
    assert len(found["validation_bleu"]) == found["epochs"] == 2


def test_of_validations_without_a_right_word_the_one_with_less_loss_is_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first BLEU is 0.00, in each validation; and a run that gets better goes on."""
    from transformer.training.scoring import TranslationScore

    compute = TranslationScore.compute
    monkeypatch.setattr(TranslationScore, "compute", lambda self: {**compute(self), "bleu": 0.0})
    options = ["--patience", "1", "--trainer.max_epochs", "4", "--model.learning_rate", "0.001"]
    assert fit("--config", recipe(tmp_path), *options) == 0
    assert numbers("runs/toy")["epochs"] == 4
    best = read_checkpoint(next(Path("runs/toy/checkpoints").glob("best-*")))
    assert best["global_step"] == numbers("runs/toy")["steps"]


def test_a_bundle_of_a_checkpoint_knows_its_epochs(tmp_path: Path) -> None:
    assert fit("--config", recipe(tmp_path)) == 0
    assert main(["average", "runs/toy/checkpoints/last.ckpt", "again"]) == 0
    assert load_bundle(Path("again")).config["training"]["epochs"] == numbers("runs/toy")["epochs"]


def test_a_picture_of_a_long_sentence_has_a_size(tmp_path: Path) -> None:
    pieces = ["x"] * 1000
    figure = attention_heatmap(torch.eye(1000), pieces, pieces)
    assert max(figure.get_size_inches()) < 50
    for split in ("test.de", "test.en"):
        file = tmp_path / "corpus" / split
        path = recipe(tmp_path) if not file.exists() else tmp_path / "toy.yaml"
        file.write_text("".join(f"{'haus ' * 100}\n" for _ in file.read_text().splitlines()))
    assert fit("--config", path, "--model.search.max_extra", "5") == 0
    assert not Path("runs/toy/attention.png").exists()


def test_stray_bytes_that_no_position_is_left_for_have_no_picture(tmp_path: Path) -> None:
    """A bad model writes them; read again, each is three bytes."""
    learned = ["--model.network.positions", "learned", "--model.network.max_positions", "64"]
    assert fit("--config", recipe(tmp_path), *learned, "--data.max_length", "64") == 0
    bundle = load_bundle("runs/toy/bundle")
    data: Any = SimpleNamespace(tokenizer=bundle.tokenizer, tgt="en")
    assert attention_figure(bundle.model, data, [("haus", "", "house")]) is not None
    assert attention_figure(bundle.model, data, [("haus", "", "\ufffd" * 100)]) is None
