"""Wave equation u_tt = 4 u_xx on [0, 1]^2, u = 0 at both ends, by a physics-informed tanh network.

At rest at t = 0 with u(x, 0) = sin(pi x) + sin(5 pi x) / 2, so that
u = sin(pi x) cos(2 pi t) + sin(5 pi x) cos(10 pi t) / 2. Published (Rathore et al. 2024, as for
``convection``): 5.52e-2 by Adam and L-BFGS, 1.27e-2 after their refiner. Error on 129 x 101 points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lsr_hpc.autodiff import push_forward
from lsr_hpc.derivatives import along
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.problems.physics_informed import Box, Draws, PhysicsInformed, misfit

__all__ = ["build", "exact", "training_task", "wave"]

# Frequency of the second part over that of the first.
_HARMONIC = 5.0


def exact(x: Tensor) -> Tensor:
    """The solution.

    Args:
        x: Points (x, t), shape (n, 2).

    Returns:
        u, shape (n, 1).
    """
    phase = torch.pi * x
    slow = torch.sin(phase[..., :1]) * torch.cos(2 * phase[..., 1:])
    fast = torch.sin(_HARMONIC * phase[..., :1]) * torch.cos(2 * _HARMONIC * phase[..., 1:])
    return slow + fast / 2


def wave(u: Field, x: Tensor) -> Tensor:
    """Residual of the equation.

    Args:
        u: The field.
        x: Points (x, t), shape (n, 2).

    Returns:
        u_tt - 4 u_xx, shape (n, 1).
    """
    # (d/dt - 2 d/dx) (d/dt + 2 d/dx): derivatives along the two characteristics, one after the other.
    left, right = (torch.tensor([c, 1.0], dtype=x.dtype, device=x.device).expand_as(x) for c in (-2.0, 2.0))
    return push_forward(lambda z: push_forward(u, z, right)[1], x, left)[1]


def _velocity(u: Field, x: Tensor) -> Tensor:
    return along(u, x, 1)


def _blocks(draws: Draws, points: int, side_points: int, weight: float) -> list[ResidualBlock]:
    start = draws.side(1, 1, side_points)
    left = draws.side(2, 0, side_points)
    ends = torch.cat([left, draws.box.at_end(left, 0, upper=True)])
    return [
        ResidualBlock(name="pde", residual=wave, points=draws.interior(points)),
        ResidualBlock(name="initial", residual=misfit, points=start, data=(exact(start),), weight=weight),
        ResidualBlock(name="at_rest", residual=_velocity, points=start, weight=weight),
        ResidualBlock(
            name="ends", residual=misfit, points=ends, data=(torch.zeros_like(ends[:, :1]),), weight=weight
        ),
    ]


_PROBLEM = PhysicsInformed(
    name="wave",
    box=Box((0.0, 0.0), (1.0, 1.0)),
    stream=91,
    sides=2,
    blocks=_blocks,
    solution=exact,
    grid=(129, 101),
)
build, training_task = _PROBLEM.build, _PROBLEM.training_task
