"""How a run stops before its end, and the commands that it prints then."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import fit, recipe, start, table

from transformer.__main__ import main
from transformer.commands import text
from transformer.data.datamodule import DataModule
from transformer.training.runs import program, speaks_for_its_machine
from transformer.training.stopping import Interrupted, StopSafely
from transformer.training.train import Run

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_data_is_prepared_stops_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signum: int,
    code: int,
) -> None:
    def prepare(self: DataModule) -> None:
        signal.raise_signal(signum)
        raise AssertionError("went on")

    monkeypatch.setattr(DataModule, "prepare_data", prepare)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert fit("--config", recipe(tmp_path), "--logger", "none") == code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    said = capsys.readouterr()
    assert said.out.endswith("\nStopped at once; nothing was saved before.\n")
    assert not said.err
    assert not Path("runs/toy").exists()


def test_ctrl_c_does_not_end_data_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with StopSafely(tmp_path) as stop:
        monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a process that was forked here
        signal.raise_signal(signal.SIGINT)
    assert stop.signum == signal.SIGINT


def test_printed_commands_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("runs/my run")
    run = Run(None, "toy", folder, is_new=True, is_trial=False, again=None)
    said = run.goodbye(Interrupted(signal.SIGINT, folder / "checkpoints" / "x.ckpt", 7, 1))
    commands = [shlex.split(line.split(": ")[1]) for line in said.splitlines()[2:]]
    assert commands[0][-4:] == [
        "--config", "runs/my run/config.yaml", "--ckpt_path", "runs/my run/checkpoints/x.ckpt"
    ]  # fmt: skip
    assert commands[1][-2:] == ["runs/my run/checkpoints/x.ckpt", "runs/my run/bundle-interrupted"]


def test_commands_to_copy_name_a_program_that_can_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make` runs a program that is on no PATH; what it prints must work when it is pasted."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("transformer", "wandb"):
        (folder / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(sys, "argv", [".venv/bin/transformer", "fit"])
    assert (program(), program("wandb")) == (".venv/bin/transformer", ".venv/bin/wandb")
    monkeypatch.setenv("PATH", str(folder))
    assert (program(), program("wandb")) == ("transformer", "wandb")
    monkeypatch.setattr(sys, "argv", ["somewhere/transformer/__main__.py", "fit"])
    assert program() == "python -m transformer"


@pytest.mark.slow
def test_ctrl_c_prints_the_command_that_resumes(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    process = start("--config", path, "--logger", "csv", "--trainer.max_epochs", "10000")
    deadline = time.monotonic() + 60
    while not Path("runs/toy/checkpoints/last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "a second Ctrl-C stops at once" in errors
    assert "Traceback" not in errors
    saved = Path("runs/toy/checkpoints/interrupted.ckpt")
    steps = torch.load(saved, weights_only=True)["global_step"]
    assert f"Stopped after step {steps:,}" in said
    assert f"python -m transformer average {saved} runs/toy/bundle-interrupted" in said

    (command,) = re.findall(r"to resume: +python -m transformer fit (.*)", said)
    epochs = str(torch.load(saved, weights_only=True)["epoch"] + 2)
    every_import = {"PYTHONPROFILEIMPORTTIME": "1"}  # on standard error
    resumed = start(*shlex.split(command), "--trainer.max_epochs", epochs, **every_import)
    said, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, errors
    assert " lightning.pytorch\n" in errors and " wandb\n" not in errors  # the logger is csv
    assert "resuming in runs/toy" in said
    results = json.loads(Path("runs/toy/results.json").read_text())
    assert results["steps"] > steps
    rows = table("runs/toy/metrics.csv")
    logged = [int(row["step"]) for row in rows]
    assert logged == sorted(logged)
    assert logged[0] == 1
    assert logged[-1] == results["steps"]


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    # An optimizer step that never ends: all of an epoch's batches, of a corpus without end.
    options = ["--trainer.accumulate_grad_batches", "1000000", "--trainer.max_epochs", "100000"]
    process = start("--config", recipe(tmp_path), "--logger", "none", *options)
    while "writing to" not in (process.stdout.readline() if process.stdout else "writing to"):
        pass
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, 143), errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("watch", "signum"),
    [
        (contextlib.nullcontext, signal.SIGINT),
        (text._signals_raise, signal.SIGTERM),
        (lambda: StopSafely(Path()), signal.SIGINT),
        (lambda: StopSafely(Path()), signal.SIGTERM),
    ],
)
def test_a_signal_inside_of_a_del_is_not_lost(
    watch: Any, signum: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python prints what a handler raises there, and goes on."""
    lived_on = []

    class Bar:
        def __del__(self) -> None:
            signal.raise_signal(signum)
            lived_on.append("after the signal")

    def command(args: list[str]) -> int:
        with watch() as stop:
            try:
                bar = Bar()
                del bar
                lived_on.append("after __del__")
                time.sleep(5)
                return 0
            except KeyboardInterrupt:
                return 128 + (stop.signum if stop else signal.SIGINT)
            except SystemExit as end:
                return int(end.code or 0)

    begin = threading.Thread.start

    def start_slowly(thread: threading.Thread) -> None:
        begin(thread)
        time.sleep(0.2)  # as on a machine that has much to do

    monkeypatch.setattr("threading.Thread.start", start_slowly)
    monkeypatch.setattr("transformer.__main__.run", command)
    assert main([]) == 128 + signum
    assert lived_on == ["after __del__"]
    assert capsys.readouterr().err == ""


def test_a_stopped_process_does_not_wait_for_long_at_its_exit() -> None:
    code = (
        "import atexit, sys, time; atexit.register(time.sleep, 60)\n"
        "from transformer.training import stopping; stopping.PATIENCE = 0.2\n"
        "sys.exit(stopping.end_soon(15))"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 143
    assert "`wandb sync`" in ended.stderr


@pytest.mark.parametrize("name", ["LOCAL_RANK", "SLURM_LOCALID"])
def test_one_process_of_a_machine_speaks(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`torchrun` numbers them in one way, a bare `srun` in another."""
    monkeypatch.setenv("SLURM_PROCID", "8")
    assert speaks_for_its_machine()
    monkeypatch.setenv(name, "1")
    assert not speaks_for_its_machine()


def test_nan_stops_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--logger", "none", "--model.learning_rate", "1e38", "--model.schedule", "constant"]
    assert fit("--config", recipe(tmp_path), *options, "--model.warmup_steps", "0") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    # Every pair of this toy fits one batch; the first ones are shown.
    assert re.search(r"NaN or infinite at step \d \(loss .*\) with \d+ pairs: .*corpus/train", said)
    assert "bad_steps.jsonl: try a lower model.learning_rate, more model.warmup_steps" in said
    assert re.search(r"; training stopped after step \d; nothing was saved before$", said)
    assert not list(Path("runs/toy").glob("checkpoints/*"))
