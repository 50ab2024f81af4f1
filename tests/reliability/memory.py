"""`python -m tests.reliability.memory`: a corpus of WMT14's size, with little memory.

Generates text of its size and shape, and runs `transformer fit` on it in whole processes: learns
the vocabulary, tokenises, trains, is stopped by SIGTERM, resumes up to 200 steps, and streams in
one and in two processes. What counts is anonymous memory, which is sampled: pages of a mapped file
are resident, too, but can be had back at any time.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from transformer.__main__ import main as transformer
from transformer.writing import write

from .table import processor

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- memory -->", "<!-- end of memory -->"
TYPES, SKEW = 2_000_000, 1.2  # words of a language, and the exponent of Zipf's law
STEP = "optimizer step"
RECIPE = """
model:
  network: {{num_layers: 1, d_model: 32, num_heads: 2, d_ff: 64}}
  search: {{beam: 1, max_extra: 5}}
data: {{train: {0}/train, src: de, tgt: en, cache: {0}/cache, max_tokens: 1024,
        tokenizer: {{vocab_size: 37000}}}}
trainer: {{accelerator: cpu, max_steps: 200}}
"""


def words(seed: int) -> list[str]:
    """All words of a language, the most frequent first: of one syllable, of two, of more."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfghklmnprstvwz" for b in "aeiou"]
    syllables = [str(part) for part in rng.permutation(syllables)]
    pairs = [a + b for a in syllables for b in syllables]
    more = (a + b for b in pairs for a in pairs)
    return syllables + pairs + list(islice(more, TYPES - len(syllables) - len(pairs)))


def write_side(path: Path, pairs: int, seed: int) -> None:
    """Lines of 20 words on average, some 25 tokens."""
    all_words, rng = words(seed), np.random.default_rng(seed)
    lengths_rng = np.random.default_rng(0)
    with path.open("w") as file:
        for done in range(0, pairs, 20_000):
            size = min(20_000, pairs - done)
            lengths = np.clip(lengths_rng.lognormal(2.85, 0.6, size), 1, 100).astype(int)
            most = 1 - TYPES ** (1 - SKEW)
            ranks = (1 - rng.random(lengths.sum()) * most) ** (1 / (1 - SKEW))
            text = map(all_words.__getitem__, np.minimum(ranks.astype(int), TYPES - 1).tolist())
            file.writelines(" ".join(islice(text, n)) + ".\n" for n in lengths.tolist())


@dataclass
class Watched:
    """A run of `transformer fit` in a process: what it says and what it uses, and when."""

    options: Sequence[str]
    lines: list[tuple[float, str]] = field(default_factory=list)
    samples: list[tuple[float, float, float]] = field(default_factory=list)  # time, MB, CPU seconds

    def __post_init__(self) -> None:
        command = [sys.executable, "-m", "tests.reliability.memory", "--fit", *self.options]
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        # Kept for a narrow model, which this one is, all kernels would hide what the corpus takes.
        own["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "16"
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **own},
        )  # fmt: skip
        Thread(target=self._listen, daemon=True).start()
        Thread(target=self._sample, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append((time.monotonic() - self.began, line))
            print(f"    {self.lines[-1][0]:7.1f} s  {line}", end="", file=sys.stderr, flush=True)

    def _sample(self) -> None:
        top, busy = psutil.Process(self.process.pid), dict[int, float]()
        while self.process.poll() is None:
            largest = 0.0
            for one in processes(top):
                try:
                    status = Path(f"/proc/{one.pid}/status").read_text()
                    largest = max(largest, int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 1024)
                    times = one.cpu_times()
                except (OSError, IndexError, psutil.Error):  # gone since
                    continue
                busy[one.pid] = times.user + times.system
            self.samples.append((time.monotonic() - self.began, largest, sum(busy.values())))
            time.sleep(0.1)

    def wait_for(self, text: str, count: int = 1) -> float:
        """The time of a line with this text, in seconds from the start."""
        while True:
            ended = self.process.poll() is not None
            times = [at for at, line in self.lines if text in line]
            if len(times) >= count:
                return times[count - 1]
            if ended:
                raise RuntimeError(f"ended without {text!r}")
            time.sleep(0.05)

    def end(self, code: int = 0) -> float:
        """Waits for the end; returns its time."""
        if self.process.wait() != code:
            raise RuntimeError(f"ended with {self.process.returncode} instead of {code}")
        return time.monotonic() - self.began


def processes(top: psutil.Process) -> list[psutil.Process]:
    """A process and those that it started."""
    try:
        return [top, *top.children(recursive=True)]
    except psutil.Error:
        return []


class Phase(NamedTuple):
    """What was measured in a part of a run."""

    pairs: int
    name: str
    seconds: float
    peak: float  # MB
    cores: float
    first_step: float | None = None  # seconds from the start of the process


def phase(
    run: Watched, pairs: int, name: str, begin: float, end: float, first: float | None = None
) -> Phase:
    """Sums up a part of a run."""
    some = [sample for sample in run.samples if begin - 0.1 <= sample[0] <= end + 0.1]
    busy = (some[-1][2] - some[0][2]) / max(some[-1][0] - some[0][0], 0.1)
    return Phase(pairs, name, end - begin, max(mb for _, mb, _ in some), busy, first)


def phases(folder: Path, pairs: int) -> Iterator[Phase]:
    """All that is done with a corpus of so many pairs."""
    for seed, side in enumerate(("de", "en")):
        write_side(folder / f"train.{side}", pairs, seed)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder))
    common = ["--config", str(recipe), "--logger", "none", "--run_dir"]

    run = Watched([*common, f"{folder}/run"])
    learning, tokenising = map(run.wait_for, ("Training a tokenizer", "Tokenising"))
    yield phase(run, pairs, "learn the vocabulary", learning, tokenising)
    first = run.wait_for(STEP)
    yield phase(run, pairs, "tokenise", tokenising, first)
    run.wait_for(STEP, 40)
    run.process.send_signal(signal.SIGTERM)
    yield phase(run, pairs, "train, SIGTERM at step 40", first, run.end(143), first)

    checkpoint = f"{folder}/run/checkpoints/interrupted.ckpt"
    run = Watched(["--config", f"{folder}/run/config.yaml", "--ckpt_path", checkpoint])
    yield phase(run, pairs, "resume to step 200", 0, run.end(), run.wait_for(STEP))

    stream = ["--data.streaming", "true", "--trainer.max_steps", "50"]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    for name, more in (("stream 50 steps", []), ("stream 50 steps in 2 processes", two)):
        run = Watched([*common, f"{folder}/stream{len(more)}", *stream, *more])
        yield phase(run, pairs, name, 0, run.end(), run.wait_for(STEP))


def table(found: Sequence[Phase]) -> str:
    """The phases of all corpora, with what memory grows by between the smallest and the largest."""
    lines = [
        "| pairs | phase | seconds | pairs/s | cores | peak MB | bytes a pair | first step, s |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    smallest = {one.name: one for one in found if one.pairs == min(p.pairs for p in found)}
    for one in found:
        growth = f"{grown(one, smallest[one.name]):.0f}" if one is not smallest[one.name] else ""
        rate = f"{one.pairs / one.seconds:,.0f}" if one.first_step is None else ""
        first = f"{one.first_step:.1f}" if one.first_step else ""
        lines.append(
            f"| {one.pairs:,} | {one.name} | {one.seconds:.0f} | {rate} | {one.cores:.1f} | "
            f"{one.peak:,.0f} | {growth} | {first} |"
        )
    return "\n".join(lines)


def grown(one: Phase, base: Phase) -> float:
    """Bytes a pair by which the peak of a phase grows between two corpora."""
    return (one.peak - base.peak) * 2**20 / max(one.pairs - base.pairs, 1)


def too_much(found: Sequence[Phase]) -> Iterator[str]:
    """What breaks a promise: bytes a pair, a peak, a warm start."""
    smallest = {one.name: one for one in found if one.pairs == min(p.pairs for p in found)}
    for one in found:
        where = f"{one.pairs:,} pairs, {one.name}"
        if grown(one, smallest[one.name]) > 64:
            yield f"{where}: more than 64 bytes a pair"
        if one.peak > 3000:
            yield f"{where}: more than 3 GB"
        if one.name.startswith("resume") and (one.first_step or 99) > 10:
            yield f"{where}: the first step takes more than 10 seconds"


def fit(options: list[str]) -> int:
    """`transformer fit`, which says when the optimizer takes each step."""
    register_optimizer_step_post_hook(lambda *_: print(STEP, flush=True))
    return transformer(["fit", *options])


def main() -> int:
    """Prints the table; returns 1 where a promise is broken."""
    if sys.argv[1:2] == ["--fit"]:
        return fit(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", default="500000,4500000", help="sizes of corpora")
    parser.add_argument("--folder", help="where there is room for 5 GB")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    found: list[Phase] = []
    for pairs in map(int, options.pairs.split(",")):
        folder = Path(tempfile.mkdtemp(prefix="reliability-memory-", dir=options.folder))
        try:
            for one in phases(folder, pairs):
                found.append(one)
                print(one, flush=True)
        finally:
            shutil.rmtree(folder)
    text = f"torch {torch.__version__}, {processor()}.\n\n{table(found)}"
    print(f"\n{text}")
    if options.write:
        page = Path(__file__).with_name("README.md")
        head, _, rest = page.read_text().partition(BEGIN)
        write(page, f"{head}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    broken = list(too_much(found))
    print(*broken, sep="\n")
    return int(bool(broken))


if __name__ == "__main__":  # processes may be spawned
    sys.exit(main())
