"""Steps with a NaN, infinite or spiking loss: found at once, named, skipped or stopped at."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bad_batches import KINDS, Break, Kind, Undo, state
from toys import FixedData, datamodule, module, trainer

from transformer.training import bad_steps
from transformer.training.bad_steps import FILE, IN_A_ROW, BadStep, StepGuard
from transformer.training.checkpoints import Checkpoints
from transformer.training.logging import TrainingLog

GROUPS = [2, 1, 3, 2, 2, 1, 2, 3]
OPTIONS: dict[str, Any] = {"max_epochs": 3, "accumulate_grad_batches": 2}  # 12 steps


@pytest.fixture(autouse=True)
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spikes are seen after 4 steps."""
    monkeypatch.setattr(bad_steps, "WINDOW", 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step_is_as_if_it_had_not_been_made(
    tmp_path: Path, kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    """Step 6 has micro-batches 10 and 11, of which the second breaks."""
    found, log, broken = [], TrainingLog(), Break(kind, 11)
    for callbacks in ([log, broken], [Undo(6)]):
        model = module(on_bad_step="skip", spike_sigmas=20.0)
        run = trainer(tmp_path, *callbacks, **OPTIONS)
        run.fit(model, datamodule=FixedData(GROUPS, []))
        assert run.global_step == 12
        found.append(state(run, model))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert log.latest["train/skipped_steps"] == 1
    assert torch.tensor(log.latest["train/loss"]).isfinite()
    [message] = [record.getMessage() for record in caplog.records if "skipped" in record.msg]
    assert "at step 6 (" in message
    named = [json.loads(line) for line in (tmp_path / FILE).open()]
    # Of a loss that is broken itself the others of its step are not to blame.
    assert [one["where"] for one in named][-len(broken.indices) :] == [
        f"line {index + 1}" for index in broken.indices
    ]
    assert len(named) == len(broken.indices) + (3 if kind in ("gradient", "spike") else 0)
    assert repr(named[0]["src"][:60]) in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_step_stops_before_it_is_made(tmp_path: Path, kind: Kind) -> None:
    model, run = module(spike_sigmas=20.0), trainer(tmp_path, Break(kind, 10), **OPTIONS)
    good = module(), trainer(tmp_path, max_steps=5, accumulate_grad_batches=2)
    with pytest.raises(BadStep, match="at step 6 ") as caught:
        run.fit(model, datamodule=FixedData(GROUPS, []))
    assert caught.value.step == 6
    good[1].fit(good[0], datamodule=FixedData(GROUPS, []))
    for one, other in zip(state(run, model), state(good[1], good[0]), strict=True):
        assert torch.equal(one, other)


def test_a_resumed_run_judges_alike(tmp_path: Path) -> None:
    """Saved after a skipped step; a spike comes next, when only the old steps can show it."""
    options = {"on_bad_step": "skip", "spike_sigmas": 20.0}
    data = FixedData(GROUPS, [])
    found, skipped = [], []
    whole = trainer(tmp_path / "whole", Break("nan", 13), Break("spike", 17), **OPTIONS)
    model = module(**options)
    whole.fit(model, datamodule=data)
    found.append(state(whole, model))
    skipped.append(model.guard.skipped)
    saved = Checkpoints(tmp_path / "saved", keep_best=0, average=0, save_every=None)
    first = trainer(tmp_path, Break("nan", 13), saved, **{**OPTIONS, "max_epochs": 2})
    first.fit(module(**options), datamodule=data)
    again, model = trainer(tmp_path, Break("spike", 17), **OPTIONS), module(**options)
    again.fit(model, datamodule=data, ckpt_path=tmp_path / "saved/last.ckpt", weights_only=True)
    found.append(state(again, model))
    skipped.append(model.guard.skipped)
    assert skipped == [2, 2]
    with (tmp_path / FILE).open("a") as file:  # as text may be, and a kill may leave it
        file.write('{"step": 8, "src": "a\u2028b"}\n{"step"\n')
    rows = (tmp_path / FILE).read_text()
    again = trainer(tmp_path, Break("spike", 17), **OPTIONS)
    last = tmp_path / "saved/last.ckpt"
    again.fit(module(**options), datamodule=data, ckpt_path=last, weights_only=True)
    made_again = sorted((tmp_path / FILE).read_text().split("\n"))
    assert made_again == sorted(rows.split("\n")), "a step that is made again is noted once"
    assert [row[:9] for row in rows.split("\n")].count('{"step": ') == 5
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_skipping_has_an_end(tmp_path: Path) -> None:
    class Always(Break):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.micro_batch = pl_module.micro_batches

    run = trainer(tmp_path, Always("nan", 0), max_epochs=2)
    said = f"bad step {IN_A_ROW} in a row: try .*1.0, or a higher model.spike_sigmas"
    with pytest.raises(BadStep, match=said):
        run.fit(module(on_bad_step="skip"), datamodule=FixedData(GROUPS, []))


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_are_named_by_their_lines(tmp_path: Path, streaming: bool) -> None:
    data = datamodule(tmp_path, streaming=streaming)
    broken = Break("inf", 3)
    with pytest.raises(BadStep):
        trainer(tmp_path, broken, max_epochs=1).fit(module(), datamodule=data)
    sides = [(tmp_path / f"corpus/train.{side}").read_text().splitlines() for side in ("de", "en")]
    named = [json.loads(line) for line in (tmp_path / FILE).open()]
    assert [(one["where"], one["src"], one["tgt"]) for one in named] == [
        (f"{tmp_path}/corpus/train, line {i + 1}", sides[0][i], sides[1][i]) for i in broken.indices
    ]


def test_a_spike_lies_above_the_mean_of_good_steps() -> None:
    """By hand: a mean of 2 and a standard deviation of 1 (of four numbers, n - 1)."""
    at: Any = SimpleNamespace(trainer=SimpleNamespace(global_step=0))
    ones = torch.ones(())

    def judge(guard: StepGuard, loss: float, norm: float = 1.0) -> float:
        guard.look = lambda module: None  # type: ignore[method-assign]
        return guard.judge(at, torch.tensor(loss), torch.tensor(norm)).item()

    losses = [2.0, 2.0, 2 - 1.5**0.5, 2 + 1.5**0.5]
    guard = StepGuard("skip", 3.0)
    assert [judge(guard, loss) for loss in (*losses[:3], losses[3])] == [0.0] * 4
    assert judge(guard, 5.01) == 1.0
    assert judge(guard, 2.0, 1.01) == 1.0  # the norm, which never changed
    assert judge(guard, 4.99, ones.item()) == 0.0  # nothing bad was remembered
    assert judge(StepGuard(), 1e30) == 0.0
