"""However an optimizer step is cut up, over micro-batches or processes, it is the same step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from toys import NETWORK, VAL, FixedData, one_step, recipe

GROUPS = [1, 6, 2, 3]  # sentences: micro-batches of unequal token counts


def launch(what: str, folder: Path) -> list[Any]:
    """Run toys.py, which starts its second process itself; what each of the two returned."""
    script = Path(__file__).with_name("toys.py")
    command = [sys.executable, str(script), what, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    paths = [folder / f"{what}-{rank}.pt" for rank in (0, 1)]
    return [torch.load(path, weights_only=True) for path in paths]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole batch at once, in one process."""
    return one_step(tmp_path_factory.mktemp("whole"), [sum(GROUPS)], 1)


def assert_same_step(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["gradients"].keys() == other["gradients"].keys()
    for name, gradient in one["gradients"].items():
        error = (gradient - other["gradients"][name]).norm() / gradient.norm()
        assert error < 1e-6, (name, error)
    for key in ("loss", "nll", "bleu", "chrf", "loop_rate", "empty_rate", "blow_up_rate"):
        assert other["scores"][key] == pytest.approx(one["scores"][key], rel=1e-6)
    for key in ("loss", "nll", "gradient_norm", "learning_rate"):
        name = f"train/{key}"
        assert other["latest"][name] == pytest.approx(one["latest"][name], rel=1e-6)


def test_gradient_is_that_of_the_mean_over_tokens(whole: dict[str, Any]) -> None:
    data = FixedData([sum(GROUPS)], VAL)
    batch = data.batches(0, [sum(GROUPS)])[0]
    network = NETWORK.build(data.tokenizer.src_vocab_size, data.tokenizer.tgt_vocab_size).double()
    weights = {k.removeprefix("network."): v for k, v in whole["weights"].items()}
    network.load_state_dict(weights, strict=False)
    network.tie()
    logits = network.project(network(batch.src, batch.src_lengths, batch.tgt_in)).flatten(0, 1)
    F.cross_entropy(logits, batch.tgt_out.flatten(), ignore_index=0, label_smoothing=0.1).backward()
    total = 0.0
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(whole["gradients"][f"network.{name}"], parameter.grad)
        total += parameter.grad.norm().item() ** 2
    assert whole["latest"]["train/gradient_norm"] == pytest.approx(total**0.5)


def test_four_accumulated_micro_batches(whole: dict[str, Any], tmp_path: Path) -> None:
    assert_same_step(whole, one_step(tmp_path, GROUPS, 4))


def test_short_last_window(whole: dict[str, Any], tmp_path: Path) -> None:
    assert_same_step(whole, one_step(tmp_path, GROUPS, 7))


@pytest.mark.slow
def test_two_processes(whole: dict[str, Any], tmp_path: Path) -> None:
    for result in launch("step", tmp_path):
        assert_same_step(whole, result)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path: Path) -> None:
    # The signal comes in the sixth micro-batch, the second half of the third step, whose end is
    # when the other process is told: it has heard of it at the end of the fourth.
    assert launch("stop", tmp_path) == [4, 4]
    checkpoint = torch.load(tmp_path / "interrupted.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert checkpoint["micro_batches"] == 8


@pytest.mark.slow
def test_fit_with_two_processes(tmp_path: Path) -> None:
    """The whole command; a test set of one batch leaves the second process without any."""
    path = recipe(tmp_path, "recipes/toys/two.yaml")
    args = ["--config", str(path), "--logger", "none", "--data.max_tokens", "400"]
    args += ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "transformer", "fit", *args],
        capture_output=True, text=True, timeout=150, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test BLEU") == 1
    results = json.loads((tmp_path / "runs/toys/two/results.json").read_text())
    assert results["epochs"] == 2
    assert (tmp_path / "runs/toys/two/bundle/model.safetensors").is_file()
