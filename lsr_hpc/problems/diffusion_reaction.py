"""Solution operator h -> u of u_t = 0.01 u_xx + 0.01 u^2 + h(x), learned by a physics-informed DeepONet.

On [0, 1]^2, zero at t = 0 and at both ends of x; the trunk takes (t, x). Each instance refines the network
for one unseen h. Source: arXiv:2601.13989 (operator experiments), after Wang, Wang, Perdikaris 2021.

The reference splits off the steady solution w of 0.01 w_xx + h = 0, which is known exactly: u - w vanishes at
both ends, and its sine series follows in time by ETDRK4. Its relative error is 1e-10, measured against finer
series and steps; errors are taken on 101 x 101 points. Where h is not zero at an end, u_t jumps in the corner
at t = 0, which no smooth network can follow exactly.
"""

# Legend: i functions, n points, b sine coefficients; y = (t, x) query points.

from __future__ import annotations

from itertools import islice

import numpy as np
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.derivatives import along, value_and_two_along
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.problems.exponential_steps import etdrk4
from lsr_hpc.problems.gaussian_process import InputProcess, InterpolatedProcess
from lsr_hpc.problems.operator_learning import AXIS, OperatorProblem, PointDraws

__all__ = ["Sources", "balance", "build", "reference", "residual_blocks", "training_task"]

Array = NDArray[np.float64]
DIFFUSION = 0.01
REACTION = 0.01


def reference(process: InputProcess, n_grid: int = 1024, steps: int = 200) -> Array:
    """Solutions at 101 times and 101 places, both from 0 to 1.

    Args:
        process: The functions h.
        n_grid: Intervals of the grid on which u^2 is taken; one sine less.
        steps: Time steps, a multiple of 100.

    Returns:
        u, shape (i, 101 times, 101 places).
    """
    k = np.pi * np.arange(1, n_grid)
    inside = np.arange(1, n_grid) / n_grid

    def steady(x: Array) -> Array:
        twice, whole = process.second_primitive(x), process.second_primitive(np.ones(1))
        w: Array = (whole * x - twice) / DIFFUSION
        return w

    def sines(values: Array) -> Array:
        b: Array = scipy.fft.dst(values, type=1) / n_grid
        return b

    w = steady(inside)

    def reaction(b: Array) -> Array:
        return REACTION * sines((w + scipy.fft.dst(b, type=1) / 2) ** 2)

    b = sines(-w)
    snapshots = [b]
    stride = steps // 100
    states = etdrk4(b, -DIFFUSION * k**2, reaction, 1 / steps)
    snapshots += islice(states, stride - 1, steps, stride)
    waves = np.sin(np.outer(k, AXIS))
    u: Array = steady(AXIS)[:, np.newaxis] + np.stack(snapshots, axis=1) @ waves
    # The sines of the start leave 1e-8 of it between the points of the grid.
    u[:, 0] = 0.0
    return u


def balance(u: Field, y: Tensor, h: Tensor) -> Tensor:
    """Residual of the equation.

    Args:
        u: The field.
        y: Points (t, x), shape (n, 2).
        h: Source there, shape (n, i).

    Returns:
        u_t - 0.01 u_xx - 0.01 u^2 - h, shape (n, i).
    """
    value, _, u_xx = value_and_two_along(u, y, 1)
    return along(u, y, 0) - DIFFUSION * u_xx - REACTION * value**2 - h


def _zero(u: Field, y: Tensor) -> Tensor:
    value: Tensor = u(y)
    return value


class Sources(InterpolatedProcess):
    """Functions h with their solutions."""

    def solutions(self) -> Array:
        """Solutions at the times and places of the evaluation grid, shape (i, 101, 101)."""
        return reference(self)


def residual_blocks(sources: Sources, draws: PointDraws) -> list[ResidualBlock]:
    """Equation and side conditions of some functions.

    Args:
        sources: The functions h.
        draws: Source of points.

    Returns:
        Blocks ``sides`` and ``pde``.
    """
    y = draws.interior()
    x0, t_left, t_right = draws.sides(3)
    zero = torch.zeros_like(x0)
    sides = torch.cat([torch.cat(pair, dim=1) for pair in ((zero, x0), (t_left, zero), (t_right, zero + 1))])
    h = torch.from_numpy(sources.at(y[:, 1].numpy())).T
    return [
        ResidualBlock(name="sides", residual=_zero, points=sides),
        ResidualBlock(name="pde", residual=balance, points=y, data=(h,)),
    ]


_PROBLEM = OperatorProblem(
    name="diffusion_reaction",
    sensors=np.linspace(0.0, 1.0, 100),
    modified=False,
    functions=Sources,
    stream=121,
    blocks=residual_blocks,
)
build, training_task = _PROBLEM.build, _PROBLEM.training_task
