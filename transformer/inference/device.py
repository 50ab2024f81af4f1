"""Where a model translates: the device, the precision, and how its weights lie in memory."""

from typing import Literal

import torch
from torch import nn

from transformer.errors import UserError
from transformer.kernels import has_bfloat16, refuse_emulated
from transformer.models import Seq2Seq

Precision = Literal["auto", "float32", "bfloat16"]


def find_device(name: str) -> str:
    """The device of a name; `auto` is a CUDA GPU where there is one, else the CPU.

    Raises:
        ValueError: when there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here ({reason}): try cpu") from None
    return name


def find_precision(device: str, precision: Precision) -> Literal["float32", "bfloat16"]:
    """The precision of a name; `auto` is bfloat16 on GPUs that compute in it, else float32.

    Raises:
        ValueError: for bfloat16 on a CPU that only emulates it.
    """
    if precision == "auto":
        return "bfloat16" if device.startswith("cuda") and has_bfloat16(device) else "float32"
    if precision == "bfloat16":
        refuse_emulated(device, "--precision bfloat16", "float32")
    return precision


def converted(model: Seq2Seq, device: str, precision: Precision) -> Seq2Seq:
    """A model on a device, in a precision; `auto` as in `find_precision`."""
    dtype = getattr(torch, find_precision(device, precision))
    model = model.to(dtype)
    if device == "cpu" and dtype == torch.float32:
        _transpose_weights(model)
    return model


def _transpose_weights(model: nn.Module) -> None:
    """Let linear layers' weights lie in memory as a CPU's products with few rows read them.

    Products of 5 to 40 rows then take 0.5 to 0.8 of the time. The embeddings, whose rows are
    looked up, keep a copy of a shared matrix.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            transposed = module.weight.detach().t().contiguous().t()
            module.weight = nn.Parameter(transposed, requires_grad=False)
