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

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.derivatives import along, value_and_along, value_and_two_along
from lsr_hpc.models import DeepONet
from lsr_hpc.problem import Evaluation, Field, Problem, ProblemFamily, ResidualBlock
from lsr_hpc.problems.arguments import check_range
from lsr_hpc.problems.burgers_reference import burgers_spectrum, sum_of_waves
from lsr_hpc.problems.operator_learning import (
    FIRST_TEST_FUNCTION,
    check_operator,
    instance_problem,
    mean_error,
    operator_arguments,
    trained_operator,
    uniform_points,
    unseen_in_training,
)
from lsr_hpc.sampling import gaussian_rows
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask, draw_batch

__all__ = ["VISCOSITY", "advection", "build", "initial_values", "reference", "training_task"]

Array = NDArray[np.float64]
VISCOSITY = 0.01
INITIAL_WEIGHT = 20.0
SENSORS = np.linspace(0.0, 1.0, 101)
_STREAM_FUNCTIONS = 61
_STREAM_INTERIOR = 62
_STREAM_PERIODIC = 63
_STREAM_TRAINING_INTERIOR = 64
_STREAM_TRAINING_PERIODIC = 65
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
        u_t + u u_x - nu u_xx, shape (n, 1).
    """
    value, u_x, u_xx = value_and_two_along(u, y, 1)
    return along(u, y, 0) + value * u_x - VISCOSITY * u_xx


def _initial(u: Field, y: Tensor, a: Tensor) -> Tensor:
    return u(y) - a


def _periodic(u: Field, right: Tensor, left: Tensor) -> Tensor:
    return u(right) - u(left)


def _periodic_slope(u: Field, right: Tensor, left: Tensor) -> Tensor:
    return along(u, right, 1) - along(u, left, 1)


def _arguments(width: int, depth: int) -> dict[str, Any]:
    return operator_arguments(len(SENSORS), 2, width, depth, modified=True)


def _grid() -> Tensor:
    """The 101 x 101 points (t, x) of the reference, time by time."""
    axis = torch.from_numpy(SENSORS)
    return torch.cartesian_prod(axis, axis)


def _sides(t: Tensor) -> tuple[Tensor, Tensor]:
    """Points (t, 1) and (t, 0) of times (n, 1)."""
    return torch.cat([t, torch.ones_like(t)], dim=1), torch.cat([t, torch.zeros_like(t)], dim=1)


def build(
    weights: dict[str, Tensor],
    *,
    instances: int = 10,
    points: int = 2000,
    side_points: int = 100,
    width: int = 50,
    depth: int = 4,
    seed: int = 7,
) -> ProblemFamily:
    """One problem per unseen initial function.

    Args:
        weights: State of the trained DeepONet.
        instances: Number of unseen functions.
        points: Random points of the equation, others for each function.
        side_points: Random times of the periodic conditions, others for each function.
        width: Width of branch and trunk.
        depth: Layers of branch and trunk, at least 2.
        seed: Seed of functions and points.

    Returns:
        The family of instances.

    Raises:
        ArgumentError: If an argument is out of range, or the weights do not fit ``width`` and ``depth``.
    """
    check_operator(width, depth, seed, least_depth=2)
    check_range("instances", instances, 1, 10_000)
    check_range("points", points, 1, 10**7)
    check_range("side_points", side_points, 1, 10**7)
    arguments = _arguments(width, depth)
    operator = trained_operator(arguments, weights)
    at_sensors = torch.from_numpy(
        initial_values(range(FIRST_TEST_FUNCTION, FIRST_TEST_FUNCTION + instances), seed, SENSORS)
    )
    start = _grid()[: len(SENSORS)]

    def instance(i: int) -> Problem:
        solution = reference(range(FIRST_TEST_FUNCTION + i, FIRST_TEST_FUNCTION + i + 1), seed)
        right, left = _sides(uniform_points(seed, _STREAM_PERIODIC, i * side_points, side_points, 1))
        return instance_problem(
            f"burgers_operator {i}",
            operator,
            arguments,
            at_sensors[i],
            [
                ResidualBlock(
                    name="initial",
                    residual=_initial,
                    points=start,
                    data=(at_sensors[i][:, None],),
                    weight=INITIAL_WEIGHT,
                ),
                ResidualBlock(name="periodic", residual=_periodic, points=right, data=(left,)),
                ResidualBlock(name="periodic_slope", residual=_periodic_slope, points=right, data=(left,)),
                ResidualBlock(
                    name="pde",
                    residual=advection,
                    points=uniform_points(seed, _STREAM_INTERIOR, i * points, points, 2),
                ),
            ],
            Evaluation(inputs=(_grid(),), reference=torch.from_numpy(solution.reshape(-1, 1))),
        )

    return ProblemFamily(name="burgers_operator", n_instances=instances, instance=instance)


def training_task(
    settings: TrainingSettings,
    *,
    functions: int = 300,
    points: int = 1000,
    side_points: int = 100,
    width: int = 50,
    depth: int = 4,
    seed: int = 7,
    test_functions: int = 50,
) -> TrainingTask:
    """Physics-informed training on the same loss, no solution data; float64.

    All functions share one set of points, so that the trunk is evaluated once in each step.

    Args:
        settings: Training settings; ``batch_size`` counts functions.
        functions: Number of training functions.
        points: Random points of the equation.
        side_points: Random times of the periodic conditions.
        width: Width of branch and trunk.
        depth: Layers of branch and trunk, at least 2.
        seed: Seed of functions and points.
        test_functions: Unseen functions for the reported error.

    Returns:
        The task.

    Raises:
        ArgumentError: If an argument is out of range.
    """
    check_operator(width, depth, seed, least_depth=2)
    check_range("functions", functions, 1, FIRST_TEST_FUNCTION // 2)
    check_range("points", points, 1, 10**6)
    check_range("side_points", side_points, 1, 10**6)
    check_range("test_functions", test_functions, 1, 10_000)
    check_range("batch_size", settings.batch_size or 1, 1, functions)
    torch.manual_seed(settings.seed)
    model = DeepONet(**_arguments(width, depth)).double()
    a = torch.from_numpy(initial_values(range(functions), seed, SENSORS))
    interior = uniform_points(seed, _STREAM_TRAINING_INTERIOR, 0, points, 2)
    sides = _sides(uniform_points(seed, _STREAM_TRAINING_PERIODIC, 0, side_points, 1))
    unseen = unseen_in_training(test_functions)
    a_test = torch.from_numpy(initial_values(unseen, seed, SENSORS))
    u_test = torch.from_numpy(reference(unseen, seed)).flatten(1)
    grid = _grid()

    def loss(generator: torch.Generator) -> Tensor:
        batch = a[draw_batch(functions, settings, generator)]
        coefficients = model.branch(batch)
        # Trunk outputs and their derivatives, (n, q), become fields of all functions, (i, n).
        value, x, xx = (coefficients @ phi.T for phi in value_and_two_along(model.trunk, interior, 1))
        t = coefficients @ along(model.trunk, interior, 0).T
        right, left = (value_and_along(model.trunk, side, 1) for side in sides)
        jumps = [coefficients @ (r - s).T for r, s in zip(right, left, strict=True)]
        start = coefficients @ model.trunk(grid[: len(SENSORS)]).T - batch
        equation = t + value * x - VISCOSITY * xx
        total: Tensor = INITIAL_WEIGHT * start.square().mean() + equation.square().mean()
        for jump in jumps:
            total = total + jump.square().mean()
        return total

    return TrainingTask(model=model, loss=loss, error=mean_error(model, a_test, grid, u_test))
