"""Viscous Burgers equation u_t + u u_x = (0.01 / pi) u_xx, by a physics-informed tanh network in x and t.

x in [-1, 1], t in [0, 1], u(x, 0) = -sin(pi x), u and u_x periodic in x: a front about 0.01 wide forms at
x = 0, t = 1 / pi. Source: the Burgers problem of arXiv:2601.13989 (first version); error on 257 (x) x 101 (t)
points against the Cole-Hopf solution, which is exact to 1e-13.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lsr_hpc.derivatives import along, value_and_two_along
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.problems.burgers_reference import burgers_wave
from lsr_hpc.problems.physics_informed import Box, Draws, PhysicsInformed, initial_and_periodic

__all__ = ["VISCOSITY", "advection", "build", "training_task"]

VISCOSITY = 0.01 / np.pi


def advection(u: Field, x: Tensor) -> Tensor:
    """Residual of the equation.

    Args:
        u: The field.
        x: Points (x, t), shape (n, 2).

    Returns:
        u_t + u u_x - nu u_xx, shape (n, 1).
    """
    value, u_x, u_xx = value_and_two_along(u, x, 0)
    return along(u, x, 1) + value * u_x - VISCOSITY * u_xx


def _blocks(draws: Draws, points: int, side_points: int, weight: float) -> list[ResidualBlock]:
    initial, periodic = initial_and_periodic(
        draws, side_points, weight, lambda x: -torch.sin(torch.pi * x[:, :1])
    )
    return [
        ResidualBlock(name="pde", residual=advection, points=draws.interior(points)),
        initial,
        periodic,
        replace(periodic, name="periodic_slope", residual=_jump_of_slope),
    ]


def _jump_of_slope(u: Field, right: Tensor, left: Tensor) -> Tensor:
    return along(u, right, 0) - along(u, left, 0)


def _solution(x: Tensor) -> Tensor:
    return torch.from_numpy(burgers_wave(x[:, 0].numpy(), x[:, 1].numpy(), VISCOSITY))[:, None]


_PROBLEM = PhysicsInformed(
    name="burgers2d",
    box=Box((-1.0, 0.0), (1.0, 1.0)),
    stream=51,
    sides=2,
    blocks=_blocks,
    solution=_solution,
    grid=(257, 101),
)
build, training_task = _PROBLEM.build, _PROBLEM.training_task
