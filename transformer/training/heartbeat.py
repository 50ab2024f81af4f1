"""The processes of a run watch each other: where one is gone, the others end and say which."""

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Any

import torch.distributed as dist
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch import Callback, Trainer

EVERY = 5  # seconds between two signs of life
SILENT = 6  # so many of them without one of another process, and it is gone
GONE = 2  # the exit code
LEFT = b"left"
_kill = _ChildProcessObserver._terminate_all


def _kill_later(observer: _ChildProcessObserver) -> None:
    """Gives the first process time to say what happened before Lightning kills it without a word.

    Lightning does so when a process that it started has failed, which nothing else notices before
    the processes know each other.
    """
    time.sleep(EVERY * (SILENT + 3))
    _kill(observer)


class Heartbeat(Callback):
    """Ends a process whose fellows are gone, wherever it waits for them inside of `with`.

    NCCL waits 10 minutes for a process that was killed, gloo 30 for a machine that was cut off, and
    both have to: the first process may be saving meanwhile. Signs of life come from a thread, which
    such work does not hold up, through the store by which the processes found each other. Silence
    is counted in one's own signs of life: whoever was suspended has not heard anything either.

    Args:
        what_is_left: Gives the end of the last line: what was saved, and how to go on.
    """

    def __init__(self, what_is_left: Callable[[], str]) -> None:
        self._what_is_left = what_is_left
        self._over = Event()
        self._fellows: _Fellows | None = None

    def __enter__(self) -> "Heartbeat":
        _ChildProcessObserver._terminate_all = _kill_later  # type: ignore[assignment, method-assign]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Nothing is left to wait for; after an error the others still wait, and shall miss it."""
        if self._fellows and kind is None:
            self._fellows.leave()
        self._over.set()

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Begin as soon as the processes know each other."""
        if trainer.world_size == 1 or self._fellows:
            return
        self._fellows = _Fellows(trainer.global_rank, trainer.world_size)
        trainer.strategy.barrier()  # now each of them has a sign of life
        for work in (self._fellows.talk, self._watch):
            Thread(target=work, args=(self._over,), daemon=True).start()

    def _watch(self, over: Event) -> None:
        assert self._fellows
        gone = ""
        while not gone and not over.wait(EVERY):
            gone = self._fellows.gone()
        # An error that the main thread has met by itself says more, and takes a moment.
        if over.wait(EVERY):
            return
        sys.stdout.flush()
        line = f"{gone} is gone, or does not answer: stopped; {self._what_is_left()}"
        os.write(2, f"transformer: error: {line}\n".encode())
        os._exit(GONE)  # nothing else reaches a thread that waits for another process


class _Fellows:
    """Signs of life of all processes of a run, each of which makes one of these."""

    def __init__(self, rank: int, world: int) -> None:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # A connection of its own: one that is shared is blocked by whoever waits in it.
        self._store = dist.TCPStore(*address, wait_for_workers=False)
        self._keys = [f"transformer/alive/{each}" for each in range(world)]
        self._rank, self._lived = rank, 0
        self._signs = self._last = [b""] * world
        self._silent = [0] * world
        self._live()

    def talk(self, over: Event) -> None:
        """Gives and reads signs of life; hangs or ends where the store is gone."""
        with suppress(RuntimeError):
            while not over.wait(EVERY):
                self.exchange()

    def exchange(self) -> None:
        """Gives a sign of life and reads those of the others."""
        self._live()
        self._signs = self._store.multi_get(self._keys)

    def gone(self) -> str:
        """Names a process that has not given a sign of life for long, if there is any."""
        now, self._last, before = self._signs, self._signs, self._last
        for rank, (sign, old) in enumerate(zip(now, before, strict=True)):
            self._silent[rank] = self._silent[rank] + 1 if sign == old and sign != LEFT else 0
        if self._silent[self._rank] >= SILENT:  # the store, which is beside the first process
            return "the first process of this run"
        for rank, count in enumerate(self._silent):
            if count >= SILENT:
                return f"process {rank} of this run, on {now[rank].decode().partition(' ')[2]},"
        return ""

    def leave(self) -> None:
        """Lets the others know that they do not have to wait any more."""
        with suppress(RuntimeError):
            self._store.set(self._keys[self._rank], LEFT.decode())

    def _live(self) -> None:
        self._lived += 1
        self._store.set(self._keys[self._rank], f"{self._lived} {socket.gethostname()}")
