"""Dropout (paper, section 5.4), with a CPU path that draws its masks several times faster.

The distribution is that of `torch.nn.functional.dropout`, up to the keeping probability being a
multiple of 2^-16; the scale is that of the probability which is really used, so that the
expectation is exact.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, and the sum of a residual connection with it."""

    def forward(self, y: Tensor, x: Tensor | None = None) -> Tensor:
        """dropout(y), added to x where it is given; y and x have the same shape."""
        return drop(y, self.p if self.training else 0.0, x)


def drop(y: Tensor, rate: float, x: Tensor | None = None) -> Tensor:
    """y with a share `rate` of its values set to zero and the others scaled up, added to x."""
    if rate and y.is_cpu and not torch.compiler.is_compiling():
        return _Masked.apply(y, x, rate)
    dropped = F.dropout(y, rate) if rate else y
    return dropped if x is None else x + dropped


class _Masked(torch.autograd.Function):
    """x + y * mask * scale in one pass over memory."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor | None, rate: float) -> Tensor:
        dropped = round(rate * _LEVELS)
        ctx.scale = _LEVELS / (_LEVELS - dropped)
        ctx.summed = x is not None
        mask = _mask(y, dropped)
        ctx.save_for_backward(mask)
        return torch.addcmul(y.new_zeros(()) if x is None else x, y, mask, value=ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (gradient,) = gradients
        (mask,) = ctx.saved_tensors
        own = torch.addcmul(gradient.new_zeros(()), gradient, mask, value=ctx.scale)
        return own, gradient if ctx.summed else None, None


def _mask(like: Tensor, dropped: int) -> Tensor:
    """Zeros and ones of the shape and type of `like`; `dropped` of 2^16 are zeros.

    One 64-bit random number serves four values. Measured on (132, 31, 512) with two threads:
    1.4 ms for the numbers and 0.3 ms for the comparison, `bernoulli_` 11 ms.
    """
    numbers = like.new_empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = numbers.view(torch.int16)[: like.numel()].view(like.shape)
    return torch.ge(bits, dropped - _LEVELS // 2, out=torch.empty_like(like))
