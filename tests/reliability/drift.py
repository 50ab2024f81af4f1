"""Drift: the same recipe gives the same bits; steps that go wrong are found, named, left out."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bad_batches import KINDS, Break, Undo, state
from safetensors.torch import load_file
from toys import FixedData, module, recipe, start, trainer, write_corpus

from transformer.kernels import trains_in_bfloat16
from transformer.training import bad_steps

from .forks import free_port
from .table import Row

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 600  # seconds until a process is said to hang
SIGMAS = 200.0  # what lies so far beyond four toy steps is no chance
#: Large enough for torch to spread its sums over two threads.
LARGE = (
    "--model.network.d_model=64", "--data.max_tokens=2000", "--trainer.max_steps=12",
    "--model.label_smoothing=0.1",
)  # fmt: skip
#: What is run twice: the options of both, and those of the second alone.
TWICE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": ((), ()),
    "bf16-mixed": (("--trainer.precision=bf16-mixed",), ()),
    "RNN": (("--architecture=rnn",), ()),
    "accumulation": (("--trainer.accumulate_grad_batches=3",), ()),
    "stream": (("--data.streaming=true",), ()),
    "W&B offline or none": ((), ("--logger=wandb",)),
}


def rows(folder: Path, seed: int, share: float) -> Iterator[Row]:
    """The rows of the table."""
    rng = random.Random(seed)
    for what in TWICE:
        if what == "bf16-mixed" and not trains_in_bfloat16("cpu"):
            print("drift: bf16-mixed is skipped: this CPU is not fast at it", file=sys.stderr)
            continue
        tried = 2 * max(1, round(share))
        lost = sum(
            _differs(folder / f"{what}-{i}".replace(" ", "-"), what, 1 + i % 2, rng.getrandbits(31))
            for i in range(tried)
        )
        yield Row(f"twice: {what}", tried, lost, "weights and losses, bit by bit; 1 and 2 threads")
    for processes, count in ((1, round(100 * share)), (2, round(40 * share))):
        tried = max(4, count)
        lost = _injected(folder / f"bad-{processes}", rng.getrandbits(31), tried, processes)
        how = "step, pairs, weights, moments"
        yield Row(f"NaN, inf, spikes in {processes} process(es)", tried, lost, how)


def _differs(folder: Path, what: str, threads: int, seed: int) -> bool:
    """Trains twice in fresh processes at the same time; whether the results differ."""
    both, second = TWICE[what]
    runs, started = [folder / name for name in ("one", "two")], []
    for run, more in zip(runs, ((), second), strict=True):
        given = recipe(run / "recipe")
        write_corpus(run / "recipe/corpus", {"train": 1500, "val": 12, "test": 10})
        shape = () if what != "RNN" else ("--model.network={d_model: 64, num_layers: 1}",)
        # The toy's own shape is that of a Transformer.
        if what == "RNN":
            given.write_text(given.read_text().replace("network: " + _shape(given), "network: {}"))
        options = [*LARGE, f"--seed_everything={seed}", "--logger=csv", *both, *shape, *more]
        command = ("--config", given, "--run_dir", run / "run", *options)
        started.append(start(*command, OMP_NUM_THREADS=str(threads), WANDB_MODE="offline"))
    errors = [_wait(process) for process in started]
    found = [_result(run / "run", numbers=not second) for run in runs]
    if any(errors) or found[0] != found[1]:
        print(f"drift: {what}, {threads} threads, seed {seed} differs {errors}", file=sys.stderr)
        return True
    return False


def _shape(given: Path) -> str:
    text = given.read_text().partition("network: ")[2]
    return text[: text.index("}") + 1]


def _wait(process: subprocess.Popen[str]) -> str:
    """The end of what a process that failed has said."""
    try:
        _, said = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        return "hangs"
    return said[-2000:] if process.returncode else ""


def _result(run: Path, numbers: bool) -> list[Any]:
    """The digest of the weights, and every loss and score that was logged."""
    weights = run / "bundle/model.safetensors"
    if not weights.exists():
        return [run]
    # Not of the file: the order of the names in its head is not always the same.
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(weights).items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    found: list[Any] = [digest.hexdigest()]
    if numbers:
        with (run / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                chosen = ("loss", "nll", "gradient_norm", "bleu", "chrf")
                found.append([v for k, v in row.items() if k.rpartition("/")[2] in chosen])
    return found


def _injected(folder: Path, seed: int, count: int, processes: int) -> int:
    """Tries so many cases in processes of their own; how many went wrong."""
    folder.mkdir()
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "MASTER_PORT": str(free_port()),
        "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(processes), "NODE_RANK": "0",
    }  # fmt: skip
    arguments = [str(number) for number in (folder, seed, count, processes)]
    command = [sys.executable, "-m", __name__, *arguments]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env={**environment, "LOCAL_RANK": str(rank)}, text=True,
            stdout=pipe, stderr=pipe,
        )
        for rank in range(processes)
    ]  # fmt: skip
    lost = 0
    for process in started:
        error = _wait(process)
        if error:
            print(f"drift: seed {seed}, {processes} processes: {error}", file=sys.stderr)
            lost = count
    for file in folder.glob("problems-*"):
        print(file.read_text(), end="", file=sys.stderr)
        lost = max(lost, len(file.read_text().splitlines()))
    return lost


def _case(seed: int, processes: int) -> str:
    """Breaks one random step; what was wrong with the answer, nothing if it was right."""
    rng, folder = random.Random(seed), Path(tempfile.mkdtemp())
    kind, skips = rng.choice(KINDS), rng.random() < 0.5
    accumulate, rank, step = rng.randint(1, 3), rng.randrange(processes), rng.randint(6, 11)
    micro_batch = (step - 1) * accumulate + rng.randrange(accumulate)
    groups = [rng.randint(1, 4) for _ in range(6 * accumulate * processes)]
    data = FixedData(groups, [])
    options: dict[str, Any] = {
        "devices": processes, "strategy": "ddp" if processes > 1 else "auto",
        "accumulate_grad_batches": accumulate, "max_epochs": 2,
    }  # fmt: skip
    model = module(on_bad_step="skip" if skips else "stop", spike_sigmas=SIGMAS)
    run, stopped = trainer(folder, Break(kind, micro_batch, rank), **options), None
    try:
        run.fit(model, datamodule=data)
    except bad_steps.BadStep as error:
        stopped = error.step
    good = module()
    # As if the step had not been made; or the run that ends before it.
    reference = trainer(folder, Undo(step) if skips else Undo(0), **options)
    reference.fit_loop.epoch_loop.max_steps = -1 if skips else step - 1
    reference.fit(good, datamodule=data)
    problems = []
    if stopped != (None if skips else step) or model.guard.skipped != skips:
        problems.append(f"stopped at {stopped}, skipped {model.guard.skipped}")
    if not all(map(torch.equal, state(run, model), state(reference, good))):
        problems.append("other weights or moments")
    broken = data.batches(0, groups)[rank::processes][micro_batch % (6 * accumulate)].indices
    expected = {f"line {index + 1}" for index in broken.tolist()}
    if run.is_global_zero:
        named = {json.loads(line)["where"] for line in (folder / bad_steps.FILE).open()}
        if not (named == expected if kind in ("nan", "inf") else named >= expected):
            problems.append(f"named {sorted(named)}, not {sorted(expected)}")
    case = f"{kind} at step {step}, rank {rank} of {processes}, accumulate {accumulate}, {skips=}"
    return f"drift: {case}, seed {seed}: {'; '.join(problems)}\n" if problems else ""


def main() -> None:
    """One process that tries cases, together with the others; writes its problems into a file."""
    folder, seed, count, processes = Path(sys.argv[1]), *map(int, sys.argv[2:])
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "transformer"):
        logging.getLogger(name).setLevel(logging.ERROR)
    bad_steps.WINDOW = 4
    rng = random.Random(seed)
    problems = [_case(rng.getrandbits(31), processes) for _ in range(count)]
    (folder / f"problems-{os.environ['LOCAL_RANK']}").write_text("".join(problems))


if __name__ == "__main__":
    main()
