"""Solution operator a -> u of u_t + a(x) u_x = 0, learned by a physics-informed DeepONet.

On [0, 1]^2 with u(0, x) = sin(pi x) and u(t, 0) = sin(pi t / 2); a = g - min g + 1 with g from a Gaussian
process; branch and trunk are modified MLPs, the trunk takes (t, x). Each instance refines the network for one
unseen a. Source: arXiv:2601.13989 (operator experiments), after Wang, Wang, Perdikaris 2021, here with
smaller networks.

The reference follows the characteristics and is exact to rounding; errors are taken on 101 x 101 points. The
solution has a kink along the characteristic through the corner (0, 0), where its side values would need
pi / 2 + a pi = 0: no smooth network follows it.
"""

# Legend: i functions, n points, tau travel time from x = 0; y = (t, x) query points.

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.derivatives import along
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.problems.gaussian_process import InterpolatedProcess
from lsr_hpc.problems.operator_learning import AXIS, OperatorProblem, PointDraws
from lsr_hpc.problems.physics_informed import misfit

__all__ = ["Speeds", "build", "training_task", "transport"]

Array = NDArray[np.float64]
SIDE_WEIGHT = 100.0


class Speeds:
    """Speeds a(x) >= 1, linear between 512 points, and the solutions that they give.

    Args:
        numbers: Global numbers of the functions.
        seed: Seed of the draws.
    """

    def __init__(self, numbers: range, seed: int) -> None:
        process = InterpolatedProcess(numbers, seed)
        self.grid = process.grid
        self.values = process.values - process.values.min(axis=1, keepdims=True) + 1
        dx = self.grid[1]
        steps = dx / self.values[:, :-1] * _log1p_over(np.diff(self.values) / self.values[:, :-1])
        self.travel = np.zeros_like(self.values)
        self.travel[:, 1:] = np.cumsum(steps, axis=1)

    def at(self, x: Array) -> Array:
        """Speeds at places (n,), shape (i, n)."""
        return np.stack([np.interp(x, self.grid, row) for row in self.values])

    def solutions(self) -> Array:
        """Solutions at the times and places of :data:`AXIS`, shape (i, 101, 101)."""
        t, x = np.meshgrid(AXIS, AXIS, indexing="ij")
        return self.solution(t.ravel(), x.ravel()).reshape(-1, len(AXIS), len(AXIS))

    def solution(self, t: Array, x: Array) -> Array:
        """Solutions by characteristics.

        With the travel time tau(x), the integral of 1 / a from 0 to x, ``u = sin(pi X(tau(x) - t))`` where
        tau >= t, X being the inverse of tau, and ``u = sin(pi (t - tau(x)) / 2)`` elsewhere.

        Args:
            t: Times, shape (n,).
            x: Places, shape (n,).

        Returns:
            u, shape (i, n).
        """
        return np.stack([self._solution(row, t, x) for row in range(len(self.values))])

    def _solution(self, row: int, t: Array, x: Array) -> Array:
        a, travel, dx = self.values[row], self.travel[row], self.grid[1]
        slope = np.diff(a) / dx
        cell = np.clip((x / dx).astype(int), 0, len(slope) - 1)
        d = x - self.grid[cell]
        tau = travel[cell] + d / a[cell] * _log1p_over(slope[cell] * d / a[cell])
        left = tau - t
        # Where the characteristic has started at t = 0: in the cell whose travel times hold what is left.
        cell = np.clip(np.searchsorted(travel, left, side="right") - 1, 0, len(slope) - 1)
        time = left - travel[cell]
        start = self.grid[cell] + a[cell] * time * _expm1_over(slope[cell] * time)
        u: Array = np.where(left >= 0, np.sin(np.pi * start), np.sin(-np.pi * left / 2))
        return u


def _log1p_over(q: Array) -> Array:
    """log(1 + q) / q."""
    is_small = np.abs(q) < 1e-8
    safe = np.where(is_small, 1.0, q)
    quotient: Array = np.where(is_small, 1 - q / 2, np.log1p(safe) / safe)
    return quotient


def _expm1_over(q: Array) -> Array:
    """(exp(q) - 1) / q."""
    is_small = np.abs(q) < 1e-8
    safe = np.where(is_small, 1.0, q)
    quotient: Array = np.where(is_small, 1 + q / 2, np.expm1(safe) / safe)
    return quotient


def transport(u: Field, y: Tensor, a: Tensor) -> Tensor:
    """Residual of the equation.

    Args:
        u: The field.
        y: Points (t, x), shape (n, 2).
        a: Speed there, shape (n, i).

    Returns:
        u_t + a u_x, shape (n, i).
    """
    return along(u, y, 0) + a * along(u, y, 1)


def _blocks(speeds: Speeds, draws: PointDraws) -> list[ResidualBlock]:
    y = draws.interior()
    x0, t0 = draws.sides(2)
    zero = torch.zeros_like(x0)
    sides = torch.cat([torch.cat([zero, x0], dim=1), torch.cat([t0, zero], dim=1)])
    values = torch.cat([torch.sin(torch.pi * x0), torch.sin(torch.pi * t0 / 2)])
    a = torch.from_numpy(speeds.at(y[:, 1].numpy())).T
    return [
        ResidualBlock(name="sides", residual=misfit, points=sides, data=(values,), weight=SIDE_WEIGHT),
        ResidualBlock(name="pde", residual=transport, points=y, data=(a,)),
    ]


_PROBLEM = OperatorProblem(
    name="advection",
    sensors=np.linspace(0.0, 1.0, 100),
    modified=True,
    functions=Speeds,
    stream=151,
    blocks=_blocks,
)
build, training_task = _PROBLEM.build, _PROBLEM.training_task
