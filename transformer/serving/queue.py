"""The queue in front of a model: what arrives together is computed in one batch."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from threading import Condition, Thread
from typing import Any, NamedTuple

from transformer.errors import UserError

LOG = logging.getLogger("transformer.serving")
TOGETHER = 0.005  # seconds that an item waits for others at most, where nothing is computed
LAST = 10.0  # seconds that the thread has to end its last batch


class TooLarge(ValueError):
    """Items have more weight than may ever wait."""


class Full(Exception):
    """There is no room for items now.

    Args:
        seconds: after which there may be, as far as the last batches tell.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many requests are waiting: come again in {seconds} s")
        self.seconds = seconds


class Job(NamedTuple):
    """An item, the settings that it is computed with, and the future of its result."""

    how: Hashable
    item: Any
    weight: int
    arrived: float
    result: Future[Any]


class Queue:
    """Computes items in batches, in a thread of its own, in the order in which they came.

    Args:
        compute: is given settings, and items that share them; it returns a result for each.
        batch: weight of the items in a batch; one alone may have more.
        most: weight of all items that may wait.
    """

    def __init__(
        self, compute: Callable[[Any, list[Any]], Sequence[Any]], batch: int, most: int
    ) -> None:
        self.compute, self.batch, self.most = compute, batch, most
        self.jobs: deque[Job] = deque()
        self.changed = Condition()
        self.closed = False
        self.rate = float(most)  # weight in a second, of the fastest of the last batches
        self.thread = Thread(target=self._work, name="decode", daemon=True)
        self.thread.start()

    def put(self, how: Hashable, items: Sequence[tuple[Any, int]]) -> list[Future[Any]]:
        """Lets items wait, all or none of them; one whose future is cancelled is not computed.

        Args:
            how: the settings.
            items: each with its weight.

        Raises:
            TooLarge: when they would not fit into an empty queue.
            Full: when there is no room for them now.
        """
        weight = sum(weight for _, weight in items)
        if weight > self.most:
            raise TooLarge(f"{weight:,}, the limit is {self.most:,}")
        now = time.monotonic()
        jobs = [Job(how, item, weight, now, Future()) for item, weight in items]
        with self.changed:
            waiting = self.waiting()
            if waiting + weight > self.most:
                raise Full(math.ceil(min(max(waiting / self.rate, 1), 60)))
            self.jobs.extend(jobs)
            self.changed.notify_all()
        return [job.result for job in jobs]

    def waiting(self) -> int:
        """Weight of the items that wait."""
        return sum(job.weight for job in self.jobs if not job.result.cancelled())

    def close(self) -> None:
        """Ends the thread after the batch that it computes; what waits is cancelled."""
        with self.changed:
            self.closed = True
            for job in self.jobs:
                job.result.cancel()
            self.changed.notify_all()
        self.thread.join(LAST)

    def _work(self) -> None:
        while jobs := self._next():
            start = time.monotonic()
            try:
                results = self.compute(jobs[0].how, [job.item for job in jobs])
            except Exception as error:  # whatever it is, the next batch may do
                bug = not isinstance(error, UserError)
                LOG.error("a batch of %d failed: %s", len(jobs), error, exc_info=bug)
                for job in jobs:
                    job.result.set_exception(error)
                continue
            for job, result in zip(jobs, results, strict=True):
                job.result.set_result(result)
            weight = sum(job.weight for job in jobs)
            self.rate = max(0.8 * self.rate, weight / (time.monotonic() - start + 1e-6))

    def _next(self) -> list[Job]:
        """The next batch; empty when the queue is closed."""
        taken: list[Job] = []
        with self.changed:
            while not (taken or self.closed):
                self.changed.wait_for(lambda: self.jobs or self.closed)
                self._wait_for_others()
                taken = self._take()
        return taken

    def _wait_for_others(self) -> None:
        """Lets the first item have waited for some milliseconds, or a batch be full."""
        if self.jobs:
            left = self.jobs[0].arrived + TOGETHER - time.monotonic()
            self.changed.wait_for(lambda: self.closed or self.waiting() >= self.batch, left)

    def _take(self) -> list[Job]:
        """Takes the first item, and all behind it that go with it and into the batch."""
        taken: list[Job] = []
        left: deque[Job] = deque()
        room = self.batch
        for job in self.jobs:
            if taken and (job.how != taken[0].how or job.weight > room):
                left.append(job)
            elif job.result.set_running_or_notify_cancel():
                taken.append(job)
                room -= job.weight
        self.jobs = left
        return taken
