"""The label-smoothed loss and the learning-rate schedules.

The loss is a sum; `module.py` divides it by the target tokens of the whole optimizer step.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils import get_total_norm

from transformer.data.batching import Batch
from transformer.kernels.tensors import LOGIT_ROWS, logit_chunk

Schedule = Literal["noam", "inverse_sqrt", "constant"]


class Prepared(NamedTuple):
    """A batch, and the numbers that are known before it leaves for the device.

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


def target_rows(tgt_lengths: Tensor, width: int) -> Tensor:
    """The positions of the real target tokens in a flattened (B, T) tensor.

    Args:
        tgt_lengths: (B,) long, tokens per target.
        width: T, the padded length in tokens.

    Returns:
        (N,) long, the N unpadded positions in [0, B * T), in order.
    """
    real = torch.arange(width, device=tgt_lengths.device) < tgt_lengths[:, None]
    return real.flatten().nonzero().squeeze(1)


def label_smoothed_loss(
    project: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    rows: Tensor,
    smoothing: float,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy with label smoothing (Szegedy et al. 2016; paper, section 5.4), summed.

    The target distribution gives 1 - smoothing to the reference token and spreads smoothing evenly
    over the whole vocabulary: `logsumexp(z) - (1 - smoothing) * z[y] - smoothing * mean(z)`.
    Padding is left out before the projection; at most 127 rows of logits are computed in vain.

    Args:
        project: turns (N, D) hidden rows into (N, V) logits.
        hidden: (B, T, D) what the decoder returns.
        targets: (B, T) long, the tokens to predict.
        rows: (N,) long, the real positions, from `target_rows`.
        smoothing: the mass taken from the reference token, in [0, 1).
        compiled: let torch.compile fuse what comes after the projection.

    Returns:
        The smoothed loss, and the negative log-likelihood, which has no gradient; both in nats,
        summed over the N tokens.
    """
    filled = pad(rows, (0, -len(rows) % LOGIT_ROWS))  # with the first position
    logits = project(hidden.flatten(0, 1).index_select(0, filled))
    labels = targets.flatten().index_select(0, rows)
    loss, nll = _SmoothedCrossEntropy.apply(logits, labels, smoothing, compiled)
    return loss, nll


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Both sums, of as many rows as there are labels; the gradient takes the place of the logits.

    A linear layer does not need its result again.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, smoothing: float, compiled: bool
    ) -> tuple[Tensor, Tensor]:
        sums = _fused() if compiled else _in_chunks
        real = logits[: len(labels)]
        loss, nll = sums(real, labels[:, None], smoothing, ctx.needs_input_grad[0])
        logits[len(labels) :] = 0  # what only fills up has no gradient
        ctx.gradient = logits
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(outer[0]), None, None, None


def _in_chunks(
    logits: Tensor, labels: Tensor, smoothing: float, backward: bool
) -> tuple[Tensor, Tensor]:
    """The sums over rows (N, V) with labels (N, 1), while a chunk of rows is in the cache."""
    exact = torch.promote_types(logits.dtype, torch.float32)
    step = logit_chunk(logits)
    # One workspace for all chunks: fresh memory would have to be cleared by the system first.
    workspace = logits.new_empty(min(step, len(logits)), logits.shape[1], dtype=exact)
    loss, nll = logits.new_zeros((), dtype=exact), logits.new_zeros((), dtype=exact)
    for chunk, label in zip(logits.split(step), labels.split(step), strict=True):
        values = workspace[: len(chunk)].copy_(chunk)
        chosen, mean = values.gather(1, label), values.mean(1, keepdim=True)
        top = values.amax(1, keepdim=True)
        total = values.sub_(top).exp_().sum(1, keepdim=True)
        log_total = total.log().add_(top)
        nll += (log_total - chosen).sum()
        loss += (log_total - (1 - smoothing) * chosen - smoothing * mean).sum()
        if backward:  # softmax - smoothing / V, and - (1 - smoothing) at the label
            values.mul_(total.reciprocal()).sub_(smoothing / values.shape[1])
            values.scatter_add_(1, label, values.new_full((1, 1), smoothing - 1).expand_as(label))
            chunk.copy_(values)
    return loss, nll


@cache
def _fused() -> Callable[..., tuple[Tensor, Tensor]]:
    """The same by torch.compile, which needs no float32 copy of the logits to be written."""

    def sums(
        logits: Tensor, labels: Tensor, smoothing: float, backward: bool
    ) -> tuple[Tensor, Tensor]:
        values = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_total = values.logsumexp(1, keepdim=True)
        chosen, mean = values.gather(1, labels), values.mean(1, keepdim=True)
        if backward:
            tokens = torch.arange(logits.shape[1], device=logits.device)
            target = torch.where(tokens == labels, 1 - smoothing, 0.0) + smoothing / len(tokens)
            logits.copy_((values - log_total).exp() - target)
        loss = log_total - (1 - smoothing) * chosen - smoothing * mean
        return loss.sum(), (log_total - chosen).sum()

    return torch.compile(sums, dynamic=True)


def divide_and_clip_(
    gradients: list[Tensor], tokens: Tensor, parts: int, clip: float | None
) -> Tensor:
    """Turn the gradients of a sum over tokens into those of their mean, and clip them, in place.

    Args:
        gradients: of an optimizer step, on one device.
        tokens: scalar, the target tokens of the step, on the same device.
        parts: by which the loss was divided already: micro-batches times processes.
        clip: the largest norm that all gradients together may have; None or 0 for any.

    Returns:
        Scalar, their norm before clipping.
    """
    scale = parts / tokens.to(torch.promote_types(gradients[0].dtype, torch.float32))
    norm = get_total_norm(gradients) * scale
    if clip:
        scale = scale * (clip / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))
    return norm


def learning_rate(
    schedule: Schedule, step: int, factor: float, warmup_steps: int, d_model: int
) -> float:
    """The learning rate of one optimizer step.

    `noam` is the paper's equation 3; `inverse_sqrt` rises linearly to `factor` and then falls with
    `sqrt(warmup_steps / step)`; `constant` rises linearly to `factor` and stays.

    Args:
        schedule: which of the three.
        step: the optimizer step, counted from 1.
        factor: for `noam` multiplies equation 3 (1 in the paper), else the highest learning rate.
        warmup_steps: optimizer steps of linear rise; 0 for none.
        d_model: the model's width.
    """
    warmup_steps = max(warmup_steps, 1)
    if schedule == "noam":
        return factor * d_model**-0.5 * min(step**-0.5, step * warmup_steps**-1.5)
    rise = min(1.0, step / warmup_steps)
    fall = (warmup_steps / step) ** 0.5 if schedule == "inverse_sqrt" else 1.0
    return factor * min(rise, fall)
