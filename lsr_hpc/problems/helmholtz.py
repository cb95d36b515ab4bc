"""Helmholtz equation u_xx + u_yy + u = g on [-1, 1]^2, by a physics-informed tanh network.

u = sin(pi x) sin(4 pi y), which is 0 on the boundary. Published with about 3,000 parameters
(arXiv:2604.05230): 2.0e-9 to 4.2e-9 after 250 to 540 s of second-order training on a GPU. Error on 257 x 257
points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lsr_hpc.derivatives import second_along
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.problems.physics_informed import Box, Draws, PhysicsInformed, misfit

__all__ = ["build", "exact", "helmholtz", "training_task"]

_WAVES = (1.0, 4.0)


def exact(x: Tensor) -> Tensor:
    """The solution.

    Args:
        x: Points (x, y), shape (n, 2).

    Returns:
        u, shape (n, 1).
    """
    return torch.sin(_WAVES[0] * torch.pi * x[..., :1]) * torch.sin(_WAVES[1] * torch.pi * x[..., 1:])


def helmholtz(u: Field, x: Tensor, g: Tensor) -> Tensor:
    """Residual of the equation.

    Args:
        u: The field.
        x: Points (x, y), shape (n, 2).
        g: Source there, shape (n, 1).

    Returns:
        u_xx + u_yy + u - g, shape (n, 1).
    """
    return second_along(u, x, 0) + second_along(u, x, 1) + u(x) - g


def _source(x: Tensor) -> Tensor:
    return (1 - torch.pi**2 * (_WAVES[0] ** 2 + _WAVES[1] ** 2)) * exact(x)


def _blocks(draws: Draws, points: int, side_points: int, weight: float) -> list[ResidualBlock]:
    inside, edge = draws.interior(points), draws.boundary(1, side_points)
    zero = torch.zeros_like(edge[:, :1])
    return [
        ResidualBlock(name="pde", residual=helmholtz, points=inside, data=(_source(inside),)),
        ResidualBlock(name="boundary", residual=misfit, points=edge, data=(zero,), weight=weight),
    ]


_PROBLEM = PhysicsInformed(
    name="helmholtz",
    box=Box((-1.0, -1.0), (1.0, 1.0)),
    stream=111,
    sides=1,
    blocks=_blocks,
    solution=exact,
    grid=(257, 257),
)
build, training_task = _PROBLEM.build, _PROBLEM.training_task
