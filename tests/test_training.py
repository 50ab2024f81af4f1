"""Steps, schedules, checkpoints, averaging, and what becomes of a loss that is NaN."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from toys import NETWORK, FixedData, datamodule, module, one_step, trainer

from transformer.training.bad_steps import BadStep
from transformer.training.checkpoint_files import read_checkpoint
from transformer.training.checkpoints import Checkpoints
from transformer.training.logging import TrainingLog
from transformer.training.stopping import EarlyStopping
from transformer.training.train import Run


def test_clipping_scales_the_whole_gradient_and_logs_the_norm_before(tmp_path: Path) -> None:
    free = one_step(tmp_path, [3, 2], 2)
    clipped = one_step(tmp_path, [3, 2], 2, clip=0.25)
    norm = free["latest"]["train/gradient_norm"]
    assert norm > 0.5
    assert clipped["latest"]["train/gradient_norm"] == pytest.approx(norm)
    for name, gradient in free["gradients"].items():
        torch.testing.assert_close(clipped["gradients"][name], gradient * 0.25 / (norm + 1e-6))


def test_clipping_by_value_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, gradient_clip_val=1.0, gradient_clip_algorithm="value", max_epochs=1)
    with pytest.raises(ValueError, match=r"trainer\.gradient_clip_algorithm is 'value'"):
        run.fit(module(), datamodule=FixedData([2], []))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fused_adam_clips_in_mixed_precision(tmp_path: Path, precision: str) -> None:
    model = module()
    options: dict[str, Any] = {"precision": precision, "gradient_clip_val": 1.0}
    run = trainer(tmp_path, max_epochs=2, **options)
    run.fit(model, datamodule=FixedData([4, 4], [2]))
    assert run.optimizers[0].defaults["fused"]
    assert run.optimizers[0].defaults["betas"] == (0.9, 0.98)
    assert run.optimizers[0].defaults["eps"] == 1e-9
    assert math.isfinite(model.scorer.scores["loss"])


def test_schedule_moves_once_for_each_optimizer_step(tmp_path: Path) -> None:
    rates: list[float] = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    model = module(schedule="noam", learning_rate=2.0, warmup_steps=3)
    run = trainer(tmp_path, Rates(), max_epochs=2, accumulate_grad_batches=2)
    run.fit(model, datamodule=FixedData([1] * 5, []))
    steps = range(1, 7)  # ceil(5 / 2) in each of two epochs
    expected = [2 * 16**-0.5 * min(step**-0.5, step * 3**-1.5) for step in steps]
    assert rates == pytest.approx(expected)


def test_log_is_per_token_and_counts_real_tokens(tmp_path: Path) -> None:
    class Recorder(TrainingLog):
        rows: list[dict[str, float]] = []  # noqa: RUF012

        def _log(self, trainer: Any, metrics: dict[str, float]) -> None:
            self.rows.append({"step": trainer.global_step, **metrics})

    log, data = Recorder(), FixedData([2, 5, 3], [2])
    run = trainer(tmp_path, log, max_epochs=1, log_every_n_steps=100)
    run.fit(module(learning_rate=0.0), datamodule=data)
    batches = data.batches(0, [2, 5, 3])
    assert log.totals["src_tokens"] == sum(int(b.src_lengths.sum()) for b in batches)
    assert log.totals["tgt_tokens"] == sum(int(b.tgt_lengths.sum()) for b in batches)
    rows = [row for row in log.rows if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 3]
    assert [row["train/epoch"] for row in rows] == [0.0, 0.0]
    rest = batches[1:]
    real = sum(int(b.src_lengths.sum() + b.tgt_lengths.sum()) for b in rest)
    cells = sum(b.src.numel() + b.tgt_out.numel() for b in rest)
    assert rows[1]["train/padding_share"] == pytest.approx(1 - real / cells)
    # An untrained model is about as good as a guess among the vocabulary.
    guess = math.log(data.tokenizer.tgt_vocab_size)
    assert rows[1]["train/nll"] == pytest.approx(guess, rel=0.3)
    assert rows[1]["train/perplexity"] == pytest.approx(math.exp(rows[1]["train/nll"]))
    windows = (
        [int(b.tgt_lengths.sum()) for b in batches[:1]],
        [int(b.tgt_lengths.sum()) for b in rest],
    )
    seconds = [
        sum(tokens) / row["train/tgt_tokens_per_second"]
        for tokens, row in zip(windows, rows, strict=True)
    ]
    assert sum(seconds) <= log.totals["training_seconds"] + 1e-6
    assert sum(seconds) > 0.5 * log.totals["training_seconds"]
    assert log.totals["training_seconds"] < log.totals["seconds"]
    (scores,) = [row for row in log.rows if "val/bleu" in row]
    assert scores["val/perplexity"] == pytest.approx(math.exp(scores["val/nll"]))
    assert {"val/loss", "val/chrf"} < scores.keys()


def test_validation_loss_is_that_of_torch(tmp_path: Path) -> None:
    data, model = FixedData([4], [3, 1, 4]), module(learning_rate=0.0)
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
    total, tokens = 0.0, 0
    network = model.model.eval()
    for batch in data.batches(4, [3, 1, 4]):
        logits = network.project(network(batch.src, batch.src_lengths, batch.tgt_in))
        flat = logits.flatten(0, 1), batch.tgt_out.flatten()
        total += torch.nn.functional.cross_entropy(*flat, ignore_index=0, reduction="sum").item()
        tokens += int(batch.tgt_lengths.sum())
    assert model.scorer.scores["nll"] == pytest.approx(total / tokens, rel=1e-5)
    assert sorted(model.scorer.translations) == list(range(4, 12))


class Poison(Callback):
    """Makes a weight NaN before a step, or its gradient after it."""

    def __init__(self, step: int, gradient: bool) -> None:
        self.step, self.gradient = step, gradient

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step - 1 and not self.gradient:
            next(pl_module.parameters()).data.fill_(float("nan"))

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.step - 1 and self.gradient:
            next(pl_module.parameters()).grad.fill_(float("inf"))


@pytest.mark.parametrize(("step", "gradient"), [(5, False), (5, True), (6, True)])
def test_nan_stops_with_step_and_last_good_checkpoint(
    tmp_path: Path, step: int, gradient: bool
) -> None:
    folder = tmp_path / "checkpoints"
    saved = Checkpoints(folder, keep_best=1, average=2, save_every=None)
    options = {"max_epochs": 3, "log_every_n_steps": 1000}
    run = trainer(tmp_path, TrainingLog(), Poison(step, gradient), saved, **options)
    with pytest.raises(BadStep) as caught:
        run.fit(module(), datamodule=FixedData([2, 2, 2], [2]))
    assert caught.value.step == step
    for path in folder.glob("*.ckpt"):
        checkpoint = read_checkpoint(path)
        assert checkpoint["global_step"] == 3
        assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
    toy = Run(None, "toy", tmp_path, is_new=True, is_trial=False, again=None)
    toy.trainer = run
    message = str(toy.failed(caught.value))
    assert f"NaN or infinite at step {step}" in message
    assert f"--ckpt_path {folder / 'last.ckpt'}" in message
    assert "try a lower model.learning_rate" in message


def test_nan_weights_are_not_saved_for_the_average_either(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path, keep_best=1, average=2, save_every=1)
    run = trainer(tmp_path, Poison(2, True), saved, max_epochs=1)
    with pytest.raises(BadStep):
        run.fit(module(), datamodule=FixedData([2, 2, 2], []))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [
        "last.ckpt",
        "weights-step1.ckpt",
    ]


def test_early_stopping_by_bleu(tmp_path: Path) -> None:
    run = trainer(tmp_path, EarlyStopping(2), max_epochs=50)
    run.fit(module(learning_rate=0.0), datamodule=FixedData([2], [2]))
    assert run.current_epoch == 3  # BLEU does not change: one best, then two without a rise


def test_a_validation_has_a_budget_that_counts_beams(tmp_path: Path) -> None:
    data = datamodule(tmp_path, eval_max_tokens=60)
    trainer(tmp_path).validate(module(), datamodule=data, verbose=False)
    batches = list(data.val_dataloader())
    # Two beams, three tokens beyond the source: what does not fit is a batch of its own.
    held = [2 * len(b.indices) * (max(b.src.size(1), b.tgt_out.size(1)) + 3) for b in batches]
    assert all(h <= 60 or len(b.indices) == 1 for h, b in zip(held, batches, strict=True))
    assert max(len(b.indices) for b in batches) > 1


def test_lengths_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training, for the test at its end, too; else before the test."""
    checked: list[int] = []
    monkeypatch.setattr(FixedData, "check_lengths", lambda self, longest: checked.append(longest))
    monkeypatch.setattr(FixedData, "test_dataloader", FixedData.val_dataloader, raising=False)
    model, data = module(network=replace(NETWORK, positions="learned")), FixedData([2], [2])
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    assert len(checked) == 1
    model.micro_batches = 0
    run.test(model, datamodule=data, verbose=False)
    assert len(checked) == 2


def test_no_validation_set(tmp_path: Path) -> None:
    data = datamodule(tmp_path, val=None)
    saved = Checkpoints(tmp_path / "c", keep_best=1, average=0, save_every=2)
    trainer(tmp_path, TrainingLog(), saved, max_epochs=1).fit(module(), datamodule=data)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["last.ckpt"]
