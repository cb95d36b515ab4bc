"""MultiONet: branch and trunk are joined at every layer, not behind the last alone (Zang et al. 2024)."""

# Legend: n rows, m sensors, d coordinates, w width; i functions, q query points.

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from lsr_hpc.models.linear import glorot_linear
from lsr_hpc.models.mlp import ACTIVATIONS

__all__ = ["MultiONet"]


class MultiONet(nn.Module):
    """``u(h)(y) = 1/L sum_l a_l <branch_l(h), trunk_l(y)> + b`` over layers l = 1 ... L of equal width.

    In front of them branch and trunk have an input layer each; an activation follows every layer.

    Args:
        sensors: Places m where the branch sees the input function.
        coordinates: Coordinates d of a query point.
        width: Width w of all layers.
        depth: Number L of joined layers.
        activation: Name of the activation.
    """

    def __init__(
        self, sensors: int, coordinates: int, width: int, depth: int, activation: str = "tanh"
    ) -> None:
        super().__init__()
        widths = [width] * (depth + 1)
        self.branch_input, self.trunk_input = glorot_linear(sensors, width), glorot_linear(coordinates, width)
        self.branch = nn.ModuleList(glorot_linear(*sizes) for sizes in pairwise(widths))
        self.trunk = nn.ModuleList(glorot_linear(*sizes) for sizes in pairwise(widths))
        self.activation = ACTIVATIONS[activation]()
        self.factors = nn.Parameter(torch.ones(depth))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        """Evaluate pairs.

        Args:
            h: Input functions at the sensors, (n, m); (n, 1, m) for several queries each.
            y: Query points, (n, d) or (n, q, d).

        Returns:
            Values, (n, 1) or (n, q, 1).
        """
        products: Tensor = self._branches(h) * self._trunks(y)
        return products.sum(dim=-1, keepdim=True) + self.bias

    def on_grid(self, h: Tensor, y: Tensor) -> Tensor:
        """Evaluate every function at every query point.

        Args:
            h: Input functions at the sensors, (i, m).
            y: Query points, (q, d).

        Returns:
            Values, (i, q); branch and trunk run once per function and once per point.
        """
        out: Tensor = self._branches(h) @ self._trunks(y).T + self.bias
        return out

    def _trunks(self, y: Tensor) -> Tensor:
        """Outputs of the trunk's layers side by side, (n, L w)."""
        return torch.cat(self._values(self.trunk_input, self.trunk, y), dim=-1)

    def _branches(self, h: Tensor) -> Tensor:
        """Outputs of the branch's layers side by side, each with its factor a_l / L, (n, L w)."""
        values = self._values(self.branch_input, self.branch, h)
        factors = self.factors / len(values)
        return torch.cat([factors[i] * v for i, v in enumerate(values)], dim=-1)

    def _values(self, first: nn.Linear, layers: nn.ModuleList, x: Tensor) -> list[Tensor]:
        """Outputs of all joined layers, each (n, w)."""
        v = self.activation(first(x))
        values = []
        for layer in layers:
            v = self.activation(layer(v))
            values.append(v)
        return values
