"""What training minimises, and how fast: the label-smoothed loss and the learning-rate schedules.

Both are sums and functions of plain numbers; how they are normalised over micro-batches and
processes is decided in `module.py`.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Schedule = Literal["noam", "inverse_sqrt", "constant"]

# Rows of logits handled at once hold about this many numbers: on a CPU they stay in its cache,
# on a GPU few kernels are launched. Measured on 4,000 x 10,000 float32 logits with two threads,
# forward and backward with the projection: 239 ms against 398 ms for two `F.cross_entropy` calls.
_CPU_CHUNK, _GPU_CHUNK = 2**19, 2**26


def target_rows(tgt_lengths: Tensor, width: int) -> Tensor:
    """Where the real target tokens lie in a flattened (B, T) tensor.

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
) -> tuple[Tensor, Tensor]:
    """Cross-entropy with label smoothing (Szegedy et al. 2016; paper, section 5.4), summed.

    The target distribution gives 1 - smoothing to the reference token and spreads smoothing evenly
    over the whole vocabulary: `logsumexp(z) - (1 - smoothing) * z[y] - smoothing * mean(z)`.
    Padding is left out before the projection, so that it never costs a row of logits.

    Args:
        project: turns (N, D) hidden rows into (N, V) logits.
        hidden: (B, T, D) what the decoder returns.
        targets: (B, T) long, the tokens to predict.
        rows: (N,) long, the real positions, from `target_rows`.
        smoothing: the mass taken from the reference token, in [0, 1).

    Returns:
        The smoothed loss, with a gradient, and the plain negative log-likelihood without one; both
        scalars in nats, summed over the N tokens.
    """
    logits = project(hidden.flatten(0, 1).index_select(0, rows))
    labels = targets.flatten().index_select(0, rows)
    loss, nll = _SmoothedCrossEntropy.apply(logits, labels, smoothing)
    return loss, nll


class _SmoothedCrossEntropy(torch.autograd.Function):
    """Both sums, and the gradient while a chunk of the logits is still in the cache."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        wanted = logits.requires_grad or ctx.needs_input_grad[0]
        gradient = torch.empty_like(logits) if wanted else None
        exact = torch.promote_types(logits.dtype, torch.float32)
        loss = logits.new_zeros((), dtype=exact)
        nll = logits.new_zeros((), dtype=exact)
        budget = _GPU_CHUNK if logits.is_cuda else _CPU_CHUNK
        step = max(1, budget // logits.shape[1])
        for start in range(0, len(logits), step):
            chunk = slice(start, start + step)
            log_probs = torch.log_softmax(logits[chunk], dim=-1, dtype=exact)
            chunk_nll = -log_probs.gather(1, labels[chunk, None]).sum()
            nll += chunk_nll
            loss += (1 - smoothing) * chunk_nll - smoothing * log_probs.mean(dim=1).sum()
            if gradient is not None:
                gradient[chunk] = _gradient(log_probs, labels[chunk, None], smoothing)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(outer[0]), None, None


def _gradient(log_probs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """d loss / d logits = softmax - smoothing / V - (1 - smoothing) at the label; in place."""
    gradient = log_probs.exp_().sub_(smoothing / log_probs.shape[1])
    return gradient.scatter_add_(
        1, labels, gradient.new_full((1, 1), smoothing - 1).expand_as(labels)
    )


def learning_rate(
    schedule: Schedule, step: int, *, peak: float, warmup_steps: int, d_model: int
) -> float:
    """The learning rate of one optimizer step.

    `noam` is the paper's equation 3, `peak * d_model^-0.5 * min(step^-0.5, step * warmup^-1.5)`;
    `inverse_sqrt` rises linearly to `peak` and then falls with `sqrt(warmup / step)`; `constant`
    rises linearly to `peak` and stays.

    Args:
        schedule: which of the three.
        step: the optimizer step, counted from 1.
        peak: for `noam` a factor (1 in the paper), else the highest learning rate.
        warmup_steps: optimizer steps of linear rise; 0 for none.
        d_model: the model's width.

    Returns:
        The learning rate.
    """
    rise = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    if schedule == "constant":
        return peak * rise
    knee = max(warmup_steps, 1)
    shape = min(rise, (knee / step) ** 0.5)
    if schedule == "inverse_sqrt":
        return peak * shape
    return peak * (d_model * knee) ** -0.5 * shape
