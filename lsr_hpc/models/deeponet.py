"""DeepONet: u(h)(y) = <branch(h at m sensors), trunk(y)>, without output bias (Lu et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lsr_hpc.models.mlp import MLP
from lsr_hpc.models.modified_mlp import ModifiedMLP

__all__ = ["BoundDeepONet", "DeepONet"]


class DeepONet(nn.Module):
    """Branch and trunk networks joined by a scalar product.

    Args:
        branch: Layer sizes of the branch, sensors first.
        trunk: Layer sizes of the trunk, query coordinates first; ends like the branch.
        activation: Name of the activation.
        modified: Whether both are modified MLPs, whose activation is tanh, instead of plain ones.
    """

    branch: MLP | ModifiedMLP
    trunk: MLP | ModifiedMLP

    def __init__(
        self, branch: Sequence[int], trunk: Sequence[int], activation: str = "tanh", modified: bool = False
    ) -> None:
        super().__init__()
        if modified:
            self.branch, self.trunk = ModifiedMLP(branch), ModifiedMLP(trunk)
        else:
            self.branch, self.trunk = MLP(branch, activation), MLP(trunk, activation)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        """Evaluate pairs.

        Args:
            h: Input functions at the sensors, (n, m), or (1, m) for one at all queries; (n, 1, m) for
                several queries each.
            y: Query points, (n, d) or (n, q, d).

        Returns:
            Values, (n, 1) or (n, q, 1).
        """
        products: Tensor = self.branch(h) * self.trunk(y)
        return products.sum(dim=-1, keepdim=True)

    def on_grid(self, h: Tensor, y: Tensor) -> Tensor:
        """Evaluate every function at every query point.

        Args:
            h: Input functions at the sensors, (i, m).
            y: Query points, (q, d).

        Returns:
            Values, (i, q); branch and trunk run once per function and once per point.
        """
        out: Tensor = self.branch(h) @ self.trunk(y).T
        return out


class BoundDeepONet(nn.Module):
    """A DeepONet with its input function fixed: one instance of an operator, a field of y alone.

    Args:
        operator: The network, or the arguments of one (so that a stored predictor can be rebuilt).
        h: The input function at the sensors, shape (m,); zeros until a state is loaded.
    """

    h: Tensor

    def __init__(self, operator: DeepONet | dict[str, object], h: Tensor | None = None) -> None:
        super().__init__()
        self.operator = operator if isinstance(operator, DeepONet) else DeepONet(**operator)  # type: ignore[arg-type]
        first = self.operator.branch.layers[0]
        assert isinstance(first, nn.Linear)
        self.register_buffer("h", torch.zeros(first.in_features) if h is None else h)

    def forward(self, y: Tensor) -> Tensor:
        """Map query points (n, d) to values (n, 1)."""
        out: Tensor = self.operator(self.h.unsqueeze(0), y)
        return out
