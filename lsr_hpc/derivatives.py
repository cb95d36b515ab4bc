"""Input derivatives of a field for use inside residuals, by forward-mode ``torch.func``.

They compose with the parameter derivatives that LSR takes around them. Each assumes that output row i
depends on input row i alone, so one tangent serves all rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lsr_hpc.autodiff import push_forward

__all__ = ["along", "second_along", "value_and_along", "value_and_two_along"]

PointwiseField = Callable[[Tensor], Tensor]


def _direction(x: Tensor, axis: int) -> Tensor:
    direction = torch.zeros_like(x)
    direction[..., axis] = 1.0
    return direction


def value_and_along(u: PointwiseField, x: Tensor, axis: int = 0) -> tuple[Tensor, Tensor]:
    """Value and first derivative along one coordinate.

    Args:
        u: Field of one input.
        x: Points, shape (n, d).
        axis: Coordinate to differentiate, 0 <= axis < d.

    Returns:
        ``u(x)`` and ``du/dx_axis``, each (n, C).
    """
    return push_forward(u, x, _direction(x, axis))


def along(u: PointwiseField, x: Tensor, axis: int = 0) -> Tensor:
    """First derivative ``du/dx_axis``, shape (n, C).

    Args:
        u: Field of one input.
        x: Points, shape (n, d).
        axis: Coordinate to differentiate.

    Returns:
        The derivative at every point.
    """
    return value_and_along(u, x, axis)[1]


def second_along(u: PointwiseField, x: Tensor, axis: int = 0) -> Tensor:
    """Second derivative ``d2u/dx_axis^2``, shape (n, C).

    Args:
        u: Field of one input.
        x: Points, shape (n, d).
        axis: Coordinate to differentiate twice.

    Returns:
        The derivative at every point.
    """
    return along(lambda z: along(u, z, axis), x, axis)


def value_and_two_along(u: PointwiseField, x: Tensor, axis: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Value, first and second derivative along one coordinate, from one evaluation.

    Args:
        u: Field of one input.
        x: Points, shape (n, d).
        axis: Coordinate to differentiate.

    Returns:
        ``u(x)``, ``du/dx_axis`` and ``d2u/dx_axis^2``, each (n, C).
    """
    first, second = value_and_along(lambda z: torch.stack(value_and_along(u, z, axis)), x, axis)
    return first[0], first[1], second[1]
