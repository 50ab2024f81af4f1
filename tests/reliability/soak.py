"""`python -m tests.reliability.soak --minutes 60`: does a long run grow or become slower?

`transformer fit` trains on two cores with validations, checkpoints and W&B offline until it gets
SIGTERM. A callback in it samples what must stay as it is. Memory is anonymous memory: pages of
mapped files can be had back at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from lightning.pytorch import Callback, Trainer

from transformer.commands.fit import prepared
from transformer.training.train import train

from .table import processor

ROOT = Path(__file__).resolve().parents[2]
STOPPED = 128 + signal.SIGTERM
EVERY = 5.0  # seconds between two samples
MARKS = (1 / 12, 1 / 4, 1 / 2, 3 / 4, 1)  # of the time, where the table looks
#: What is sampled: its heading, its unit, and by how much of its mean it may grow in an hour.
COLUMNS = {
    "memory": ("anonymous memory", "MiB", 0.02),
    "children_memory": ("that of children", "MiB", None),  # W&B's, of which see tracker.py
    "handles": ("file handles", "", 0.0),
    "threads": ("threads", "", 0.0),
    "children": ("children", "", 0.0),
    "cpu": ("CPU time of 1,000 tokens", "ms", 0.03),
    "wall": ("wall time of 1,000 tokens", "ms", None),  # other programs may be running
}


class Sampler(Callback):
    """Appends a line of JSON to `path` every few seconds, of the training steps between."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.process = psutil.Process()
        self.began = time.monotonic()
        self.spent = {"wall": 0.0, "cpu": 0.0, "tokens": 0.0}
        self._last = self.began
        self._clock = (0.0, 0.0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self._clock = time.monotonic(), time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self.spent["wall"] += now - self._clock[0]
        self.spent["cpu"] += time.process_time() - self._clock[1]
        self.spent["tokens"] += batch.src_tokens + batch.tgt_tokens
        if now - self._last >= EVERY:
            self._write(trainer.global_step)
            self.spent, self._last = dict.fromkeys(self.spent, 0.0), now

    def _write(self, step: int) -> None:
        children = self.process.children(recursive=True)
        sample = {
            "minute": (time.monotonic() - self.began) / 60,
            "step": step,
            "memory": anonymous(self.process.pid),
            "children_memory": sum(anonymous(child.pid) for child in children),
            "handles": self.process.num_fds(),
            "threads": self.process.num_threads(),
            "children": len(children),
            "cpu": 1e6 * self.spent["cpu"] / self.spent["tokens"],
            "wall": 1e6 * self.spent["wall"] / self.spent["tokens"],
        }
        with Path(self.path).open("a") as file:
            file.write(json.dumps(sample) + "\n")


def anonymous(pid: int) -> float:
    """MiB of memory that no file is behind; 0 of a process that is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(found[0].split()[1]) / 1024 if found else 0.0


def fit(samples: str, args: list[str]) -> int:
    """`transformer fit` with a sampler."""
    with prepared(args) as run:
        callbacks: Any = run.trainer.callbacks  # type: ignore[attr-defined]
        callbacks.append(Sampler(samples))
        return train(run)


def main() -> int:
    """Returns 1 where something has grown, or the run did not end as it should."""
    if sys.argv[1:2] == ["--fit"]:
        return fit(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--recipe", default="recipes/quickstart/ko_en.yaml")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--read", type=Path, help="samples of a run that was made before")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        samples, code = options.read or Path(folder) / "samples.jsonl", STOPPED
        if not options.read:
            code = _run(options, Path(folder), samples)
        found = [json.loads(line) for line in samples.open()]
    text, grown = table(found)
    print(f"{found[-1]['step']:,} steps in {found[-1]['minute']:.0f} minutes, {options.recipe}")
    print(f"torch {torch.__version__}, {options.threads} threads, {processor()}.\n\n{text}\n")
    print(f"grown: {', '.join(grown) or 'nothing'}; the run ended with {code} after SIGTERM")
    return int(bool(grown) or code != STOPPED)


def _run(options: argparse.Namespace, folder: Path, samples: Path) -> int:
    """Trains for so many minutes; the exit code."""
    settings: dict[str, Any] = {
        "--config": ROOT / options.recipe, "--run_dir": folder / "run", "--logger": "wandb",
        "--data.cache": folder / "cache", "--save_every": 200, "--keep_best": 2, "--average": 3,
        "--trainer.max_epochs": 100_000, "--trainer.log_every_n_steps": 20,
        "--trainer.accelerator": "cpu", "--trainer.enable_progress_bar": "false",
    }  # fmt: skip
    command = [sys.executable, "-m", __spec__.name, "--fit", str(samples)]
    command += [str(part) for setting in settings.items() for part in setting]
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(options.threads),
        "WANDB_MODE": "offline",
    }  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        while not samples.exists() and process.poll() is None:
            time.sleep(1)
        try:
            code = process.wait(60 * options.minutes)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            code = process.wait(300)
    if code != STOPPED:
        print((folder / "log").read_text()[-3000:], file=sys.stderr)
    return code


def table(samples: list[dict[str, float]]) -> tuple[str, list[str]]:
    """The means around the marks and the slope after the first twelfth; what grew too much.

    The first minutes fill caches of kernels and of memory.
    """
    minutes = np.array([sample["minute"] for sample in samples])
    end = minutes[-1]
    marks = [mark * end for mark in MARKS]
    heads = [f"minute {mark:.0f}" for mark in marks]
    lines = [f"| | {' | '.join(heads)} | slope per hour |", "|---|" + "---:|" * (len(heads) + 1)]
    grown = []
    settled = minutes >= marks[0]
    for name, (what, unit, limit) in COLUMNS.items():
        values = np.array([sample[name] for sample in samples])
        # The mean of a twenty-fourth of the run before each mark: batches differ.
        near = [values[(minutes <= m) & (minutes >= m - end / 24)] for m in marks]
        shown = [f"{part.mean():,.1f}" if len(part) else "" for part in near]
        slope = 60 * np.polyfit(minutes[settled], values[settled], 1)[0]
        share = slope / max(values[settled].mean(), 1e-9)
        if limit is not None and share > limit + 1e-6 and near[-1].mean() > near[0].mean():
            grown.append(what)
        label = f"{what}, {unit}" if unit else what
        lines.append(f"| {label} | {' | '.join(shown)} | {slope:+,.2f} ({share:+.1%}) |")
    return "\n".join(lines), grown


if __name__ == "__main__":
    sys.exit(main())
