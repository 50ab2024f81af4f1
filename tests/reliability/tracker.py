"""`python -m tests.reliability.tracker`: does W&B's own process grow with what a run logs?

The logger of `transformer fit` records numbers, and tables of translations, as many as a run of
days does, offline and one right behind the other.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import torch

from transformer.training.tracking import SAMPLES, wandb_logger

from .soak import anonymous
from .table import processor

MARKS = 10
NUMBERS = dict.fromkeys(["train/loss", "train/grad_norm", "train/lr", "train/tokens"], 1.0)
ROW = ["Ein Mann schläft auf einer Bank.", "A man sleeps on a bench.", "A man is sleeping there."]


def main() -> int:
    """Returns 1 where a process needs 5% more in the second half than in the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--numbers", type=int, default=100_000, help="calls that log numbers")
    parser.add_argument("--tables", type=int, default=5_000, help="calls that log a table")
    options = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    with tempfile.TemporaryDirectory(prefix="tracker-") as folder:
        logger = wandb_logger(Path(folder), "tracker", None)
        logger.log_metrics(NUMBERS, 0)
        step, grown = 1, []
        print(f"torch {torch.__version__}, {processor()}. Anonymous memory in MiB.\n")
        print(f"| logged | {' | '.join(f'{10 * mark}%' for mark in range(1, MARKS + 1))} |")
        print("|---|" + "---:|" * MARKS)
        for what, count in {"numbers": options.numbers, "tables": options.tables}.items():
            found = []
            for _ in range(MARKS):
                for _ in range(count // MARKS):
                    _log(logger, what, step)
                    step += 1
                found.append(_memory())
            for name, values in zip(
                ("this process", "W&B's"), zip(*found, strict=True), strict=True
            ):
                shown = " | ".join(f"{value:.1f}" for value in values)
                print(f"| {count:,} {what}: {name} | {shown} |", flush=True)
                first, second = mean(values[: MARKS // 2]), mean(values[MARKS // 2 :])
                grown += [f"{name} ({what})"] * (second > 1.05 * first)
        logger.experiment.finish()
    print(f"\ngrown: {', '.join(grown) or 'nothing'}")
    return int(bool(grown))


def _log(logger: Any, what: str, step: int) -> None:
    if what == "numbers":
        logger.log_metrics(NUMBERS, step)
    else:
        columns = ["step", "source", "reference", "translation"]
        logger.log_text("val/translations", columns, [[step, *ROW]] * SAMPLES, step=step)


def _memory() -> tuple[float, float]:
    process = psutil.Process()
    children = process.children(recursive=True)
    return anonymous(process.pid), sum(anonymous(child.pid) for child in children)


if __name__ == "__main__":
    sys.exit(main())
