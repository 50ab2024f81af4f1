"""`transformer fit` in several processes, forked from this one, which has imported all already."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import transformer.commands.fit  # noqa: F401 - imported once, before the forks
from transformer.__main__ import main

TIMEOUT = 600  # seconds, on a busy machine


class Ended(NamedTuple):
    """How the processes of a run ended: their exit codes and all that they printed."""

    codes: list[int]
    output: str

    @property
    def well(self) -> bool:
        return not any(self.codes)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def fit(
    args: Sequence[str], folder: Path, world: int = 1, before: Callable[[], None] | None = None
) -> Ended:
    """Runs `transformer fit` as so many processes in a folder; waits for all of them.

    Args:
        args: What follows `fit`.
        folder: Where it runs.
        world: How many processes.
        before: Is called in each of them first.
    """
    given = ["fit", *map(str, args), f"--trainer.devices={world}"]
    given += ["--trainer.strategy=ddp"] * (world > 1)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    outputs = [folder / f"output-{rank}.txt" for rank in range(world)]
    pids = []
    for rank in range(world):
        sys.stdout.flush()
        if pid := os.fork():
            pids.append(pid)
            continue
        number = {"LOCAL_RANK": str(rank), **environment} if world > 1 else {}
        become(given, folder, outputs[rank], number, before)
    codes = [wait(pid, time.monotonic() + TIMEOUT) for pid in pids]
    return Ended(codes, "".join(path.read_text() for path in outputs))


def become(
    args: list[str], folder: Path, output: Path, environment: dict[str, str],
    before: Callable[[], None] | None = None,
) -> None:  # fmt: skip
    """Makes a forked process one of a run; does not return."""
    code = 1
    try:
        with output.open("w") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        os.environ.update(environment)
        os.chdir(folder)
        torch.set_num_threads(1)
        if before:
            before()
        code = main(args)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, until: float) -> int:
    """The exit code of a process; one that hangs is killed."""
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])
