"""Multilayer perceptron whose hidden layers mix two encodings of the input (Wang, Teng, Perdikaris 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lsr_hpc.errors import JobError
from lsr_hpc.models.linear import glorot_linear

__all__ = ["ModifiedMLP"]


class ModifiedMLP(nn.Module):
    """``U = tanh(W_U x + b_U)``, ``V = tanh(W_V x + b_V)``; every hidden layer gives ``o U + (1 - o) V``.

    There ``o = tanh(W h + b)`` of the layer before, x at first; the last layer is linear. All parameters are
    those of linear layers, so that the Jacobian can be factored.

    Args:
        widths: Layer sizes, input and output included; at least one hidden layer, all of one size.

    Raises:
        JobError: If there is no hidden layer, or they differ in size.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        if len(set(widths[1:-1])) != 1:
            raise JobError(f"layer sizes {list(widths)}: a modified MLP needs hidden layers, all of one size")
        self.encoders = nn.ModuleList([glorot_linear(widths[0], widths[1]) for _ in range(2)])
        self.layers = nn.ModuleList([glorot_linear(n_in, n_out) for n_in, n_out in pairwise(widths)])

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs (n, widths[0]) to outputs (n, widths[-1])."""
        u, v = (torch.tanh(encoder(x)) for encoder in self.encoders)
        hidden = x
        for layer in self.layers[:-1]:
            hidden = v + torch.tanh(layer(hidden)) * (u - v)
        out: Tensor = self.layers[-1](hidden)
        return out
