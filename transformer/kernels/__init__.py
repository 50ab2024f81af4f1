"""All that is there for speed on this or that device, with its measurement.

Here the questions about a device: is it there, and for which precisions has it kernels of its own?
`process.py` has memory and threads of the process, `tensors.py` has operations on tensors. Models,
training and inference say what they compute, and this room how.
"""

from typing import Literal

import torch

from transformer.errors import UserError

Precision = Literal[
    "auto", "float32", "bfloat16",
    # of other engines
    "float16", "int16", "int8", "int8_float32", "int8_float16", "int8_bfloat16",
]  # fmt: skip

# MKL's vector functions (exp, sin, ...) get ready in their first call. Where that runs on several
# threads, one of them may compute with less precision meanwhile: in one process of eight the first
# sines were off by 7e-9, and two runs of the same recipe differed from then on. So it is this one.
torch.zeros(1, device="cpu").exp()


def find_device(name: str) -> str:
    """The device of a name; `auto` is a CUDA GPU where there is one, else the CPU.

    Raises:
        UserError: when there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name} cannot be used here ({reason}): try cpu") from None
    return name


def find_precision(device: str, precision: Precision) -> Literal["float32", "bfloat16"]:
    """The precision of a name; `auto` is bfloat16 on GPUs that compute in it, else float32.

    Raises:
        UserError: for bfloat16 on a CPU that only emulates it, and for those of other engines.
    """
    if precision == "auto":
        return "bfloat16" if device.startswith("cuda") and has_bfloat16(device) else "float32"
    if precision not in ("float32", "bfloat16"):
        raise UserError(
            f"precision {precision}: torch translates in float32 or bfloat16: take one of them, or "
            "engine ctranslate2"
        )
    if precision == "bfloat16":
        refuse_emulated(device, "precision bfloat16", "float32")
    return precision


def has_bfloat16(device: str) -> bool:
    """Whether a device computes in bfloat16 itself; others convert every number, which is slow.

    A CPU does where oneDNN says so: with AVX-512 or Arm's bfloat16 instructions, unless
    ONEDNN_MAX_CPU_ISA forbids them. On an x86-64 CPU without AVX-512 a product of 512-wide
    matrices took 205 ms in bfloat16 and 5 ms in float32, and there is no LSTM.

    Args:
        device: as torch names it, such as `cpu` or `cuda:1`.
    """
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            return False
        with torch.cuda.device(device):  # the question is about the current one
            return torch.cuda.is_bf16_supported(False)
    # An operator of torch's builds with oneDNN.
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", bool)
    return device == "cpu" and ask()


def trains_in_bfloat16(device: str) -> bool:
    """Whether training is faster in bfloat16: on GPUs that have it and on CPUs with AMX.

    With AMX the products are about eight times as fast, and a training step of the tiny
    Transformer 1.3 times, of the base model 2.6 times.
    """
    amx = torch.cpu._is_amx_tile_supported()
    return has_bfloat16(device) and (amx or device != "cpu")


def refuse_emulated(device: str, setting: str, instead: str) -> None:
    """Refuse bfloat16 on a CPU that has no kernels for it.

    Args:
        device: as torch names it.
        setting: the setting that asks for bfloat16, and its value.
        instead: the value to take.

    Raises:
        UserError: when it does not compute in bfloat16.
    """
    if device == "cpu" and not has_bfloat16(device):
        raise UserError(
            f"{setting} cannot be used here: this CPU only emulates bfloat16, some 40 times slower "
            f"than float32, and not for every layer: use {instead}"
        )
