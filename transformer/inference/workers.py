"""Several batches at once on the cores of a CPU."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST = 4  # beyond, threads would wait for each other at Python's global lock


def count_workers(device: torch.device) -> int:
    """How many batches to decode side by side on a device.

    A step's matrices are too small for two cores: two threads with a batch each decode 1.7 times
    as fast as one, two threads that share a batch 1.1 times (d_model 128, beam 5).
    """
    return min(torch.get_num_threads(), MOST) if device.type == "cpu" else 1


def in_threads(
    function: Callable[[Item, Event], Result], items: Sequence[Item], workers: int
) -> list[Result]:
    """The results of a function for all items, in their order.

    Args:
        function: is given an item, and an event: when it is set, nobody waits for a result.
        items: begun in this order, so the largest should come first.
        workers: threads, which share torch's own threads evenly.

    Raises:
        BaseException: the first error of the function, or Ctrl-C; the other threads stop, too.
    """
    stop, threads = Event(), torch.get_num_threads()
    if min(workers, len(items)) < 2:
        return [function(item, stop) for item in items]
    share = max(1, threads // workers)
    with ThreadPoolExecutor(workers, "decode", torch.set_num_threads, (share,)) as pool:
        try:
            return list(pool.map(function, items, [stop] * len(items)))
        except BaseException:
            stop.set()
            raise
        finally:
            torch.set_num_threads(threads)  # what threads to come begin with
