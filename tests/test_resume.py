"""A run that was stopped and resumed is the run that was never stopped."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from toys import KillAt, datamodule, module, trainer

from transformer.data.tokenizer import TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.errors import UserError
from transformer.models import ModelConfig, RNNConfig, TransformerConfig
from transformer.training.checkpoints import LAST, Checkpoints
from transformer.training.logging import CsvLogger, TrainingLog
from transformer.training.stopping import INTERRUPTED, Interrupted, StopSafely

NETWORK = TransformerConfig(d_model=16, d_ff=32, num_heads=2, num_layers=1, dropout=0.3)


def run(
    folder: Path,
    *extra: Callback,
    average: int = 0,
    resume: bool | Path = False,
    network: ModelConfig = NETWORK,
    **options: Any,
) -> tuple[Trainer, dict[str, torch.Tensor], TrainingLog]:
    """Train with dropout and accumulation for three epochs, from a checkpoint if there is one."""
    log = TrainingLog()
    saved = Checkpoints(folder, keep_best=1, average=average, save_every=None)
    given = {"max_epochs": 3, "accumulate_grad_batches": 5, "log_every_n_steps": 1000, **options}
    stop = StopSafely(folder)
    loop = trainer(folder, log, *extra, saved, stop, **given)
    model = module(network=network, schedule="noam", learning_rate=2.0, warmup_steps=8)
    path = folder / INTERRUPTED if resume is True else resume or None
    data = datamodule(folder.parent, max_tokens=100, eval_max_tokens=200)
    with stop:
        loop.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
    return loop, {k: v.clone() for k, v in model.state_dict().items()}, log


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> tuple[Trainer, dict[str, torch.Tensor], TrainingLog]:
    return run(folder / "whole", average=2)


@pytest.mark.parametrize(
    ("where", "signum"),
    [
        ("inside a step", signal.SIGINT),
        ("inside a step", signal.SIGTERM),
        ("in another epoch", signal.SIGINT),
        ("in the last step of an epoch", signal.SIGINT),
        ("in the last step of all", signal.SIGINT),
    ],
)
def test_resumed_equals_uninterrupted(
    folder: Path, uninterrupted: Any, where: str, signum: signal.Signals
) -> None:
    expected_loop, expected, expected_log = uninterrupted
    epoch = int(expected_loop.num_training_batches)
    assert epoch > 6
    assert epoch % 5, "the last window of an epoch is to be a short one"
    at = {
        "inside a step": 4,
        "in another epoch": epoch + 4,
        "in the last step of an epoch": epoch - 1,
        "in the last step of all": 3 * epoch - 1,
    }[where]
    place = folder / f"stopped-{at}-{signum}"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    with pytest.raises(Interrupted) as stop:
        run(place, KillAt(signum, at), average=2)
    assert stop.value.signum == signum
    assert stop.value.checkpoint == place / INTERRUPTED
    finished = where == "in the last step of all"
    assert (stop.value.step == expected_loop.global_step) == finished
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers

    loop, weights, log = run(place, average=2, resume=True)
    assert loop.global_step == expected_loop.global_step
    assert loop.current_epoch == expected_loop.current_epoch
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    for key in ("src_tokens", "tgt_tokens"):
        assert log.totals[key] == expected_log.totals[key]
    names = [{path.name for path in where.glob("*.ckpt")} for where in (place, folder / "whole")]
    assert names[0] - {INTERRUPTED} == names[1], (
        "the same checkpoints to average and to choose from"
    )


class Timer(Callback):
    """Stops training in the middle of an optimizer step, as Lightning's `max_time` does."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.fit_loop.total_batch_idx >= 6


@pytest.mark.parametrize("val_batches", [1.0, 0])
def test_a_run_whose_time_is_over_finishes_its_step(
    folder: Path, uninterrupted: Any, val_batches: float
) -> None:
    place = folder / f"timed-{val_batches}"
    loop, _, _ = run(place, Timer(), average=2, limit_val_batches=val_batches)
    saved = torch.load(place / LAST, weights_only=True)
    assert (loop.global_step, saved["global_step"], saved["micro_batches"]) == (2, 2, 10)
    _, weights, _ = run(place, average=2, resume=place / LAST)
    torch.testing.assert_close(weights, uninterrupted[1], rtol=0, atol=0)


@pytest.mark.parametrize("own", [True, False])
def test_a_save_that_a_kill_left_undone_is_made_up_for(folder: Path, own: bool) -> None:
    """The best checkpoint is written before last.ckpt; that of another run is not this run's."""
    loop, _, _ = run(folder / f"killed-{own}", max_epochs=1)
    (best,) = (folder / f"killed-{own}").glob("best-*.ckpt")
    last = best.with_name(LAST)
    assert torch.load(best)["global_step"] == torch.load(last)["global_step"] == loop.global_step
    last.unlink()
    again = best.parent if own else folder / "another run"
    run(again, max_epochs=1, resume=best)
    assert {path.name for path in again.glob("*.ckpt")} == ({best.name, LAST} if own else set())
    if own:
        assert last.read_bytes() == best.read_bytes()


def test_a_recurrent_run_is_resumed_as_exactly(folder: Path) -> None:
    """With dropout between its layers, too."""
    network = RNNConfig(d_model=16, num_layers=2, dropout=0.3, cell="lstm", attention="dot")
    _, expected, _ = run(folder / "rnn", network=network)
    with pytest.raises(Interrupted):
        run(folder / "rnn-stopped", KillAt(signal.SIGINT, 4), network=network)
    _, weights, _ = run(folder / "rnn-stopped", network=network, resume=True)
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)


def test_another_architecture_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="architecture is rnn, but the checkpoint .* transformer"):
        resume_with(folder, "refused-architecture", network=RNNConfig(d_model=16))


def test_the_first_step_is_finished_before_stopping(folder: Path) -> None:
    with pytest.raises(Interrupted):
        run(folder / "first", KillAt(signal.SIGINT, 0))
    checkpoint = torch.load(folder / "first" / INTERRUPTED, weights_only=True)
    assert checkpoint["global_step"] == 1
    assert checkpoint["micro_batches"] == 5
    assert checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 5


def test_dropout_depends_on_the_micro_batch_alone(folder: Path, uninterrupted: Any) -> None:
    class Disturb(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            torch.rand(3)

    _, weights, _ = run(folder / "disturbed", Disturb())
    torch.testing.assert_close(weights, uninterrupted[1], rtol=0, atol=0)
    _, other, _ = run(folder / "other", max_epochs=2)
    assert any(not torch.equal(other[k], weights[k]) for k in weights)


def resume_with(folder: Path, place: str, **changes: Any) -> None:
    if not (folder / place / INTERRUPTED).exists():
        with pytest.raises(Interrupted):
            run(folder / place, KillAt(signal.SIGINT, 0))
    network = changes.pop("network", NETWORK)
    data = datamodule(folder, **changes)
    data.tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=280), lambda: [("rot blau", "red blue")] * 9
    )
    loop = trainer(folder, TrainingLog(), max_epochs=1)
    path = folder / place / INTERRUPTED
    loop.fit(module(network=network), datamodule=data, ckpt_path=path, weights_only=True)


def test_another_vocabulary_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="vocabulary does not fit the checkpoint: .* 300 and 300"):
        resume_with(folder, "refused")


def test_another_shape_is_refused(folder: Path) -> None:
    network = TransformerConfig(d_model=32, d_ff=32, num_heads=2, num_layers=1)
    with pytest.raises(ValueError, match=r"model\.network\.d_model is 32, .* trained with 16"):
        resume_with(folder, "refused", network=network)


class SignalInValidation(Callback):
    """Sends SIGTERM at the second batch of the validation after an optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step and args[1] == 1:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(("step", "interval"), [(2, 10), (3, 1.0), (6, 1.0)])
def test_a_validation_is_left_and_repeated(folder: Path, step: int, interval: Any) -> None:
    """In the middle of an epoch, at its end, and after the last step."""

    class Losses(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            found.append((trainer.global_step, pl_module.scorer.scores["loss"]))

    options: dict[str, Any] = {"max_epochs": -1, "max_steps": 6, "val_check_interval": interval}
    found: list[Any] = []
    name = f"left-{step}"
    loop, expected, log = run(folder / f"{name}-whole", Losses(), average=2, **options)
    assert loop.num_training_batches == 12
    losses, found = found, []
    with pytest.raises(Interrupted) as stop:
        run(folder / name, SignalInValidation(step), Losses(), average=2, **options)
    assert stop.value.step == step
    assert found == [pair for pair in losses if pair[0] < step]
    loop, weights, again = run(folder / name, Losses(), average=2, resume=True, **options)
    assert found == losses
    assert loop.global_step == 6
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    assert len(again.curve) == len(log.curve)
    assert again.totals["tgt_tokens"] == log.totals["tgt_tokens"]
    names = [
        {path.name for path in where.glob("*.ckpt")}
        for where in (folder / name, folder / f"{name}-whole")
    ]
    assert names[0] - {INTERRUPTED} == names[1]


@pytest.mark.parametrize("torn", [0, 1, 9])
def test_metrics_of_a_killed_run_are_those_of_a_whole_one(tmp_path: Path, torn: int) -> None:
    def log(logger: CsvLogger, steps: range) -> bytes:
        for step in steps:
            logger.log_metrics({"train/loss": 1 / step, "epoch": step // 3}, step)
            if step % 4 == 0:
                logger.log_metrics({"val/bleu": step / 7, "epoch": step // 3}, step)
        return logger.path.read_bytes()

    expected = log(CsvLogger(tmp_path / "whole"), range(1, 12))
    content = log(CsvLogger(tmp_path), range(1, 8))
    (tmp_path / "metrics.csv").write_bytes(content[: len(content) - torn])
    resumed = CsvLogger(tmp_path, 5)
    assert resumed.path.read_bytes() == content[: len(content) - torn], "before it has trained"
    assert log(resumed, range(6, 12)) == expected
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = [(int(row["step"]), row["val/bleu"] != "") for row in csv.DictReader(file)]
    assert rows == sorted([(step, False) for step in range(1, 12)] + [(4, True), (8, True)])


def test_metrics_survive_a_folder_that_went_away(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path / "run")
    logger.log_metrics({"loss": 3.0}, 1)
    logger.path.rename(tmp_path / "metrics.csv")
    logger.log_metrics({"loss": 2.0}, 2)
    assert logger.path.read_text().split() == ["loss,step", "2.0,2"]
    CsvLogger(tmp_path / "run", 2)
    logger.path.write_text("step;loss\n2;2.0\n")
    with pytest.raises(UserError, match="metrics.csv has no column 'step': move it away"):
        CsvLogger(tmp_path / "run")
