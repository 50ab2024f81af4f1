"""How long the command takes from nothing to its answer."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .arena import environment, spread

LEAST = """\
import sys, torch
from safetensors.torch import load_file
load_file(sys.argv[1])
"""


def startup(bundle: Path, sentence: str, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds of `transformer --help`, of one cold translation, and of the least it could take.

    Args:
        bundle: what translates.
        sentence: what is translated.
        threads: of each process.
        rounds: how often each is started, in turns.
    """
    transformer = [sys.executable, "-m", "transformer"]
    commands = {
        "help": [*transformer, "--help"],
        "translate": [*transformer, "translate", str(bundle), sentence],
        "least": [sys.executable, "-c", LEAST, str(bundle / "model.safetensors")],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            seconds[name].append(_seconds(command, threads))
        last = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(f"  round {number} of {rounds}: {last}", flush=True)
    # In the first round the files were read from the disk.
    kept = {name: values[1:] for name, values in seconds.items()}
    ratios = [a / b for a, b in zip(kept["translate"], kept["least"], strict=True)]
    return {**{name: spread(values) for name, values in kept.items()}, "ratio": spread(ratios)}


def _seconds(command: list[str], threads: int) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=environment(threads), capture_output=True, check=True)
    return time.perf_counter() - start
