"""Positions (paper, section 3.5): what tells the model where a token stands."""

from typing import Any

import torch
from torch import Tensor, nn

from transformer.errors import UserError


def sinusoidal(length: int, d_model: int, start: int = 0) -> Tensor:
    """The paper's table of sinusoids, (length, d_model), of the positions from `start` on.

    PE(pos, 2i) = sin(pos / 10000^(2i / d_model)); PE(pos, 2i + 1) = cos of the same angle.
    """
    # Computed in float64, which not every device has: float32 angles are off by 1e-4 after a few
    # thousand positions.
    exact: Any = {"dtype": torch.float64, "device": "cpu"}
    frequency = 10000 ** (-torch.arange(0, d_model, 2, **exact) / d_model)
    angle = torch.arange(start, start + length, **exact)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :d_model].float()


class SinusoidalPositions(nn.Module):
    """The sinusoids as a table that grows with the longest sequence seen; nothing is learned."""

    table: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        # Filled when first used: a model built on the meta device has real sinusoids, too.
        self.register_buffer("table", torch.empty(0, d_model, device="cpu"), persistent=False)

    def forward(self, start: int, length: int) -> Tensor:
        """Vectors (length, D) of the positions start .. start + length - 1."""
        table = self.table  # other threads may put theirs in its place, even a shorter one
        if start + length > len(table):
            size = max(256, start + length, 2 * len(table))
            self.table = table = sinusoidal(size, table.size(1)).to(table)
        return table[start : start + length]


class LearnedPositions(nn.Module):
    """One learned vector (D,) for each of `max_positions` positions (paper, Table 3, row E)."""

    def __init__(self, max_positions: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(max_positions, d_model))
        nn.init.normal_(self.table, std=d_model**-0.5)

    def forward(self, start: int, length: int) -> Tensor:
        """Vectors (length, D) of the positions from `start` on.

        Raises:
            UserError: when one of them is beyond the last learned position.
        """
        if start + length > len(self.table):
            raise UserError(
                f"a sequence of {start + length} tokens reaches beyond the {len(self.table)} "
                "learned positions: shorten it, or train with a larger model.network.max_positions "
                "or with model.network.positions: sinusoidal"
            )
        return self.table[start : start + length]
