"""Attention weights, recorded while a model runs, so that no layer has to hand them on."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["encoder", "decoder", "cross"]
#: What the modules of each kind are named; the last is that of the recurrent decoder.
NAMES: dict[Kind, str] = {
    "encoder": r"encoder\.\d+\.self_attention",
    "decoder": r"decoder\.\d+\.self_attention",
    "cross": r"decoder\.\d+\.cross_attention|attention",
}


@contextmanager
def recorded(model: nn.Module, *kinds: Kind) -> Iterator[dict[Kind, Tensor]]:
    """Records the weights of some kinds of attention; the other kinds keep their fused kernels.

    Args:
        model: that is run meanwhile; what other threads run with it is left alone.
        kinds: `encoder` and `decoder` for self-attention, which a recurrent model lacks; `cross`.

    Yields:
        A dictionary that holds at the end, for each kind that there is, the weights (B, L, H, T, S)
        of all layers and calls.
    """
    calls: dict[Kind, list[list[Tensor]]] = {kind: [] for kind in kinds}
    handles, weights, thread = [], dict[Kind, Tensor](), get_ident()
    for name, module in model.named_modules():
        for kind in kinds:
            if re.fullmatch(NAMES[kind], name):
                calls[kind].append([])
                handles += [
                    module.register_forward_pre_hook(partial(_ask, thread), with_kwargs=True),
                    module.register_forward_hook(partial(_keep, thread, calls[kind][-1])),
                ]
    try:
        yield weights
    finally:
        for handle in handles:
            handle.remove()
    for kind, layers in calls.items():
        if layers:
            weights[kind] = torch.stack([torch.cat(steps, 2) for steps in layers], 1)


def _ask(thread: int, module: nn.Module, args: Any, options: dict[str, Any]) -> Any:
    return (args, {**options, "need_weights": True}) if thread == get_ident() else None


def _keep(thread: int, weights: list[Tensor], module: nn.Module, args: Any, attended: Any) -> None:
    if thread == get_ident():
        weights.append(attended.weights)
