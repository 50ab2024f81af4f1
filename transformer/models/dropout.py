"""Dropout (paper, section 5.4)."""

from torch import Tensor, nn

from transformer.kernels import tensors


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, and the sum of a residual connection with it."""

    def forward(self, y: Tensor, x: Tensor | None = None) -> Tensor:
        """dropout(y), added to x where it is given; y and x have the same shape."""
        return tensors.dropout(y, self.p if self.training else 0.0, x)
