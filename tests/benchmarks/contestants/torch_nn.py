"""`torch.nn.Transformer`, with the embeddings around it that every user writes."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..worker import Handlers, run
from .torch_loop import Ids, Loop

LONGEST = 1024  # positions in the table


class Model(nn.Module):
    """Post-norm, one matrix for both embeddings and the output, dropout on residuals alone."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        d_model, layers = shape["d_model"], shape["num_layers"]
        self.tokens = nn.Embedding(shape["vocab"], d_model)
        nn.init.normal_(self.tokens.weight, std=d_model**-0.5)
        self.register_buffer("positions", sinusoids(LONGEST, d_model))
        self.dropout = nn.Dropout(shape["dropout"])
        self.transformer = nn.Transformer(
            d_model, shape["num_heads"], layers, layers, shape["d_ff"], shape["dropout"],
            batch_first=True,
        )  # fmt: skip
        # The same regularisation as everybody's: what torch drops beside it costs it time.
        for module in self.transformer.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = 0.0
            elif isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                module.dropout = nn.Dropout(0.0)

    def forward(self, ids: Ids) -> Tensor:
        """Logits (B, T, V)."""
        padding = torch.arange(ids.src.size(1), device=ids.src.device) >= ids.src_lengths[:, None]
        width = ids.tgt_in.size(1)
        later = torch.ones(width, width, dtype=torch.bool, device=ids.src.device).triu(1)
        hidden = self.transformer(
            self.embed(ids.src), self.embed(ids.tgt_in), tgt_mask=later, tgt_is_causal=True,
            src_key_padding_mask=padding, memory_key_padding_mask=padding,
        )  # fmt: skip
        return F.linear(hidden, self.tokens.weight)

    def embed(self, ids: Tensor) -> Tensor:
        """Ids (B, T) -> (B, T, D)."""
        scaled = self.tokens(ids) * math.sqrt(self.tokens.embedding_dim)
        return self.dropout(scaled + self.get_buffer("positions")[: ids.size(1)])


def sinusoids(length: int, d_model: int) -> Tensor:
    """The paper's table of positions, (length, D)."""
    rates = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10_000.0) / d_model))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def build(job: dict[str, Any]) -> tuple[Handlers, dict[str, Any]]:
    """Training alone."""
    torch.manual_seed(1)
    model = Model(job["shape"])
    loop = Loop(job, model, model)
    words = "float32" if loop.precision == "float32" else "bfloat16 autocast"
    return loop.handlers, loop.ready(f"{words}, fused Adam")


if __name__ == "__main__":
    run(build)
