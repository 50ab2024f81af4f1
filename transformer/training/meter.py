"""Sums over training steps, kept where the numbers are, so that no step waits for the device."""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from transformer.data.batching import Batch
from transformer.errors import UserError
from transformer.training.objective import target_rows


class Prepared(NamedTuple):
    """A batch, and what is known about it before it leaves for the device.

    batch: the batch. rows: (N,) long, where the real target tokens lie in the flattened (B, T).
    src_tokens, tgt_tokens: real tokens. padded_tokens: tokens with padding, both sides together.
    """

    batch: Batch
    rows: Tensor
    src_tokens: int
    tgt_tokens: int
    padded_tokens: int

    def pin(self) -> "Prepared":
        """The same in pinned memory, from which a GPU can fetch it by itself."""
        batch = Batch(*(tensor.pin_memory() for tensor in self.batch))
        return self._replace(batch=batch, rows=self.rows.pin_memory())


def prepare(batch: Batch) -> Prepared:
    """Count a batch's tokens while it is still on the host."""
    return Prepared(
        batch=batch,
        rows=target_rows(batch.tgt_lengths, batch.tgt_out.shape[1]),
        src_tokens=int(batch.src_lengths.sum()),
        tgt_tokens=int(batch.tgt_lengths.sum()),
        padded_tokens=batch.src.numel() + batch.tgt_out.numel(),
    )


class NotFinite(UserError):
    """The loss or the gradient of an optimizer step is NaN or infinite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss or its gradient became NaN or infinite at step {step:,}")
        self.step = step


class Reading(NamedTuple):
    """Sums over a window of steps and all processes; losses in nats."""

    loss: float
    nll: float
    src_tokens: int
    tgt_tokens: int
    padded_tokens: int


@dataclass
class Meter:
    """What the steps since the last `clear` add up to.

    Losses and gradient norms stay separate scalars on the device until `read`: adding them up
    would cost a kernel each, and would hide which step was the first to go wrong.
    """

    losses: list[Tensor] = field(default_factory=list)
    nlls: list[Tensor] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=lambda: [0, 0, 0])

    def add(self, loss: Tensor, nll: Tensor, prepared: Prepared, step: int) -> None:
        """Count one micro-batch of optimizer step `step`; the losses are sums over its tokens."""
        self.losses.append(loss.detach())
        self.nlls.append(nll)
        self.steps.append(step)
        for i, count in enumerate(
            (prepared.src_tokens, prepared.tgt_tokens, prepared.padded_tokens)
        ):
            self.tokens[i] += count

    def clear(self) -> None:
        """Begin a new window."""
        self.losses, self.nlls, self.norms, self.steps = [], [], [], []
        self.tokens = [0, 0, 0]

    def read(self, trainer: Trainer) -> Reading | None:
        """Add up the window over all processes, each of which must call this.

        Returns:
            The sums, or None before the first step of a window.

        Raises:
            NotFinite: in every process, when any of them met a NaN or an infinite number.
        """
        if not self.losses:
            return None
        losses = torch.stack(self.losses).tolist()
        nll = torch.stack(self.nlls).sum().item()
        norms = torch.stack(self.norms).tolist() if self.norms else []
        local = [sum(losses), nll, sum(losses) + sum(norms), *self.tokens]
        loss, nll, worst, *tokens = sum_over_processes(trainer, local)
        if not math.isfinite(worst):
            raise NotFinite(self._first_bad_step(losses, norms))
        return Reading(loss, nll, *(round(count) for count in tokens))

    def _first_bad_step(self, losses: list[float], norms: list[float]) -> int:
        bad = [
            step for step, loss in zip(self.steps, losses, strict=True) if not math.isfinite(loss)
        ]
        # Each optimizer step has one norm, and the last of them belongs to the last step.
        first = self.steps[-1] - len(norms) + 1
        bad += [first + i for i, norm in enumerate(norms) if not math.isfinite(norm)]
        return min(bad, default=self.steps[-1])  # none of this process: then it is another's


def sum_over_processes(trainer: Trainer, values: list[float]) -> list[float]:
    """Sums of numbers over all processes, each of which must call this."""
    if trainer.world_size == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=trainer.strategy.root_device)
    reduced = trainer.strategy.reduce(tensor, reduce_op="sum")
    assert isinstance(reduced, Tensor)
    return reduced.tolist()
