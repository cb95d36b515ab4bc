"""Solution operator u(., 0) -> u of the viscous Burgers equation, learned by a physics-informed DeepONet.

u_t + u u_x = 0.01 u_xx on [0, 1]^2, u and u_x periodic in x, from random smooth periodic initial values at
101 sensors; branch and trunk are modified MLPs, the trunk takes (t, x). Each instance refines the network for
one unseen initial function. Source: arXiv:2601.13989 (operator experiments), after Wang, Wang, Perdikaris
2021, here with smaller networks.

The reference (Fourier ETDRK4, 256 points, 500 steps) has a relative error of 5e-10, measured against one on a
finer grid; errors are taken on 101 x 101 points.
"""

# Legend: i functions, n points, a initial values, nu viscosity; y = (t, x) query points.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.derivatives import along, value_and_two_along
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.problems.burgers_reference import burgers_spectrum, sum_of_waves
from lsr_hpc.problems.operator_learning import OperatorProblem, PointDraws
from lsr_hpc.sampling import gaussian_rows

__all__ = [
    "VISCOSITY",
    "Starts",
    "advection",
    "build",
    "initial_values",
    "reference",
    "residual_blocks",
    "training_task",
]

Array = NDArray[np.float64]
VISCOSITY = 0.01
INITIAL_WEIGHT = 20.0
SENSORS = np.linspace(0.0, 1.0, 101)
_STREAM_FUNCTIONS = 61
# Waves of the initial values: the last has an amplitude of 3e-8.
_WAVES = 64


def initial_values(numbers: range, seed: int, x: Array) -> Array:
    """Initial functions: a mean-free periodic Gaussian process.

    ``a(x) = sum_j s_j (xi_j cos 2 pi j x + eta_j sin 2 pi j x)``, ``s_j = sqrt(2) 625 ((2 pi j)^2 + 25)^-2``.
    Its covariance operator is ``25^4 (25 - d^2/dx^2)^-4``, that of the published generator.

    Args:
        numbers: Global numbers of the functions; function i of a seed is the same everywhere.
        seed: Seed of the draws.
        x: Places, shape (n,).

    Returns:
        Values, shape (i, n).
    """
    j = 2 * np.pi * np.arange(1, _WAVES + 1)
    amplitude = np.sqrt(2) * 625 / (j**2 + 25) ** 2
    draws = gaussian_rows(seed, _STREAM_FUNCTIONS, numbers.start, numbers.stop, 2 * _WAVES)
    xi, eta = np.split(draws * np.tile(amplitude, 2), 2, axis=1)
    values: Array = xi @ np.cos(np.outer(j, x)) + eta @ np.sin(np.outer(j, x))
    return values


def reference(numbers: range, seed: int, n_grid: int = 256, steps: int = 500) -> Array:
    """Solutions at 101 times and 101 places, both from 0 to 1.

    Args:
        numbers: Global numbers of the functions.
        seed: Seed of the draws.
        n_grid: Points of the spectral method.
        steps: Time steps, a multiple of 100.

    Returns:
        u, shape (i, 101 times, 101 places).
    """
    initial = initial_values(numbers, seed, np.arange(n_grid) / n_grid)
    waves = burgers_spectrum(initial, viscosity=VISCOSITY, length=1.0, snapshots=101, steps=steps)
    return sum_of_waves(waves, SENSORS, 1.0)


def advection(u: Field, y: Tensor) -> Tensor:
    """Residual of the equation.

    Args:
        u: The field.
        y: Points (t, x), shape (n, 2).

    Returns:
        u_t + u u_x - nu u_xx, shape (n, i).
    """
    value, u_x, u_xx = value_and_two_along(u, y, 1)
    return along(u, y, 0) + value * u_x - VISCOSITY * u_xx


def _initial(u: Field, y: Tensor, a: Tensor) -> Tensor:
    return u(y) - a


def _periodic(u: Field, right: Tensor, left: Tensor) -> Tensor:
    return u(right) - u(left)


def _periodic_slope(u: Field, right: Tensor, left: Tensor) -> Tensor:
    return along(u, right, 1) - along(u, left, 1)


@dataclass(frozen=True)
class Starts:
    """Initial functions with their solutions.

    Attributes:
        numbers: Global numbers of the functions.
        seed: Seed of the draws.
    """

    numbers: range
    seed: int

    def at(self, x: Array) -> Array:
        """Values at places (n,), shape (i, n)."""
        return initial_values(self.numbers, self.seed, x)

    def solutions(self) -> Array:
        """Solutions at the times and places of the evaluation grid, shape (i, 101, 101)."""
        return reference(self.numbers, self.seed)


def residual_blocks(starts: Starts, draws: PointDraws) -> list[ResidualBlock]:
    """Equation, initial and periodic conditions of some functions.

    Args:
        starts: The initial functions.
        draws: Source of points.

    Returns:
        Blocks ``initial``, ``periodic``, ``periodic_slope`` and ``pde``.
    """
    start = torch.from_numpy(np.stack([np.zeros_like(SENSORS), SENSORS], axis=1))
    [t] = draws.sides(1)
    right, left = (torch.cat([t, torch.full_like(t, side)], dim=1) for side in (1.0, 0.0))
    return [
        ResidualBlock(
            name="initial",
            residual=_initial,
            points=start,
            data=(torch.from_numpy(starts.at(SENSORS)).T,),
            weight=INITIAL_WEIGHT,
        ),
        ResidualBlock(name="periodic", residual=_periodic, points=right, data=(left,)),
        ResidualBlock(name="periodic_slope", residual=_periodic_slope, points=right, data=(left,)),
        ResidualBlock(name="pde", residual=advection, points=draws.interior()),
    ]


_PROBLEM = OperatorProblem(
    name="burgers_operator",
    sensors=SENSORS,
    modified=True,
    functions=Starts,
    stream=62,
    blocks=residual_blocks,
)
build, training_task = _PROBLEM.build, _PROBLEM.training_task
