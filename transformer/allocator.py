"""How the C library hands out memory."""

import ctypes
import sys

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


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
