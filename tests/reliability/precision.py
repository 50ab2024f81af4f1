"""`python -m tests.reliability.precision`: bf16-mixed against float32, Multi30k-tiny, 2,000 steps.

The seeds in float32 show how far runs lie apart by chance; those in bfloat16 should lie between
them. A run that is finished is remembered in `--folder` and not repeated.
"""

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from transformer.kernels import trains_in_bfloat16
from transformer.writing import write

from .table import processor

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "recipes/multi30k/tiny_de_en.yaml"
PRECISIONS = ("32-true", "bf16-mixed")
#: What is compared: its column in metrics.csv, and the digits that are shown.
NUMBERS = {
    "train loss, last 200": ("train/loss", 4),
    "validation loss": ("val/loss", 4),
    "validation BLEU": ("val/bleu", 2),
}


def main() -> int:
    """Returns 1 where the mean of bfloat16 lies outside the spread of float32."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/multi30k")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/precision")
    parser.add_argument("--seeds", type=int, default=3, help="runs in each precision")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--max_tokens", type=int, default=4096, help="of a batch; the recipe's")
    options = parser.parse_args()
    if not trains_in_bfloat16("cpu"):
        print("skipped: this CPU is not fast at bfloat16")
        return 0
    if not (options.data / "train.de.gz").exists():
        print(f"skipped: {options.data} has no train.de.gz: give --data")
        return 0
    found: list[dict[str, Any]] = []
    for seed, precision in itertools.product(range(1, options.seeds + 1), PRECISIONS):
        found.append(_run(options, precision, seed))
        print(json.dumps(found[-1]), flush=True)
    text, within = table(found)
    print(f"\ntorch {torch.__version__}, {processor()}.\n\n{text}")
    return 0 if within else 1


def _run(options: argparse.Namespace, precision: str, seed: int) -> dict[str, Any]:
    """One run by the real command, from which its last numbers are read."""
    folder = options.folder / f"{precision}-{seed}-{options.steps}-{options.max_tokens}"
    result = folder.with_suffix(".json")
    if result.exists():
        return json.loads(result.read_text())
    corpora = {
        f"--data.{split}": options.data / name
        for split, name in {"train": "train", "val": "val"}.items()
    }
    settings: dict[str, Any] = {
        **corpora, "--data.test": "null", "--run_dir": folder, "--existing": "number",
        "--logger": "csv", "--data.cache": options.folder / "cache",
        "--seed_everything": seed, "--average": 0,
        "--data.max_tokens": options.max_tokens, "--trainer.precision": precision,
        "--trainer.accelerator": "cpu", "--trainer.max_steps": options.steps,
        "--trainer.max_epochs": "null", "--trainer.check_val_every_n_epoch": "null",
        "--trainer.val_check_interval": options.steps,
        "--trainer.log_every_n_steps": min(200, options.steps),
    }  # fmt: skip
    command = [sys.executable, "-m", "transformer", "fit", "--config", str(ROOT / RECIPE)]
    command += [str(part) for setting in settings.items() for part in setting]
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    numbers: dict[str, Any] = {"precision": precision, "seed": seed}
    numbers["seconds"] = round(time.monotonic() - began)
    newest = max(options.folder.glob(f"{folder.name}*/metrics.csv"), key=os.path.getmtime)
    with newest.open(newline="") as file:
        for row in csv.DictReader(file):
            numbers |= {name: float(row[name]) for name, _ in NUMBERS.values() if row.get(name)}
    write(result, json.dumps(numbers) + "\n")
    return numbers


def table(runs: list[dict[str, Any]]) -> tuple[str, bool]:
    """The runs as a table in Markdown, and whether bfloat16's mean lies in float32's spread."""
    lines = [
        "| | float32: min, mean, max | bf16-mixed: min, mean, max | the mean within |",
        "|---|---|---|---|",
    ]
    all_within = True
    for what, (column, digits) in NUMBERS.items():
        full = [run[column] for run in runs if run["precision"] == "32-true"]
        half = [run[column] for run in runs if run["precision"] != "32-true"]
        within = min(full) <= statistics.mean(half) <= max(full)
        all_within &= within
        shown = [
            ", ".join(f"{f(side):.{digits}f}" for f in (min, statistics.mean, max))
            for side in (full, half)
        ]
        lines.append(f"| {what} | {shown[0]} | {shown[1]} | {'yes' if within else 'no'} |")
    return "\n".join(lines), all_within


if __name__ == "__main__":
    sys.exit(main())
