"""Reaction u_t = 5 u (1 - u) on [0, 2 pi] x [0, 1], periodic in x, by a physics-informed tanh network.

u(x, 0) = h = exp(-8 (x - pi)^2 / pi^2), so that u = h e^(5 t) / (h e^(5 t) + 1 - h). Nonlinear in u.
Published (Rathore et al. 2024, as for ``convection``): 1.92e-2 by Adam and L-BFGS, 9.92e-3 after their
refiner. Error on 129 x 101 points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lsr_hpc.derivatives import value_and_along
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.problems.physics_informed import Box, Draws, PhysicsInformed, initial_and_periodic

__all__ = ["RATE", "build", "exact", "growth", "training_task"]

RATE = 5.0


def exact(x: Tensor) -> Tensor:
    """The solution.

    Args:
        x: Points (x, t), shape (n, 2).

    Returns:
        u, shape (n, 1).
    """
    h = torch.exp(-8 * (x[..., :1] / math.pi - 1) ** 2)
    grown = h * torch.exp(RATE * x[..., 1:])
    return grown / (grown + 1 - h)


def growth(u: Field, x: Tensor) -> Tensor:
    """Residual of the equation.

    Args:
        u: The field.
        x: Points (x, t), shape (n, 2).

    Returns:
        u_t - 5 u (1 - u), shape (n, 1).
    """
    value, u_t = value_and_along(u, x, 1)
    return u_t - RATE * value * (1 - value)


def _blocks(draws: Draws, points: int, side_points: int, weight: float) -> list[ResidualBlock]:
    return [
        ResidualBlock(name="pde", residual=growth, points=draws.interior(points)),
        *initial_and_periodic(draws, side_points, weight, exact),
    ]


_PROBLEM = PhysicsInformed(
    name="reaction",
    box=Box((0.0, 0.0), (2 * math.pi, 1.0)),
    stream=81,
    sides=2,
    blocks=_blocks,
    solution=exact,
    grid=(129, 101),
)
build, training_task = _PROBLEM.build, _PROBLEM.training_task
