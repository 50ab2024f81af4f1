"""Questions about the device that computes: for which precisions has it kernels of its own?"""

import torch

from transformer.errors import UserError


def has_bfloat16(device: str) -> bool:
    """Whether a device computes in bfloat16 itself; others convert every number, which is slow.

    A CPU does where oneDNN says so: with AVX-512 or Arm's bfloat16 instructions, unless
    ONEDNN_MAX_CPU_ISA forbids them. On an x86-64 CPU without AVX-512 a product of 512-wide
    matrices took 205 ms in bfloat16 and 5 ms in float32, and there is no LSTM.

    Args:
        device: as torch names it, such as `cpu` or `cuda:1`.
    """
    if device.startswith("cuda"):
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(False)
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
        ValueError: when it does not compute in bfloat16.
    """
    if device == "cpu" and not has_bfloat16(device):
        raise UserError(
            f"{setting} cannot be used here: this CPU only emulates bfloat16, some 40 times slower "
            f"than float32, and not for every layer: use {instead}"
        )
