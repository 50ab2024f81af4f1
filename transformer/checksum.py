"""By what is told that weights, and what belongs to them, are those that were saved.

A bit that flipped, or two matrices of one shape that were exchanged, leave a file that can be read:
a model that looks well and translates badly.
"""

import zlib
from typing import Any

import torch
from torch import Tensor


def checksum(content: Any) -> str:
    """The CRC-32 of nested dictionaries and lists of tensors and plain values, in their order.

    256 MB took 0.25 s; SHA-256 0.46 s, on a CPU with instructions for it.
    """
    return f"{_crc(content, 0):08x}"


def _crc(content: Any, found: int) -> int:
    if isinstance(content, Tensor):
        found = zlib.crc32(f"{content.dtype} {tuple(content.shape)}".encode(), found)
        flat = content.detach().cpu().contiguous().view(-1)
        return zlib.crc32(flat.view(torch.uint8).numpy().data, found)
    if isinstance(content, dict):
        for key, value in content.items():
            found = _crc(value, zlib.crc32(repr(key).encode(), found))
        return found
    if isinstance(content, (list, tuple)):
        for value in content:
            found = _crc(value, zlib.crc32(b",", found))
        return found
    return zlib.crc32(repr(content).encode(), found)
