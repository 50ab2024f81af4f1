"""Operations on tensors, in the form and the size that the device computes fastest.

Shapes: L layers, B sentences, N beams, H heads, S keys, K head size, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FEW = 8  # queries; see fused_attention_is_slow
_VECTOR = 16  # on a CPU softmax over 14 float32 keys takes 14 times as long as over 16
_LEVELS = 2**16  # of a dropout rate
_GROUP = 100  # tokens whose maximum is looked at first
_BLOCK = 160  # rows of logits that are made, and used, at a time on a CPU
# Rows of logits handled at once hold about this many numbers: on a CPU they stay in its cache,
# on a GPU few kernels are launched. Measured on 3,830 x 10,000 logits of 128 values with two AMX
# threads, forward and backward with the projection: 68 ms in bfloat16 and 149 ms in float32,
# `F.linear_cross_entropy` 94 and 192 ms.
_CPU_CHUNK, _GPU_CHUNK = 2**19, 2**26
#: Rows of logits come in multiples of this: for every other number of rows oneDNN would make three
#: kernels, which took 33 ms in each step of the tiny model, and keep them between freed tensors.
LOGIT_ROWS = 128


def fused_attention_is_slow(query: Tensor, dropout: float) -> bool:
    """Whether softmax written out takes less time than torch's fused kernel.

    Training in bfloat16, forward and backward of 132 sentences with 31 tokens and 8 heads of 64 on
    two AMX cores: fused 54 ms, fused in float32 22 ms, written out 16 ms (in float32 21 ms against
    19 ms fused). A decoding step in float32 on one core, 64 sentences with 5 beams and 4 heads of
    32: with 60 keys fused 0.80 ms, written out 0.46 ms; with 16 keys 0.17 ms and 0.12 ms.
    """
    if not query.is_cpu or torch.compiler.is_compiling():  # a graph serves all sizes
        return False
    if query.requires_grad:
        return query.dtype == torch.bfloat16 or dropout > 0
    return query.dtype == torch.float32 and query.size(-2) <= _FEW


def in_residual_type(x: Tensor) -> Tensor:
    """An embedding in the type in which the residual sums of all layers go on from there.

    On a CPU that is autocast's; on a GPU its layer normalisation gives float32 whatever it gets.
    """
    autocast = x.is_cpu and torch.is_autocast_enabled("cpu")
    return x.to(torch.get_autocast_dtype("cpu")) if autocast else x


def dropout(y: Tensor, rate: float, x: Tensor | None = None) -> Tensor:
    """y with a share `rate` of its values set to zero and the others scaled up, added to x.

    On a CPU the masks are drawn several times faster than torch's, and applied in one pass. The
    distribution is that of `torch.nn.functional.dropout`, up to the keeping probability being a
    multiple of 2^-16; the scale is that of the probability which is really used, so that the
    expectation is exact.
    """
    if rate and y.is_cpu and not torch.compiler.is_compiling():
        return _Masked.apply(y, x, rate)
    dropped = F.dropout(y, rate) if rate else y
    return dropped if x is None else x + dropped


class _Masked(torch.autograd.Function):
    """x + y * mask * scale in one pass over memory."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor | None, rate: float) -> Tensor:
        dropped = min(round(rate * _LEVELS), _LEVELS - 1)
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


def rooms(layers: int, keys: Tensor, values: Tensor, size: int) -> list[Tensor]:
    """Fresh memory (L, B, H, size, K) for keys and for values like these (B, H, S, K).

    On a CPU the keys lie transposed in it: their product with a few queries takes half the time.
    """
    of_values = values.new_empty(layers, *values.shape[:2], size, values.size(3))
    if keys.is_cpu:
        return [keys.new_empty(layers, *keys.shape[:2], keys.size(3), size).mT, of_values]
    return [keys.new_empty(layers, *keys.shape[:2], size, keys.size(3)), of_values]


def whole_vectors(keys: Tensor) -> int:
    """For how many keys to make room so that attention to the keys (B, H, S, K) is fast."""
    return keys.size(2) + (-keys.size(2) % _VECTOR if keys.is_cpu else 0)


def transpose_weights(model: nn.Module) -> None:
    """Let linear layers' weights lie in memory as a CPU's float32 products with few rows read them.

    Products of 5 to 40 rows then take 0.5 to 0.8 of the time. The embeddings, whose rows are
    looked up, keep a copy of a shared matrix. Other devices and types are left as they are.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.detach()
            if weight.is_cpu and weight.dtype == torch.float32:
                module.weight = nn.Parameter(weight.t().contiguous().t(), requires_grad=False)


def sentence_blocks(scores: Tensor) -> Iterator[slice]:
    """Cuts the B sentences of scores (B, N) where their logits should be made and used at a time.

    On a CPU, logits that stay in its cache, and in memory that is reused, take half the time.
    """
    size = max(1, _BLOCK // scores.size(1)) if scores.is_cpu else len(scores)
    for start in range(0, len(scores), size):
        yield slice(start, start + size)


def largest_sums(scores: Tensor, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of scores (B, N) + log_probs (B, N, V), and their places in [0, N * V).

    They lie in the `count` groups of tokens with the highest maxima. To look for those takes a
    tenth of the time of `topk` over 10,000 logits, which took as long as computing them.
    """
    batch, beams, vocabulary = log_probs.shape
    groups = vocabulary // _GROUP
    grouped = groups * _GROUP if beams * groups > count else 0
    starts = torch.arange(0, beams * vocabulary, vocabulary, device=scores.device)
    rest = torch.arange(grouped, vocabulary, device=scores.device)
    places = (starts[:, None] + rest).flatten().expand(batch, -1)
    totals = (log_probs[:, :, grouped:] + scores[:, :, None]).flatten(1)
    if grouped:
        maxima = log_probs[:, :, :grouped].unflatten(-1, (groups, _GROUP)).amax(-1)
        chosen = (maxima + scores[:, :, None]).flatten(1).topk(count, -1, sorted=False).indices
        parents = chosen // groups
        firsts = starts[parents] + chosen % groups * _GROUP
        inside = firsts[:, :, None] + torch.arange(_GROUP, device=scores.device)
        found = log_probs.flatten(1).gather(1, inside.flatten(1)).view_as(inside)
        found = found + scores.gather(1, parents)[:, :, None]
        places = torch.cat([places, inside.flatten(1)], 1)
        totals = torch.cat([totals, found.flatten(1)], 1)
    best, index = totals.topk(count, -1)
    return best, places.gather(1, index)


def logit_chunk(logits: Tensor) -> int:
    """How many rows of logits (N, V) the loss should handle at once."""
    return max(1, (_GPU_CHUNK if logits.is_cuda else _CPU_CHUNK) // logits.shape[1])
