"""A run that is killed at any moment, and resumed, is the run that was never killed."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from toys import datamodule, fit, module, recipe, trainer

from transformer.models import TransformerConfig
from transformer.training.checkpoints import Checkpoints
from transformer.training.logging import TrainingLog
from transformer.training.module import Seq2SeqModule
from transformer.training.scoring import TranslationScore
from transformer.training.stopping import StopSafely
from transformer.writing import is_part

LAST = "runs/toy/checkpoints/last.ckpt"
NETWORK = TransformerConfig(d_model=16, d_ff=32, num_heads=2, num_layers=1, dropout=0.3)


class Moments(Callback):
    """Counts the moments of a run in which it can be killed, and kills it in one of them."""

    def __init__(self, fatal: int | None) -> None:
        self.count, self.fatal = 0, fatal
        for name in ("fsync", "replace"):  # before and after a file is whole
            setattr(os, name, self.around(getattr(os, name)))

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def with_moments(*args: Any, **kwargs: Any) -> Any:
            self.pass_one()
            found = function(*args, **kwargs)
            self.pass_one()
            return found

        return with_moments

    def pass_one(self) -> None:
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, *args: Any) -> None:
        self.pass_one()

    def on_train_batch_end(self, *args: Any) -> None:
        self.pass_one()

    def on_validation_start(self, *args: Any) -> None:
        self.pass_one()


class Losses(TrainingLog):
    """Remembers the validations, as the curve is remembered: BLEU of such a small model is 0."""

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_validation_end(trainer, pl_module)
        self.curve[-1] = pl_module.scorer.scores["loss"]


def train(folder: Path, fatal: int | None, workers: int) -> None:
    """Train from the last checkpoint, if there is one, and note how it ended."""
    moments, log = Moments(fatal), Losses()
    saved = Checkpoints(folder, keep_best=2, average=2, save_every=2)
    loop = trainer(
        folder, log, moments, saved, StopSafely(folder), max_epochs=3, accumulate_grad_batches=3,
        val_check_interval=6, log_every_n_steps=1000,
    )  # fmt: skip
    model = module(network=NETWORK, schedule="noam", learning_rate=2.0, warmup_steps=8)
    streaming = workers > 0  # a tokenised corpus starts no workers
    data = datamodule(folder.parent, max_tokens=110, num_workers=workers, streaming=streaming)
    last = folder / "last.ckpt"
    path = last if last.exists() else None
    loop.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
    assert loop.num_training_batches % 3, "the last window of an epoch is to be a short one"
    final = {
        "weights": model.state_dict(), "curve": log.curve, "averaged": saved.to_average,
        "best": saved.best_scores, "step": loop.global_step, "moments": moments.count,
    }  # fmt: skip
    torch.save(final, folder / "final.pt")


def life(folder: Path, fatal: int | None, workers: int) -> bool:
    """Train in a process of its own; whether it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(folder, fatal, workers)
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(0, 4), (2, 2)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, workers: int, kills: int
) -> None:
    """With accumulation, validations inside of epochs, and short steps at their ends."""
    assert life(tmp_path / "whole", None, workers)
    expected = torch.load(tmp_path / "whole" / "final.pt", weights_only=True)
    rng, folder = random.Random(workers), tmp_path / "killed"
    for _ in range(kills):
        assert not life(folder, rng.randint(8, 40), workers)
        if not (folder / "last.ckpt").exists():  # then it begins anew
            shutil.rmtree(folder, ignore_errors=True)
    assert life(folder, None, workers)
    found = torch.load(folder / "final.pt", weights_only=True)
    torch.testing.assert_close(found["weights"], expected["weights"], rtol=0, atol=0)
    for key in ("step", "curve", "best", "averaged"):
        assert found[key] == expected[key], key
    names = [{path.name for path in where.glob("*.*")} for where in (folder, tmp_path / "whole")]
    assert {name for name in names[0] if not is_part(Path(name))} == names[1]


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("runs/toy/results.json").read_text())
    return found


@pytest.fixture
def options(tmp_path: Path, own_folder: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a run that validates and saves every third step; its best checkpoint is by loss alone."""
    compute = TranslationScore.compute
    monkeypatch.setattr(TranslationScore, "compute", lambda self: {**compute(self), "bleu": 0.0})
    given = ["--logger", "none", "--save_every", "3", "--trainer.val_check_interval", "3"]
    return ["--config", str(recipe(tmp_path)), *given, "--trainer.max_epochs", "-1"]


#: Goes on with so high a rate that everything that was learned is lost.
LOST = ["--ckpt_path", LAST, "--model.learning_rate", "3"]


def best() -> list[str]:
    return [path.name for path in Path("runs/toy/checkpoints").glob("best-*")]


def test_a_checkpoint_knows_what_the_validation_of_its_step_found(options: list[str]) -> None:
    assert fit(*options, "--trainer.max_steps", "6") == 0
    assert best() == ["best-step6-bleu0.00.ckpt"]
    loss = results()["loss"]
    assert fit(*options, *LOST, "--trainer.max_steps", "12") == 0
    assert len(results()["validation_bleu"]) == 4
    assert best() == ["best-step6-bleu0.00.ckpt"]
    assert results()["loss"] == loss


def test_a_best_checkpoint_that_is_there_is_known_again(options: list[str]) -> None:
    """The run was killed when it had written it, and before it noted that anywhere else."""
    assert fit(*options, "--trainer.max_steps", "3") == 0
    shutil.copy(LAST, "before.ckpt")
    assert fit(*options, "--ckpt_path", LAST, "--trainer.max_steps", "6") == 0
    loss = results()["loss"]
    shutil.move("before.ckpt", LAST)
    assert fit(*options, *LOST, "--trainer.max_steps", "9") == 0
    assert best() == ["best-step6-bleu0.00.ckpt"]
    assert results()["loss"] == loss


@pytest.mark.usefixtures("own_folder")
def test_nothing_is_saved_inside_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(tmp_path)
    options = ["--logger", "none", "--save_every", "2", "--trainer.accumulate_grad_batches", "3"]
    assert fit("--config", path, *options, "--trainer.max_steps", "2") == 0
    assert torch.load(LAST, weights_only=True)["micro_batches"] == 6
    whole = Seq2SeqModule.training_step

    def fail(self: Seq2SeqModule, *args: Any) -> Any:
        if self.micro_batches == 8:
            raise KeyboardInterrupt
        return whole(self, *args)

    monkeypatch.setattr(Seq2SeqModule, "training_step", fail)
    again = ["--ckpt_path", LAST, "--trainer.max_steps", "4"]
    assert fit("--config", path, *options, *again) == 130
    assert torch.load(LAST, weights_only=True)["micro_batches"] == 6


def test_a_full_disk_costs_no_checkpoint(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit(*options, "--trainer.max_steps", "3") == 0
    whole = Path(LAST).read_bytes()
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, hard))
    try:
        code = fit(*options, "--ckpt_path", LAST, "--trainer.max_steps", "6")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert code == 2
    assert said.count("\n") == 1
    assert "runs/toy/checkpoints/best-step6-bleu0.00.ckpt: File too large; training stopped" in said
    assert f"fit --config runs/toy/config.yaml --ckpt_path {LAST}" in said
    assert Path(LAST).read_bytes() == whole
    assert not [path for path in Path("runs/toy").rglob("*") if is_part(path)]


def test_checkpoints_take_no_way_over_another_file_system(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert fit(*options, "--trainer.max_steps", "3") == 0
    assert torch.load(LAST, weights_only=True)["global_step"] == 3


def test_an_error_of_a_library_keeps_its_trace_and_names_the_checkpoint(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Seq2SeqModule.training_step

    def fail(self: Seq2SeqModule, *args: Any) -> Any:
        return torch.zeros(2).view(3) if self.micro_batches == 4 else step(self, *args)

    monkeypatch.setattr(Seq2SeqModule, "training_step", fail)
    with pytest.raises(
        RuntimeError, match="stopped after step 4; to resume .* --ckpt_path"
    ) as stop:
        fit(*options)
    assert LAST in str(stop.value)
    assert "is invalid for input of size 2" in str(stop.value.__cause__)


@pytest.mark.parametrize(("name", "done"), [("max_steps", 3), ("max_epochs", 2)])
def test_where_nothing_is_left_to_train_nothing_is_changed(
    options: list[str], capsys: pytest.CaptureFixture[str], name: str, done: int
) -> None:
    given = [*options, *(["--save_every", "null"] if name == "max_epochs" else [])]
    assert fit(*given, f"--trainer.{name}", str(done)) == 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    for limit in (done, done - 1):
        assert fit(*given, "--ckpt_path", LAST, f"--trainer.{name}", str(limit)) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"nothing is left to train: trainer.{name} is {limit}, and {LAST} was" in said
        assert said.endswith("; its bundle is runs/toy/bundle\n")
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before
    # A run that was stopped in its test has nothing left to train either, but has not ended.
    Path("runs/toy/results.json").unlink()
    assert fit(*given, "--ckpt_path", LAST, f"--trainer.{name}", str(done)) == 0
    assert results()["steps"] > 0
