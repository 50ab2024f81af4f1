"""Runs whose processes are killed, and processes that are killed while they write a checkpoint."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from toys import recipe, write_corpus

from transformer.commands.lives import BATCH, PHASES, live
from transformer.commands.verify_resume import verify
from transformer.data import loaders
from transformer.errors import UserError
from transformer.training.checkpoint_files import WholeFiles, newest_checkpoint
from transformer.writing import clear

from .cases import Hang, at_most
from .table import Row

STEPS, KILLS, WRITES = 40, 20, 1000
SECONDS = 600  # after which a cell hangs; it takes half a minute
CORPUS = {"train": 300, "val": 12, "test": 10}
#: Pairs of a pool: an epoch has several of them.
POOL = 90
ALWAYS = ["--data.max_tokens=110", "--save_every=3", "--trainer.precision=32-true"]
#: What each cell adds to a plain run; {} is the folder of the corpus and of the parent model.
CELLS: dict[str, list[str]] = {
    "plain": [],
    "3 accumulated batches": ["--trainer.accumulate_grad_batches=3", "--average=2"],
    "a stream": ["--data.streaming=true"],
    "a stream, 2 data workers": ["--data.streaming=true", "--data.num_workers=2"],
    "a validation on each saved step": ["--trainer.val_check_interval=5", "--save_every=5"],
    "TMPDIR on another file system": [],
    "a mixture with tags": [
        "--data.extra_corpora=[{train: {}/corpus/train, src: en, tgt: de, share: 0.3}]",
        "--data.tags=true",
    ],
    "LoRA on a frozen parent": [
        "--model.init_from={}/parent/bundle", "--model.lora.rank=2", '--model.freeze=["encoder.*"]',
    ],
    "2 processes": ["--trainer.devices=2"],
}  # fmt: skip


def rows(folder: Path, seed: int, share: float) -> Iterator[Row]:
    """A row for each cell of the matrix, and one for the writing of checkpoints."""
    path = recipe(folder)
    write_corpus(folder / "corpus", CORPUS)
    short = [f"--config={path}", f"--data.cache={folder}/cache", "--logger=none", *ALWAYS]
    begun = [*short, f"--run_dir={folder}/parent", "--trainer.max_steps=6"]
    if live(begun, 1, folder / "log.txt").code:
        raise RuntimeError((folder / "log.txt").read_text())
    forked = multiprocessing.get_context("fork")
    kills = max(2, round(KILLS * share))
    with ProcessPoolExecutor(2, mp_context=forked) as pool:
        written = pool.submit(
            writes, folder / "parent" / "checkpoints", seed, round(WRITES * share)
        )
        tried = partial(cell, folder, seed, kills)
        yield from pool.map(tried, CELLS)
        yield written.result()


def cell(folder: Path, seed: int, kills: int, name: str) -> Row:
    """Kills the runs of one cell."""
    loaders.POOL = loaders.STREAM_POOL = POOL
    options = [option.replace("{}", str(folder)) for option in CELLS[name]]
    place = folder / name.replace(" ", "-")
    try:
        if name.startswith("TMPDIR"):
            os.environ["TMPDIR"] = tempfile.tempdir = elsewhere(folder)
        args = [f"--config={folder}/toy.yaml", *ALWAYS, *options]
        with at_most(SECONDS):
            verdict = verify(args, place, STEPS, kills, seed)
    except (UserError, Hang) as error:
        print(f"kills: {name}: {error}", file=sys.stderr, flush=True)
        return Row(f"processes of a run: {name}", 1, 1)
    finally:
        os.environ.pop("TMPDIR", None)
        tempfile.tempdir = None
    phases = [phase for phase in PHASES if phase != BATCH or "accumulated" in name]
    missing = [phase for phase in phases if not verdict.kills[phase] and kills == KILLS]
    if missing or verdict.kills.total() < kills:
        verdict.difference = verdict.difference or f"too few kills, none in {missing}"
    if verdict.difference:
        print(f"kills: {name}: seed {seed}: {verdict}", file=sys.stderr, flush=True)
    fell = ", ".join(f"{number} {phase}" for phase, number in verdict.kills.items())
    return Row(
        f"processes of a run: {name}", verdict.kills.total(), int(bool(verdict.difference)),
        f"pairs, losses, weights, scores; {fell}",
    )  # fmt: skip


def elsewhere(folder: Path) -> str:
    """A folder of another file system than this one, if there is any for everybody."""
    for place in map(Path, ("/dev/shm", "/run/user", "/var/tmp", "/tmp")):
        if os.access(place, os.W_OK) and place.stat().st_dev != folder.stat().st_dev:
            return str(place)
    raise UserError("there is no other file system for TMPDIR")


def writes(folder: Path, seed: int, kills: int) -> Row:
    """Kills processes while they write one checkpoint over another one, in the folder of a run.

    Half of them die at a random instant, a quarter at a random call of the writing, a quarter at
    one of its last calls, from the end of the text on: flush, fsync, rename.
    """
    rng, path = random.Random(seed), folder / "last.ckpt"
    first, second = (_checkpoint(path, step) for step in (6, 7))
    for other in folder.glob("*.ckpt"):
        other.unlink()
    states = {}
    for name, checkpoint in (("the old one", first), ("the new one", second)):
        WholeFiles().save_checkpoint(checkpoint, path)
        states[path.read_bytes()] = name
    old, _ = states
    write = partial(WholeFiles().save_checkpoint, second, path)
    calls, last = _calls(write)
    spans = [_span(write) for _ in range(5)]
    found = dict.fromkeys(states.values(), 0)
    lost = died = 0
    for number in count():
        if died == kills:
            break
        path.write_bytes(old)
        if number % 2:
            killed = _killed_at(write, rng.uniform(0, min(spans)))
        else:
            killed = _killed_in(write, rng.randint(last if number % 4 else 1, calls))
        died += killed
        state = states.get(path.read_bytes())
        newest = newest_checkpoint(folder)
        clear(folder)
        if state is None or newest != path or os.listdir(folder) != [path.name]:
            lost += 1
            print(f"kills: writing: seed {seed}, kill {number}: {state}", file=sys.stderr)
        else:
            found[state] += killed
    outcome = ", ".join(f"{number} left {name}" for name, number in found.items())
    return Row(
        "processes that write a checkpoint", died, lost, f"the file, byte by byte; {outcome}"
    )


def _checkpoint(path: Path, step: int) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return {**checkpoint, "global_step": step, "more": torch.full((1 << 18,), float(step))}


def _calls(write: Callable[[], None]) -> tuple[int, int]:
    """How many calls and returns of functions a writing has, and which is its last flush."""
    names: list[str] = []

    def note(frame: Any, event: str, arg: Any) -> None:
        names.append(f"{event} {getattr(arg, '__name__', '')}")

    sys.setprofile(note)
    try:
        write()
    finally:
        sys.setprofile(None)
    return len(names), len(names) - names[::-1].index("c_call flush")


def _child(work: Callable[[], Any]) -> int:
    if pid := os.fork():
        return pid
    try:
        work()
    finally:
        os._exit(0)


def _span(write: Callable[[], None]) -> float:
    began = time.monotonic()
    os.waitpid(_child(write), 0)
    return time.monotonic() - began


def _killed_at(write: Callable[[], None], seconds: float) -> bool:
    """Writes in a child that is killed after so many seconds, unless it has ended."""
    child = _child(write)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _killed_in(write: Callable[[], None], fatal: int) -> bool:
    """Writes in a child that is killed before the call, or the return, of this number."""

    def work() -> None:
        left = fatal

        def pass_one(*args: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(pass_one)
        write()

    return os.WIFSIGNALED(os.waitpid(_child(work), 0)[1])
