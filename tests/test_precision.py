"""Fast settings give the same result: bfloat16 in training against float32."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from toys import FixedData, module, trainer

from transformer.data.datamodule import DataModule
from transformer.data.tokenizer import TokenizerConfig
from transformer.models import TransformerConfig
from transformer.training import runs
from transformer.training.module import Seq2SeqModule

STEPS, WINDOW = 500, 25


class Curve(Callback):
    """Mean plain loss in nats per token over each window of steps."""

    def __init__(self) -> None:
        self.windows: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step % WINDOW == 0:
            reading = pl_module.meter.read(trainer)
            self.windows.append(reading.nll / reading.tgt_tokens)
            pl_module.meter.clear()


def curve(folder: Path, seed: int, precision: Any) -> torch.Tensor:
    model = Seq2SeqModule(
        TransformerConfig(d_model=64, d_ff=128, num_heads=4, num_layers=2, dropout=0.1),
        schedule="inverse_sqrt", learning_rate=0.005, warmup_steps=100, seed=seed,
    )  # fmt: skip
    data = DataModule(
        train="grammar:train", src="ko", tgt="en", limit=20_000, max_tokens=512, seed=seed,
        cache=str(folder / "cache"), tokenizer=TokenizerConfig(vocab_size=1000),
    )  # fmt: skip
    found = Curve()
    options = {"precision": precision, "max_steps": STEPS, "limit_val_batches": 0}
    trainer(folder, found, **options).fit(model, datamodule=data)
    return torch.tensor(found.windows)


@pytest.mark.slow
def test_the_loss_curve_of_bfloat16_stays_within_the_spread_of_seeds(tmp_path: Path) -> None:
    seeds = torch.stack([curve(tmp_path, seed, "32-true") for seed in (1, 2, 3)])
    fast = curve(tmp_path, 1, "bf16-mixed")
    assert len(fast) == STEPS // WINDOW
    assert fast[0] - fast[-1] > 2, "nothing was learned"
    spread = seeds.amax(0) - seeds.amin(0)
    # Its distance from float32 with its own seed is no more than that of two seeds.
    assert (fast - seeds[0]).abs().mean() <= spread.mean()
    assert abs(fast[-4:].mean() - seeds[0, -4:].mean()) <= spread[-4:].max()


def test_evaluation_on_a_cpu_is_in_full_precision(tmp_path: Path) -> None:
    model, data = module(), FixedData([4, 4], [3, 2])
    mixed: Any = {"precision": "bf16-mixed"}
    trainer(tmp_path, max_epochs=1, **mixed).fit(model, datamodule=data)
    during = model.scorer.scores
    trainer(tmp_path).validate(model, datamodule=data, verbose=False)
    assert math.isfinite(during["loss"])
    assert during == model.scorer.scores


@pytest.mark.parametrize(("fast", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_cpu_trains_in_bfloat16_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, fast: bool, expected: str
) -> None:
    monkeypatch.setattr(runs, "_bfloat16_is_fast", lambda: fast)
    given = SimpleNamespace(precision=None, accelerator="cpu")
    runs.choose_precision(given)
    assert given.precision == expected
    given = SimpleNamespace(precision="32-true", accelerator="cpu")
    runs.choose_precision(given)
    assert given.precision == "32-true"


def test_a_gpu_is_not_judged_by_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_bfloat16_is_fast", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    given = SimpleNamespace(precision=None, accelerator="auto")
    runs.choose_precision(given)
    assert given.precision == "32-true"
