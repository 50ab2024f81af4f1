"""Cases of a fuzz: each is made of a seed, and can be repeated; its process may die of it.

`python -m tests.reliability.cases <module> <kind> <seed> <first> <end> <folder>` tries some cases
in one process and prints a line for each.
"""

import contextlib
import io
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from transformer.__main__ import main
from transformer.errors import UserError, is_for_the_user, message

SECONDS = 60  # after which a case hangs
MEMORY = 6 << 30  # bytes of address space that a case may take
READ, REFUSED = "read", "refused"


class Found(NamedTuple):
    """How many cases were read and refused, and how many were lost."""

    read: int
    refused: int
    lost: int


def outcome(case: Callable[[], object]) -> str:
    """Runs a case: `read`, `refused`, or what went wrong, which may have several lines.

    A case raises an error for the user where it refuses, and asserts that what it reads is right.
    """
    try:
        case()
    except (Exception, SystemExit) as error:
        if isinstance(error, Exception) and is_for_the_user(error):
            text = message(error)
            return REFUSED if "\n" not in text and len(text) < 2000 else f"a long error: {text}"
        return traceback.format_exc()
    except BaseException:  # a hang, or a panic of Rust
        return traceback.format_exc()
    return READ


def command(*args: object) -> None:
    """Runs a command in this process; where it refuses in one line, raises that."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(arg) for arg in args])
    text = err.getvalue()
    if code == 2 and text.startswith("transformer: error: ") and text.count("\n") == 1:
        raise UserError(text.strip())
    assert code == 0 and "Traceback" not in text, f"exit code {code}: {text}"


def tried(module: str, kind: str, folder: Path, seed: int, count: int, processes: int = 2) -> Found:
    """Tries cases 0 to `count` of a kind, on several processes; prints each that is lost.

    Args:
        module: the name of one beside this, whose `KINDS` has the kind: it gets a random generator
            and an empty folder, and returns the case. Its `prepare` fills `folder` before.
        kind: of the cases.
        folder: what they share.
        seed: of all of them.
        count: of cases.
        processes: that share them.
    """
    bounds = [count * n // processes for n in range(processes + 1)]
    shares = pairwise(bounds)
    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(lambda s: _share(module, kind, folder, seed, *s), shares))
    words = [word for part in parts for word in part]
    assert len(words) == count
    read, refused = words.count(READ), words.count(REFUSED)
    return Found(read, refused, count - read - refused)


def _share(module: str, kind: str, folder: Path, seed: int, first: int, end: int) -> list[str]:
    """The words of cases, whose process is begun again behind one that it does not survive."""
    words: list[str] = []
    while first + len(words) < end:
        words += _process(module, kind, folder, seed, first + len(words), end)
    return words


def _process(
    module: str, kind: str, folder: Path, seed: int, first: int, end: int
) -> Iterator[str]:
    args = [module, kind, str(seed), str(first), str(end), str(folder)]
    command = [sys.executable, "-m", __name__, *args]
    errors = (folder / f"stderr-{kind}-{first}").open("w+b")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=env)
    assert process.stdout
    try:
        for number in range(first, end):
            ready, _, _ = select.select([process.stdout], [], [], 2 * SECONDS)
            word = process.stdout.readline().decode().strip() if ready else "it hangs"
            if not word:
                word = f"the process ended with {process.wait()}"
            yield word
            if word not in (READ, REFUSED):
                args[3:5] = [str(number), str(number + 1)]
                print(f"python -m {__name__} {' '.join(args)}: {word}", file=sys.stderr)
            if word not in (READ, REFUSED, "a traceback"):
                return
    finally:
        process.kill()
        process.wait()
        errors.seek(0)
        sys.stderr.write(errors.read().decode(errors="replace"))


class Hang(BaseException):
    """A case takes too long; no `except Exception` takes it for a damaged file."""


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Ends with `Hang` what takes longer."""

    def hung(*_: Any) -> None:
        raise Hang(f"no end after {seconds} seconds")

    signal.signal(signal.SIGALRM, hung)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def some(module: str, kind: str, seed: int, first: int, end: int, folder: Path) -> None:
    """Tries some cases and prints a word for each; why one is lost goes to the standard error."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    words, sys.stdout = sys.stdout, io.StringIO()
    make = import_module(f"{__package__}.{module}").KINDS[kind]
    for number in range(first, end):
        place = folder / f"{kind}-{number}"
        shutil.rmtree(place, ignore_errors=True)  # it may be repeated
        place.mkdir(parents=True)
        os.chdir(place)
        with at_most(SECONDS):
            found = outcome(make(random.Random(f"{seed}-{kind}-{number}"), place, folder))
        if found in (READ, REFUSED):
            shutil.rmtree(place, ignore_errors=True)
        else:
            print(f"{kind} {number}: {found}", file=sys.stderr)
            found = "a traceback"
        print(found, file=words, flush=True)


if __name__ == "__main__":
    module, kind, *numbers, where = sys.argv[1:]
    seed, first, end = map(int, numbers)
    some(module, kind, seed, first, end, Path(where))
