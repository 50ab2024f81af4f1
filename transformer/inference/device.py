"""Where a model translates: the device, the precision, and how its weights lie in memory."""

from typing import Literal

import torch
from torch import nn

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
        raise ValueError(f"--device {name} cannot be used here ({reason}): try cpu") from None
    return name


def converted(model: Seq2Seq, device: str, precision: Precision) -> Seq2Seq:
    """A model on a device, in a precision; `auto` is bfloat16 on GPUs that compute in it."""
    if precision == "auto":
        # Cards that only emulate bfloat16 are slower with it.
        fast = device.startswith("cuda") and torch.cuda.is_bf16_supported(False)
        precision = "bfloat16" if fast else "float32"
    model = model.to(getattr(torch, precision))
    if device == "cpu" and precision == "float32":
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
