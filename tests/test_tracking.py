"""Where the curves of a run go: W&B, with and without a key, or a file."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from lightning.pytorch.loggers import WandbLogger
from toys import ROOT, recipe, start

from transformer.training.tracking import has_wandb_key, log_bundle, wandb_logger

pytestmark = pytest.mark.usefixtures("own_folder")


def records(folder: Path) -> list[Any]:
    """What W&B wrote: its own protocol buffers, in a file of records."""
    record = import_module("wandb.proto.wandb_internal_pb2").Record
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data = path.read_bytes()
    assert data.startswith(b":W&B")
    found, position, parts = [], 7, b""
    while position + 7 <= len(data):  # LevelDB's log format: blocks of 32 KiB, parts of records
        rest = 2**15 - position % 2**15
        _, size, kind = struct.unpack_from("<IHB", data, position) if rest >= 7 else (0, 0, 0)
        if kind == 0:
            position += rest
            continue
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(record.FromString(parts))
            parts = b""
    return found


@pytest.mark.slow
def test_wandb_offline_without_a_key_or_a_question(tmp_path: Path) -> None:
    path = recipe(tmp_path, "toy+1.yaml")  # a name that W&B does not take
    process = start("--config", path, WANDB_SILENT="false")
    said, errors = process.communicate(timeout=120, input="")
    assert process.returncode == 0, errors
    run = Path("runs/toy+1")
    found = records(run)

    config = {
        ".".join(item.nested_key) or item.key: item.value_json
        for record in found
        for item in [*record.run.config.update, *record.config.update]
    }
    assert json.loads(config["model"])["network"]["d_model"] == 16
    assert json.loads(config["data"])["tokenizer"]["vocab_size"] == 300
    assert json.loads(config["recipe"]) == "toy+1"
    results = json.loads((run / "results.json").read_text())
    assert json.loads(config["parameters"]) == results["parameters"]

    history: dict[str, list[str]] = {}
    for record in found:
        for item in record.history.item:
            key = item.key or ".".join(item.nested_key)
            history.setdefault(key, []).append(item.value_json)
    for key in ("loss", "nll", "perplexity", "learning_rate", "gradient_norm", "padding_share",
                "src_tokens_per_second", "tgt_tokens_per_second", "memory_gib"):  # fmt: skip
        assert f"train/{key}" in history
    for key in ("bleu", "chrf", "loss", "nll", "perplexity"):
        assert len(history[f"val/{key}"]) == 2
    steps = [int(float(step)) for step in history["trainer/global_step"]]
    assert steps == sorted(steps)
    assert steps[-1] == results["steps"]

    files = next(run.glob("wandb/offline-run-*")) / "files"
    shown = json.loads(next(files.glob("media/table/val/*.json")).read_text())
    assert shown["columns"] == ["step", "source", "reference", "translation"]
    assert len(shown["data"]) == 8
    assert next(files.glob("media/images/val/*.png")).stat().st_size > 1000
    artifacts = [r.request.log_artifact.artifact for r in found if r.HasField("request")]
    artifacts += [record.artifact for record in found if record.HasField("artifact")]
    (bundle,) = [a for a in artifacts if a.type == "model"]
    assert bundle.name == "toy-1"
    names = {entry.path for entry in bundle.manifest.contents}
    assert names >= {"config.json", "tokenizer.json", "model.safetensors", "README.md"}
    assert f"wandb sync {run}/wandb/offline-run-" in said


def test_wandb_key_and_run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    assert not has_wandb_key()
    monkeypatch.setenv("NETRC", "~no such user/netrc")  # of a user who has no home, or is none
    assert not has_wandb_key()
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert has_wandb_key()
    logger = wandb_logger(tmp_path / "run", "toys/one", "abc123")
    assert logger is not None
    assert logger.version == "abc123"


@pytest.mark.parametrize(("key", "mode"), [("0" * 40, None), (None, "offline")])
def test_wandb_is_online_where_there_is_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, mode: str | None
) -> None:
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    logger: Any = wandb_logger(tmp_path, "name", None)
    assert logger._wandb_init.get("mode") == mode


def test_a_server_that_does_not_answer_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from wandb.errors import CommError

    def experiment(self: WandbLogger) -> str:
        if self._wandb_init.get("mode") != "offline":
            raise CommError("connection\nrefused")
        return "a run"

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setattr(WandbLogger, "experiment", property(experiment))
    logger = wandb_logger(tmp_path, "toy", None)
    assert [logger.experiment, logger.experiment] == ["a run", "a run"]
    (said,) = caplog.messages
    assert said.endswith("W&B records offline, for its server does not answer: connection refused")


def test_a_process_of_wandb_that_died_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[Any] = []

    def lost(self: WandbLogger, *args: Any) -> None:
        tried.append(args)
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(WandbLogger, "log_metrics", lost)
    logger = wandb_logger(tmp_path, "toy", None)
    logger.log_metrics({"train/loss": 1.0}, step=3)
    logger.log_text("val/translations", ["source"], [["eins"]], step=3)
    assert tried == [({"train/loss": 1.0}, 3)]
    (said,) = caplog.messages
    assert said == "warning: W&B records no more: ConnectionResetError: Connection lost"


def test_a_process_of_wandb_that_died_leaves_no_traceback_at_the_exit(tmp_path: Path) -> None:
    code = """
import pathlib, psutil, sys, time
from transformer.training.tracking import wandb_logger
logger = wandb_logger(pathlib.Path(sys.argv[1]), "toy", None)
logger.log_metrics({"loss": 3.0}, step=1)
[child.kill() for child in psutil.Process().children()]
while not logger.lost:
    logger.log_metrics({"loss": 2.0}, step=2)
    time.sleep(0.05)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    ended = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.startswith("warning: W&B records no more: ")
    assert ended.stderr.count("\n") == 1


def test_a_logger_of_lightning_that_a_recipe_names_is_tracked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = MagicMock()
    monkeypatch.setattr(WandbLogger, "experiment", property(lambda self: run))
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    log_bundle(MagicMock(logger=logger, is_global_zero=True), tmp_path, "toy", {"bleu": 1.0})
    run.summary.update.assert_called_once_with({"final/bleu": 1.0})
    run.finish.assert_called_once_with()
