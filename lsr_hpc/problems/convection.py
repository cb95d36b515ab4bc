"""Convection u_t + 40 u_x = 0 on [0, 2 pi] x [0, 1], periodic in x, by a physics-informed tanh network.

u(x, 0) = sin x, so that u = sin(x - 40 t): six waves pass in the time of one. One of three problems on which
second-order refiners of trained networks are compared (Rathore et al. 2024, arXiv:2402.01868: 4.19e-3 by Adam
and L-BFGS, 1.94e-3 after their refiner, with 2-200x3-1). Error on 129 x 101 points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lsr_hpc.autodiff import push_forward
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.problems.physics_informed import Box, Draws, PhysicsInformed, initial_and_periodic

__all__ = ["SPEED", "build", "exact", "training_task", "transport"]

SPEED = 40.0


def exact(x: Tensor) -> Tensor:
    """The solution.

    Args:
        x: Points (x, t), shape (n, 2).

    Returns:
        u, shape (n, 1).
    """
    return torch.sin(x[..., :1] - SPEED * x[..., 1:])


def transport(u: Field, x: Tensor) -> Tensor:
    """Residual of the equation.

    Args:
        u: The field.
        x: Points (x, t), shape (n, 2).

    Returns:
        u_t + 40 u_x, shape (n, 1).
    """
    # The derivative along one direction in space and time.
    direction = torch.tensor([SPEED, 1.0], dtype=x.dtype, device=x.device).expand_as(x)
    return push_forward(u, x, direction)[1]


def _blocks(draws: Draws, points: int, side_points: int, weight: float) -> list[ResidualBlock]:
    return [
        ResidualBlock(name="pde", residual=transport, points=draws.interior(points)),
        *initial_and_periodic(draws, side_points, weight, exact),
    ]


_PROBLEM = PhysicsInformed(
    name="convection",
    box=Box((0.0, 0.0), (2 * math.pi, 1.0)),
    stream=71,
    sides=2,
    blocks=_blocks,
    solution=exact,
    grid=(129, 101),
)
build, training_task = _PROBLEM.build, _PROBLEM.training_task
