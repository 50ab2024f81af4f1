"""The process: memory of the C library, kernels that oneDNN keeps, threads for batches, seeds."""

import ctypes
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
WIDE = 512  # d_model
MOST = 4  # threads; beyond, they would wait for each other at Python's global lock
#: Tokens in a batch; to spread less over the cores takes longer than one core alone.
SMALLEST_BATCH = 256


def seed_of(*numbers: int) -> int:
    """A seed that depends on all the numbers and on nothing else, such as the state of a run."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def keep_freed_memory() -> None:
    """Let freed tensors be reused; nothing happens where the C library is not glibc.

    By default glibc asks the system for every tensor beyond some hundred KiB and gives it back at
    once, so that each step touches thousands of fresh pages, which the kernel has to clear.
    Measured with the tiny Transformer in float32 on two cores: 14,500 tokens/s against 12,600,
    with 9 % more peak memory.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26)):
            libc.mallopt(option, value)


def keep_few_kernels(d_model: int) -> None:
    """Let oneDNN keep 16 kernels for a wide model; call it before the first matrix product.

    For every shape of a bfloat16 product oneDNN makes a kernel and keeps 1,024 of them, which
    come to lie between the freed tensors, so that larger ones do not fit there any more. Measured
    with two AMX threads over 25 batches of the base model: 4.0 GiB and growing, with 16 kernels
    2.8 GiB at the same speed. A narrow model keeps them all: the tiny one, which needs 1.4
    GiB with them, lost a tenth of its speed to making kernels again.
    """
    if d_model >= WIDE:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


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
