"""Several processes on one machine make the optimizer steps and the scores of a single one."""

import contextlib
import csv
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
from safetensors.torch import load_file
from toys import ROOT, WORDS, gathers, write_lines

from transformer.data.batching import Batch
from transformer.data.datamodule import DataModule
from transformer.data.tokenizer import TokenizerConfig

from .forks import TIMEOUT, Ended, fit
from .table import Row

STEPS, SIGNALLED = 200, 40
STOPS_IN = 30  # seconds
TOLERANCE = 1e-5  # relative
# In float64: Adam turns the last bits of a gradient near 0 into whole steps, so that two exact runs
# in float32, whose sums have other orders, part by 3e-5 within 200 of them.
RECIPE = """
model: {network: {d_model: 32, d_ff: 64, num_heads: 2, num_layers: 1, dropout: 0.0},
        schedule: inverse_sqrt, learning_rate: 0.0005, warmup_steps: 100,
        search: {beam: 2, max_extra: 5}}
data: {train: train, val: val, test: test, src: de, tgt: en, cache: cache,
       tokenizer: {vocab_size: 300}, max_length: 60, max_tokens: 250, eval_max_tokens: 400}
trainer: {accelerator: cpu, precision: 64-true, log_every_n_steps: 1, max_epochs: -1}
logger: csv
"""


def rows(folder: Path, seed: int, share: float) -> Iterator[Row]:
    """Each row has corpora of its own."""
    rng = random.Random(seed)
    yield _epochs(folder / "epochs", rng, round(400 * share))
    for world in (2, 4):
        yield _losses(folder / f"losses-{world}", rng, world, round(3 * share) or 1)
    yield _scores(folder / "scores", rng, round(4 * share) or 1)
    yield _others(folder / "others", rng)
    yield _signals(folder / "signals", rng, round(6 * share) or 1)


def write_run(folder: Path, rng: random.Random, **sizes: int) -> Path:
    """A recipe and its corpora of so many pairs; returns the folder."""
    folder.mkdir(parents=True)
    for split, size in sizes.items():
        lines = [rng.choices(list(WORDS), k=rng.choice((1, 2, 3, 5, 8, 13))) for _ in range(size)]
        write_lines(folder / f"{split}.de", map(" ".join, lines))
        write_lines(folder / f"{split}.en", (" ".join(WORDS[w] for w in line) for line in lines))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def _run(folder: Path, name: str, world: int, *args: str, whole: int = 1, window: int = 1) -> Ended:
    """Trains; `whole` lets one process make the optimizer steps of so many, of `window` batches."""
    given = ["--config=recipe.yaml", f"--run_dir={name}", *args]
    if whole * window > 1:
        given.append(f"--trainer.accumulate_grad_batches={whole * window}")
    ended = fit(given, folder, world, lambda: _deliver_all(whole))
    if not ended.well:
        print(f"{folder / name}: {ended.codes}\n{ended.output}", file=sys.stderr)
    return ended


def _deliver_all(world: int) -> None:
    """Lets one process get the batches that so many would have got, step by step."""
    if world == 1:
        return
    loader = DataModule.train_dataloader

    def train_dataloader(data: Any) -> Any:
        position, loaders, gather = data._position, [], gathers(world)
        for rank in range(world):
            data._processes, data._position = (lambda rank=rank: (rank, world)), position
            data._gather = gather[rank]
            loaders.append(loader(data))
        del data._processes
        return _Together(loaders)

    DataModule.train_dataloader = train_dataloader  # type: ignore[assignment,method-assign]


class _Together:
    """The loaders of all processes, each in a thread, for those of streams hear of each other."""

    def __init__(self, loaders: list[Any]) -> None:
        self.loaders = loaders
        self._begin = [loader._given for loader in loaders]

    def shares(self) -> list[list[Batch]]:
        """The batches of each process in an epoch."""
        with ThreadPoolExecutor(len(self.loaders)) as threads:
            return list(threads.map(list, self.loaders))

    def __iter__(self) -> Iterator[Batch]:
        # Lightning may begin an epoch twice, and take nothing the first time.
        for loader, given in zip(self.loaders, self._begin, strict=True):
            loader._given = given.copy()
        for group in zip(*self.shares(), strict=True):
            yield from group
        self._begin = [deque([loader._given[-1]], 8) for loader in self.loaders]

    def state_dict(self) -> dict[str, Any]:
        return dict(self.loaders[0].state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for loader in self.loaders:
            loader.load_state_dict(state)
        self._begin = [loader._given for loader in self.loaders]


def _losses_of(run: Path) -> list[float]:
    """The loss of each optimizer step."""
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def _differ(one: Path, other: Path) -> bool:
    """Whether the losses of two runs differ in any of their steps."""
    losses = _losses_of(one), _losses_of(other)
    if len(losses[0]) != len(losses[1]):
        print(f"{one}: {len(losses[0])} and {len(losses[1])} steps", file=sys.stderr)
        return True
    worst = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    print(f"{one}: losses differ by {worst:.1e}", file=sys.stderr)
    return worst > TOLERANCE


def _losses(folder: Path, rng: random.Random, world: int, tries: int) -> Row:
    """Plain, accumulated, streamed: 200 optimizer steps each."""
    lost = 0
    kinds = [(1, ""), (3, ""), (1, "--data.streaming=true")]
    for number, (window, kind) in enumerate(kinds[:tries]):
        here = write_run(folder / str(number), rng, train=rng.randint(150, 400), val=7, test=5)
        steps = [f"--trainer.max_steps={STEPS}", *kind.split()]
        several = _run(here, "several", world, *steps, window=window)
        one = _run(here, "one", 1, *steps, whole=world, window=window)
        steps_made = len(_losses_of(here / "one")) if one.well else 0
        lost += not several.well or steps_made != STEPS or _differ(here / "several", here / "one")
    what = f"{world} processes: {STEPS} optimizer steps, plain, accumulated, streamed"
    return Row(what, tries, lost, f"each loss with one process, to {TOLERANCE:g}")


def _epochs(folder: Path, rng: random.Random, tries: int) -> Row:
    """Loaders alone: every pair once in an epoch, as many batches in each process."""
    lost, size = 0, 0
    for number in range(tries):
        if number % 10 == 0:
            size = rng.randint(4, 90)
            here = write_run(folder / str(number), rng, train=size, val=1)
            data = _data(here, rng.choice((True, False)))
        world, epoch = rng.randint(1, 4), rng.randint(0, 3)
        loaders = []
        for rank, gather in enumerate(gathers(world)):
            data.trainer = SimpleNamespace(  # type: ignore[assignment]
                global_rank=rank, world_size=world, limit_train_batches=1.0,
                fit_loop=SimpleNamespace(_data_fetcher=None),
            )  # fmt: skip
            data._gather = gather  # type: ignore[assignment,method-assign]
            loaders.append(data.train_dataloader())
        together = _Together(loaders)
        for _ in range(epoch):
            together.shares()
        shares = [[batch.indices.tolist() for batch in share] for share in together.shares()]
        seen = sorted(index for share in shares for batch in share for index in batch)
        if seen != list(range(size)) or len({*map(len, shares)}) > 1:
            lost += 1
            print(f"{size} pairs, {world} processes, epoch {epoch}: {seen}", file=sys.stderr)
    return Row("epochs of 4 to 90 pairs, 1 to 4 processes", tries, lost, "every pair once")


def _data(folder: Path, streaming: bool) -> DataModule:
    data = DataModule(
        train=f"{folder}/train", src="de", tgt="en", cache=f"{folder}/cache", max_length=60,
        tokenizer=TokenizerConfig(vocab_size=270), max_tokens=120, streaming=streaming,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    return data


def _scores(folder: Path, rng: random.Random, tries: int) -> Row:
    """Weights that do not change, validated and tested by 1, 2 and 4 processes."""
    lost = tried = 0
    here = write_run(folder / "trained", rng, train=300, val=20, test=9)
    _run(here, "one", 1, "--trainer.max_steps=300")
    still = [f"--model.init_from={here}/one/bundle", "--model.learning_rate=0"]
    # Else epochs, which have fewer steps with more processes, would be validated more often.
    twice = ["--trainer.max_steps=2", "--trainer.val_check_interval=1"]
    for number in range(tries):
        # A few sentences are fewer batches than processes.
        sizes = rng.choice((1, 2, 3, rng.randint(4, 60))), rng.choice((1, 2, rng.randint(4, 60)))
        place = write_run(folder / str(number), rng, train=40, val=sizes[0], test=sizes[1])
        found = []
        for world in (1, 2, 4):
            ended = _run(place, f"of-{world}", world, *still, *twice)
            found.append(_scored(place / f"of-{world}", ended) if ended.well else None)
        for other in found[1:]:
            tried += 1
            if other is None or other != found[0]:
                lost += 1
                print(f"{place}, {sizes}: {found[0]}\nnot {other}", file=sys.stderr)
    how = "BLEU, chrF, loss, BLEU by length, samples with one process"
    return Row("validation and test by 2 and 4 processes", tried, lost, how)


def _scored(run: Path, ended: Ended) -> dict[str, Any]:
    """All that says how well a model translates; losses are sums in another order."""
    numbers = json.loads((run / "results.json").read_text())
    keys = ("bleu", "chrf", "bleu_by_length", "bleu_longest_third", "validation_bleu", "split")
    samples = ended.output.rpartition("perplexity")[2].partition("\n\n")[2].partition("Where")[0]
    return {
        **{key: numbers[key] for key in keys},
        "loss": f"{numbers['loss']:.6g}",
        "samples": samples.strip(),
    }


def _others(folder: Path, rng: random.Random) -> Row:
    """Another number of processes: refused in the middle of an epoch, exact at its beginning."""
    lost = tried = 0
    for before, after in ((1, 2), (2, 1), (2, 4)):
        here = write_run(
            folder / f"{before}-{after}", rng, train=rng.randint(150, 300), val=3, test=2
        )
        _run(here, "middle", before, "--save_every=3", "--trainer.max_steps=3")
        resumed = ["--config=recipe.yaml", "--ckpt_path=middle/checkpoints/last.ckpt"]
        ended = fit([*resumed, "--trainer.max_steps=9"], here, after)
        tried += 1
        if set(ended.codes) != {2} or "middle of an epoch" not in ended.output:
            lost += 1
            print(f"{here}: {ended}", file=sys.stderr)
        tried += 1
        lost += not _next_epoch_is_exact(here, before, after)
    return Row("1 → 2, 2 → 1, 2 → 4 processes", tried, lost, "refused in an epoch, else exact")


def _next_epoch_is_exact(here: Path, before: int, after: int) -> bool:
    """The epoch after a change of the number of processes, with one that makes the same steps."""
    if not _run(here, "first", before, "--trainer.max_epochs=1").well:
        return False
    for name, world, whole in (("several", after, 1), ("one", 1, after)):
        shutil.copytree(here / "first", here / name)
        checkpoint = f"--ckpt_path={name}/checkpoints/last.ckpt"
        if not _run(here, name, world, checkpoint, "--trainer.max_epochs=2", whole=whole).well:
            return False
    longer = len(_losses_of(here / "several")) > len(_losses_of(here / "first"))
    return longer and not _differ(here / "several", here / "one")


def same_weights(folder: Path, name: str) -> bool:
    """Whether the bundle of a run is that of the run `whole`."""
    files = [folder / run / "bundle/model.safetensors" for run in ("whole", name)]
    if not all(file.exists() for file in files):
        print(f"{folder / name}: no bundle", file=sys.stderr)
        return False
    one, other = map(load_file, files)
    return all(bool((one[key] == other[key]).all()) for key in one)


def _signals(folder: Path, rng: random.Random, tries: int) -> Row:
    """One or both processes get a signal after the first save; the same command then goes on."""
    here = write_run(folder, rng, train=120, val=6, test=4)
    whole, span = _signalled(here, "whole", rng)
    lost, met = int(not whole.well), 0
    kinds = itertools.product(((0,), (1,), (0, 1)), (signal.SIGTERM, signal.SIGINT))
    for number, (ranks, signum) in enumerate(itertools.islice(kinds, tries)):
        name = f"stopped-{number}"
        stopped, seconds = _signalled(here, name, rng, span, ranks, signum)
        met += stopped.codes != [0]
        again, _ = _signalled(here, name, rng)
        # A signal that comes after the last word has nothing to stop. In the final test it stops at
        # once whoever gets it, and the other process says that this one is gone.
        alone = f"is gone, see its own words; training stopped after step {SIGNALLED};"
        codes = {2} if alone in stopped.output else {0, 128 + signum, -signum}
        stops = {*stopped.codes} <= codes and "Traceback" not in stopped.output
        same = again.well and same_weights(here, name)
        if not (stops and same and seconds < STOPS_IN):
            lost += 1
            print(f"{signum} to {ranks}: {seconds:.1f} s, {stopped}\n{again}", file=sys.stderr)
    how = f"within {STOPS_IN} seconds, goes on, same weights; {met} met a run under way"
    return Row("SIGTERM, SIGINT to one or both of 2 processes", tries, lost or int(not met), how)


def _signalled(
    here: Path, name: str, rng: random.Random, span: float = 0.0, ranks: Sequence[int] = (),
    signum: int = 0,
) -> tuple[Ended, float]:  # fmt: skip
    """`transformer fit` in 2 processes; how it ended, and how long after the signal or a save."""
    options = [
        "--config=recipe.yaml", f"--run_dir={name}", "--existing=resume", "--save_every=5",
        f"--trainer.max_steps={SIGNALLED}", "--trainer.val_check_interval=4",
        "--trainer.devices=2", "--trainer.strategy=ddp",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "transformer", "fit", *options], cwd=here, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while not (here / name / "checkpoints/last.ckpt").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, span))
    since = time.monotonic()
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):  # it had ended
        first = psutil.Process(process.pid)
        both = [first, *first.children()]
        for rank in ranks:
            both[rank].send_signal(signum)
    output, _ = process.communicate(timeout=TIMEOUT)
    return Ended([process.returncode], output), time.monotonic() - since
