"""However an optimizer step is cut up, over micro-batches or processes, it is the same step."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from toys import NETWORK, VAL, FixedData, datamodule, module, one_step, recipe, start

from transformer.data.tokenizer import TokenizerConfig
from transformer.data.tokenizer_training import tokenizer_path, train_tokenizer
from transformer.training.results import _facts, load_final_weights
from transformer.writing import write

GROUPS = [1, 6, 2, 3]  # sentences: micro-batches of unequal token counts


def launch(what: str, folder: Path, nodes: int = 1) -> list[Any]:
    """Run toys.py on one or two nodes; what each of two processes returned.

    On a node of its own it starts its second process itself.
    """
    script = Path(__file__).with_name("toys.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent), "OMP_NUM_THREADS": "1"}
    if nodes > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = str(server.getsockname()[1])
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), what, str(folder)], text=True, stderr=subprocess.PIPE,
            env={**environment, "NODE_RANK": str(node)} if nodes > 1 else environment,
        )
        for node in range(nodes)
    ]  # fmt: skip
    for process in running:
        _, errors = process.communicate(timeout=150)
        assert process.returncode == 0, errors
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
    assert other["translations"] == one["translations"]


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


def test_a_model_that_learned_from_a_stream_has_a_card(tmp_path: Path) -> None:
    model: Any = module()
    model.network = NETWORK.build(20, 20)
    model._trainer = SimpleNamespace(datamodule=datamodule(tmp_path, streaming=True))
    numbers = dict.fromkeys(("split", "parent")) | {"weights": "last weights", "origin": []}
    numbers |= dict.fromkeys(("epochs", "steps", "seconds", "parameters", "learned_parameters"), 1)
    assert "- weights: last weights; 1 epochs, 1 steps, 1 s" in _facts(model, numbers)


def test_the_first_process_alone_reads_the_final_weights() -> None:
    model, other = module(), NETWORK.build(20, 20)
    model.network = NETWORK.build(20, 20)
    strategy = SimpleNamespace(broadcast=lambda mine: (other.state_dict(), "best"))
    # Not even asked for its callbacks, which know the folder.
    second: Any = SimpleNamespace(is_global_zero=False, strategy=strategy)
    assert load_final_weights(second, model) == "best"
    for name, weights in model.network.state_dict().items():
        assert torch.equal(weights, other.state_dict()[name])


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path: Path) -> None:
    # The signal comes in the sixth micro-batch, the second half of the third step, whose end is
    # when the other process is told: it has heard of it at the end of the fourth.
    assert launch("stop", tmp_path) == [4, 4]
    checkpoint = torch.load(tmp_path / "interrupted.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert checkpoint["micro_batches"] == 8


@pytest.mark.slow
def test_fit_with_two_processes(own_folder: None, tmp_path: Path) -> None:
    """The whole command, on a stream; a test set of one batch leaves one process without any."""
    path = recipe(tmp_path, "recipes/toys/two.yaml")
    args = ["--config", str(path), "--logger", "none", "--data.max_tokens", "400"]
    args += ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.streaming", "true"]
    process = start(*args)
    said, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert said.count("test BLEU") == 1
    results = json.loads((tmp_path / "runs/toys/two/results.json").read_text())
    assert results["epochs"] == 2
    assert results["pairs"] == 120, "those of both"
    assert (tmp_path / "runs/toys/two/bundle/model.safetensors").is_file()
    assert sum(bin_[2] for bin_ in results["bleu_by_length"]) == 10  # all of the test set


@pytest.mark.slow
def test_a_trial_of_two_processes_leaves_nothing(tmp_path: Path) -> None:
    options = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.fast_dev_run=true"]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = start("--config", recipe(tmp_path), *options, TMPDIR=str(temporary))
    said, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert "nothing was kept" in said
    assert not list(temporary.iterdir())


@pytest.mark.slow
def test_two_nodes_train_with_one_vocabulary(tmp_path: Path) -> None:
    """Each has a cache of its own, and the second one holds another vocabulary already."""
    data = datamodule(tmp_path / "1")
    other = train_tokenizer(TokenizerConfig(vocab_size=262), lambda: [("ab", "")] * 9)
    write(tokenizer_path(data.cache, *data.tokenizer_inputs()), json.dumps(other.to_text()))
    first, second = launch("vocabulary", tmp_path, nodes=2)
    assert first == second != other.to_text()
    assert len(list((tmp_path / "1/cache").glob("tokens-*.arrow"))) == 3


@pytest.mark.slow
def test_two_nodes_with_other_text_are_refused(tmp_path: Path) -> None:
    expected = "data: process 1 has other corpora than the first one: give each machine the same"
    assert launch("other_text", tmp_path, nodes=2) == [expected, expected]


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False])
def test_a_process_that_dies_is_one_line_of_the_other(
    own_folder: None, tmp_path: Path, first: bool
) -> None:
    options = ["--logger", "none", "--trainer.strategy", "ddp", "--trainer.devices", "2"]
    options += ["--data.max_tokens", "100", "--trainer.max_epochs", "10000"]
    process = start("--config", recipe(tmp_path), *options)
    last = Path("runs/toy/checkpoints/last.ckpt")
    while not last.exists() and process.poll() is None:
        time.sleep(0.05)
    (second,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid if first else int(second), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if first else 2)
    assert errors.count("\n") == 1, errors
    assert "another process of this run is gone" in errors
    assert f"fit --config runs/toy/config.yaml --ckpt_path {last}" in errors
