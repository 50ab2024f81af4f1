"""Disks, networks, signals and files that fail under whole runs, which then go on to their end.

A case is a run in a process of its own that meets a fault, unless it ends before: that is counted.
It must end, with the right exit code and without a traceback, or go on in spite of it; and the same
command, repeated, must go on and end with the weights of a run that met none, bit by bit.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from safetensors.torch import load_file
from toys import recipe

from transformer.training.checkpoint_files import read_checkpoint

from .forks import become, wait
from .table import Row

SPAN = 2.0  # seconds that a run takes when it meets nothing; measured
LIMIT = 120  # seconds after which a process hangs: many times what it takes
CHECKPOINTS = Path("runs/toy/checkpoints")
LAST = CHECKPOINTS / "last.ckpt"
RESULTS = Path("runs/toy/results.json")
BUNDLE = Path("runs/toy/bundle/model.safetensors")
MET, TOO_LATE = 0, 3  # exit codes of a case
OPTIONS = (
    "--config", "../toy.yaml", "--logger", "csv", "--existing", "resume", "--save_every", "3",
    "--trainer.val_check_interval", "3", "--trainer.max_epochs", "-1", "--trainer.max_steps", "18",
    "--trainer.precision", "32-true", "--data.eval_max_tokens", "100",
    "--trainer.enable_progress_bar", "false",
)  # fmt: skip
#: Nobody listens at this address; the key is one that W&B accepts without asking anybody.
NO_SERVER = {
    "WANDB_BASE_URL": "http://127.0.0.1:9",
    "WANDB_API_KEY": "0123456789" * 4,
    "WANDB_INIT_TIMEOUT": "10",
}


class End(NamedTuple):
    """How a process ended: exit code (-SIGKILL if it hung), words, seconds since a signal."""

    code: int
    said: str
    seconds: float


class Life:
    """`transformer fit` in a process of its own, in the current folder."""

    def __init__(self, *options: str) -> None:
        self.since = time.monotonic()
        self.process = os.fork()
        if self.process == 0:
            become(["fit", *OPTIONS, *options], Path.cwd(), Path("said.txt"), {})

    def is_over(self) -> bool:
        """Whether the process has ended; it is still to be waited for."""
        found = os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found is not None

    def until(self, ready: Callable[[], bool]) -> None:
        """Wait for something, or for the end of the process."""
        while not ready() and not self.is_over() and time.monotonic() - self.since < LIMIT:
            time.sleep(0.002)

    def send(self, signum: int) -> None:
        self.since = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process, signum)

    def end(self) -> End:
        """Wait for the end; a process that hangs is killed."""
        code = wait(self.process, self.since + LIMIT)
        return End(code, Path("said.txt").read_text(), time.monotonic() - self.since)


class Lost(Exception):
    """What was promised was not kept."""


def demand(kept: bool, what: str, end: End | None = None) -> None:
    if not kept:
        raise Lost(f"{what}: {end}" if end else what)


def one_line(end: End, *codes: int) -> None:
    """A process that ended with one of these codes, and said why in one line."""
    demand(end.code != -signal.SIGKILL, "hung", end)
    demand(end.code in codes, f"the exit code is none of {codes}", end)
    demand("Traceback" not in end.said, "a traceback", end)
    if end.code == 2:
        demand(end.said.count("transformer: error:") == 1, "not one line", end)


def goes_on(*options: str) -> End:
    """The same command again ends the run, with the weights of a run that met no fault."""
    saved = list(CHECKPOINTS.glob("[bil]*.ckpt"))
    end = Life(*options).end()
    one_line(end, 0)
    demand(not saved or "writing to" not in end.said, "began anew", end)
    found, expected = (read_checkpoint(file) for file in (LAST, Path("..", "whole", LAST)))
    demand(found["global_step"] == 18, "another number of steps", end)
    for name, tensor in expected["state_dict"].items():
        demand(torch.equal(found["state_dict"][name], tensor), f"{name} differs", end)
    demand(found["curve"] == expected["curve"], "other validations", end)
    bundles = [load_file(place / BUNDLE) for place in (Path(), Path("..", "whole"))]
    for name, tensor in bundles[1].items():
        demand(torch.equal(bundles[0][name], tensor), f"{name} of the bundle differs", end)
    return end


def begun(rng: random.Random, *options: str) -> Life:
    """A life in which something was saved, and a few more moments passed."""
    life = Life(*options)
    life.until(LAST.exists)
    time.sleep(rng.uniform(0, SPAN / 4))
    return life


def signalled(rng: random.Random) -> int:
    """At any moment, also while data is prepared and in the final test."""
    signum = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    life = Life()
    if rng.random() < 0.6:
        life.until(LAST.exists)
        time.sleep(rng.uniform(0, SPAN / 2))
    else:
        time.sleep(rng.uniform(0, SPAN))
    trains, late = LAST.exists(), life.is_over()
    life.send(signum)
    end = life.end()
    demand(end.seconds < 30, "too late", end)
    if trains and not RESULTS.exists():
        one_line(end, 128 + signum)
        at_once = "Stopped at once" in end.said  # in the final test
        stopped = CHECKPOINTS / "interrupted.ckpt"
        demand(at_once or ("Stopped after step" in end.said and stopped.exists()), "unsaid", end)
    else:  # before the command listens, a signal does what it does to each process
        one_line(end, 0, 128 + signum, -signum, 130)
    goes_on()
    return TOO_LATE if late else MET


def damaged(rng: random.Random) -> int:
    """The newest checkpoint is torn, or one bit of it is another."""
    life = begun(rng)
    life.send(signal.SIGKILL)
    life.end()
    newest = max(CHECKPOINTS.glob("[bil]*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    content = bytearray(newest.read_bytes())
    others = [file for file in CHECKPOINTS.glob("[bil]*.ckpt") if file != newest]
    torn = rng.random() < 0.5
    if torn:
        content = content[: rng.randrange(len(content))]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    newest.write_bytes(content)
    if others:
        end = goes_on()
        warned = f"{newest.name} cannot be read: going on from" in end.said
        # A bit may be one that nobody reads.
        demand(warned or not torn or "has ended" in end.said, "no warning", end)
    else:
        end = Life().end()
        one_line(end, 0, 2)
    return MET


def full(rng: random.Random) -> int:
    """A file system with room for a checkpoint or two; later it has more."""
    Path("runs").mkdir()
    size = rng.randint(150, 900)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", "runs"]
    subprocess.run(mount, check=True)
    try:
        end = Life().end()
        one_line(end, 0, 2)
        met = MET if end.code else TOO_LATE
        demand(not list(Path("runs").rglob("*.part")), "parts are left", end)
        subprocess.run([*mount[:3], "-o", "remount,size=100m", "runs"], check=True)
        goes_on()
        return met
    finally:
        subprocess.run(["umount", "-l", "runs"], check=False)


def read_only(rng: random.Random) -> int:
    """The file system can only be read from some moment on."""
    Path("runs").mkdir()
    life = begun(rng)
    # A mount of its own: one with a file that is open, as the run's lock is, stays as it is.
    subprocess.run(["mount", "--bind", "runs", "runs"], check=True)
    try:
        remount = ["mount", "-o", "remount,bind,ro", "runs"]
        while subprocess.run(remount, check=False, stderr=subprocess.DEVNULL).returncode:
            # It is busy while a file is being written.
            demand(time.monotonic() - life.since < LIMIT, "cannot be made read-only")
        late = life.is_over() or RESULTS.exists()
        end = life.end()
        one_line(end, 0 if late else 2)
        demand(late or "training stopped after step" in end.said, "unsaid", end)
        one_line(Life().end(), 0 if late else 2)
    finally:
        subprocess.run(["umount", "-l", "runs"], check=False)
    goes_on()
    return TOO_LATE if late else MET


def vanished(rng: random.Random) -> int:
    """The run folder is moved away in the middle, and comes back."""
    life = begun(rng)
    Path("runs").rename("away")
    late = life.is_over()
    end = life.end()
    one_line(end, 0, 2)
    if Path("runs").exists():
        bundles = BUNDLE, Path("away", *BUNDLE.parts[1:])  # it may have been written before
        demand(end.code != 0 or any(file.exists() for file in bundles), "no bundle", end)
        Path("runs").rename("what-was-written-meanwhile")
    Path("away").rename("runs")
    goes_on()
    return TOO_LATE if late else MET


def offline(rng: random.Random) -> int:
    """W&B's server does not answer."""
    os.environ.update(NO_SERVER)
    end = Life("--logger", "wandb").end()
    one_line(end, 0)
    demand(end.said.count("W&B records offline") == 1, "no word about W&B", end)
    goes_on()
    return MET


def orphaned(rng: random.Random) -> int:
    """W&B's own process dies at any moment of the run."""
    os.environ["WANDB_MODE"] = "offline"
    life = begun(rng, "--logger", "wandb")
    late = life.is_over()
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(life.process).children():
            process.kill()
    end = life.end()
    one_line(end, 0)
    goes_on()
    return MET if "W&B records no more" in end.said and not late else TOO_LATE


def _can_mount() -> bool:
    commands = (["mount", "-t", "tmpfs", "none", "."], ["umount", "-l", "."])
    tried = (subprocess.run(c, check=False, capture_output=True).returncode for c in commands)
    return not any(tried)


CASES: list[tuple[str, Callable[[random.Random], int], int, bool]] = [
    ("SIGTERM, SIGINT, SIGUSR1 at any moment", signalled, 16, False),
    ("newest checkpoint torn or one bit flipped", damaged, 16, False),
    ("disk full", full, 12, True),
    ("disk read-only from some moment on", read_only, 6, True),
    ("run folder gone in the middle", vanished, 8, False),
    ("W&B's server does not answer", offline, 3, False),
    ("W&B's own process dies", orphaned, 3, False),
]


def case(folder: Path, run: Callable[[random.Random], int], seed: int) -> int:
    """One case in a process of its own, which ends with what the case returns; its number."""
    folder.mkdir()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.chdir(folder)
            code = run(random.Random(seed))
        except BaseException as error:
            print(f"lost: {run.__name__}, seed {seed}: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return process


def rows(folder: Path, seed: int, share: float) -> Iterator[Row]:
    """Each fault so many times, two at once."""
    global SPAN
    recipe(folder)
    (folder / "whole").mkdir()
    os.chdir(folder / "whole")
    end = Life().end()
    one_line(end, 0)
    SPAN = end.seconds
    for what, run, count, mounts in CASES:
        if mounts and not _can_mount():
            yield Row(f"{what}: skipped, this user cannot mount", 0, 0)
            continue
        count = max(1, round(count * share))
        codes: list[int] = []
        for number in range(count + 2):
            if number >= 2:
                codes.append(os.waitstatus_to_exitcode(os.wait()[1]))
            if number < count:
                case(folder / f"{run.__name__}-{number}", run, seed + number)
        met = codes.count(MET)
        lost = count - met - codes.count(TOO_LATE)
        how = f"exit code, one line, weights of a run without faults; {met} met a run under way"
        yield Row(what, count, lost or int(not met), how)
    os.chdir("/")
