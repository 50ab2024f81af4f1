"""Callbacks that break an optimizer step, and one that takes a step back."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from transformer.training.logging import stepped

Kind = Literal["nan", "inf", "gradient", "spike"]
KINDS: tuple[Kind, ...] = ("nan", "inf", "gradient", "spike")
FACTORS = {"nan": float("nan"), "inf": float("inf"), "spike": 1000.0}


class Break(Callback):
    """Breaks the loss of one micro-batch of one process, or only its gradient.

    Args:
        kind: the loss becomes NaN, infinite or a thousand times as large, or its gradient infinite.
        micro_batch: which one, from 0.
        rank: of the process.
    """

    def __init__(self, kind: Kind, micro_batch: int, rank: int = 0) -> None:
        self.kind, self.micro_batch, self.rank = kind, micro_batch, rank
        self.indices: list[int] = []  # of the pairs in it

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        right = pl_module.loss

        def broken(prepared: Any) -> tuple[Tensor, Tensor]:
            loss, nll = right(prepared)
            if not trainer.training or pl_module.micro_batches != self.micro_batch:
                return loss, nll
            self.indices = prepared.batch.indices.tolist()
            if self.kind == "gradient":
                return _Explosion.apply(loss), nll
            return loss * FACTORS[self.kind], nll * FACTORS[self.kind]

        if trainer.global_rank == self.rank:
            pl_module.loss = broken


class _Explosion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("inf")


class Undo(Callback):
    """Puts weights and moments back to where they were before an optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.before: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step == self.step - 1 and self.before is None:
            [optimizer] = trainer.optimizers
            self.before = copy.deepcopy((pl_module.state_dict(), optimizer.state_dict()))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if stepped(trainer) and trainer.global_step == self.step:
            [optimizer] = trainer.optimizers
            rate = optimizer.param_groups[0]["lr"]
            pl_module.load_state_dict(self.before[0])
            optimizer.load_state_dict(self.before[1])
            optimizer.param_groups[0]["lr"] = rate  # the schedule has moved on


def state(trainer: Trainer, module: Any) -> list[Tensor]:
    """Weights and moments."""
    moments = trainer.optimizers[0].state_dict()["state"].values()
    return [*module.state_dict().values(), *(x for state in moments for x in state.values())]
