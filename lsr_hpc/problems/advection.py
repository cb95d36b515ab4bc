"""Solution operator a -> u of u_t + a(x) u_x = 0, learned by a physics-informed DeepONet.

On [0, 1]^2 with u(0, x) = sin(pi x) and u(t, 0) = sin(pi t / 2); a = g - min g + 1 with g from a Gaussian process;
branch and trunk are modified MLPs, the trunk takes (t, x). Each instance refines the network for one unseen a.
Source: arXiv:2601.13989 (operator experiments), after Wang, Wang, Perdikaris 2021, here with smaller networks.

The reference follows the characteristics and is exact to rounding; errors are taken on 101 x 101 points. On the
characteristic through the corner (0, 0) the solution has a kink, because u_t + a u_x = pi (1/2 + a) there in the
limit of the data, not 0: no smooth network follows it, and the equation does not see how far it is off.
"""

# Legend: i functions, n points, tau travel time from x = 0; y = (t, x) query points.

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.derivatives import along
from lsr_hpc.models import DeepONet
from lsr_hpc.problem import Evaluation, Field, Problem, ProblemFamily, ResidualBlock
from lsr_hpc.problems.arguments import check_range
from lsr_hpc.problems.gaussian_process import InterpolatedProcess
from lsr_hpc.problems.operator_learning import (
    FIRST_TEST_FUNCTION,
    check_operator,
    column,
    instance_problem,
    mean_error,
    operator_arguments,
    trained_operator,
    uniform_points,
    unseen_in_training,
)
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask, draw_batch

__all__ = ["Speeds", "build", "training_task", "transport"]

Array = NDArray[np.float64]
SIDE_WEIGHT = 100.0
SENSORS = np.linspace(0.0, 1.0, 100)
_AXIS = np.linspace(0.0, 1.0, 101)
_STREAM_INTERIOR = 151
_STREAM_SIDES = 152
_STREAM_TRAINING_INTERIOR = 153
_STREAM_TRAINING_SIDES = 154


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
        a: Speed there, shape (n, 1).

    Returns:
        u_t + a u_x, shape (n, 1).
    """
    return along(u, y, 0) + a * along(u, y, 1)


def _given(u: Field, y: Tensor, value: Tensor) -> Tensor:
    return u(y) - value


def _sides(seed: int, stream: int, first: int, n: int) -> tuple[Tensor, Tensor]:
    """Points of t = 0 and x = 0, n of each, and the values there: (2 n, 2) and (2 n, 1)."""
    share = uniform_points(seed, stream, 2 * first, 2 * n, 1).reshape(2, n, 1)
    zero = torch.zeros(n, 1, dtype=torch.float64)
    points = torch.cat([torch.cat([zero, share[0]], dim=1), torch.cat([share[1], zero], dim=1)])
    return points, torch.cat([torch.sin(torch.pi * share[0]), torch.sin(torch.pi * share[1] / 2)])


def _grid() -> Tensor:
    """The 101 x 101 points (t, x) of the reference, time by time."""
    axis = torch.from_numpy(_AXIS)
    return torch.cartesian_prod(axis, axis)


def build(
    weights: dict[str, Tensor],
    *,
    instances: int = 10,
    points: int = 20_000,
    side_points: int = 500,
    width: int = 50,
    depth: int = 4,
    seed: int = 7,
) -> ProblemFamily:
    """One problem per unseen speed.

    Args:
        weights: State of the trained DeepONet.
        instances: Number of unseen speeds.
        points: Random points of the equation, others for each speed.
        side_points: Random points of t = 0 and of x = 0, others for each speed.
        width: Width of branch and trunk.
        depth: Layers of branch and trunk, at least 2.
        seed: Seed of speeds and points.

    Returns:
        The family of instances.

    Raises:
        ArgumentError: If an argument is out of range, or the weights do not fit ``width`` and ``depth``.
    """
    check_operator(width, depth, seed, least_depth=2)
    check_range("instances", instances, 1, 10_000)
    check_range("points", points, 1, 10**7)
    check_range("side_points", side_points, 1, 10**7)
    arguments = operator_arguments(len(SENSORS), 2, width, depth, modified=True)
    operator = trained_operator(arguments, weights)
    grid = _grid()

    def instance(i: int) -> Problem:
        speeds = Speeds(range(FIRST_TEST_FUNCTION + i, FIRST_TEST_FUNCTION + i + 1), seed)
        y = uniform_points(seed, _STREAM_INTERIOR, i * points, points, 2)
        sides, values = _sides(seed, _STREAM_SIDES, i * side_points, side_points)
        t, x = grid.numpy().T
        return instance_problem(
            f"advection {i}",
            operator,
            arguments,
            torch.from_numpy(speeds.at(SENSORS)[0]),
            [
                ResidualBlock(
                    name="sides", residual=_given, points=sides, data=(values,), weight=SIDE_WEIGHT
                ),
                ResidualBlock(
                    name="pde", residual=transport, points=y, data=(column(speeds.at(y[:, 1].numpy())[0]),)
                ),
            ],
            Evaluation(inputs=(grid,), reference=column(speeds.solution(t, x)[0])),
        )

    return ProblemFamily(name="advection", n_instances=instances, instance=instance)


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

    All speeds share one set of points, so that the trunk is evaluated once in each step.

    Args:
        settings: Training settings; ``batch_size`` counts functions.
        functions: Number of training speeds.
        points: Random points of the equation.
        side_points: Random points of t = 0 and of x = 0.
        width: Width of branch and trunk.
        depth: Layers of branch and trunk, at least 2.
        seed: Seed of speeds and points.
        test_functions: Unseen speeds for the reported error.

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
    model = DeepONet(**operator_arguments(len(SENSORS), 2, width, depth, modified=True)).double()
    speeds = Speeds(range(functions), seed)
    y = uniform_points(seed, _STREAM_TRAINING_INTERIOR, 0, points, 2)
    sides, values = _sides(seed, _STREAM_TRAINING_SIDES, 0, side_points)
    at_sensors, at_points = (torch.from_numpy(speeds.at(x)) for x in (SENSORS, y[:, 1].numpy()))
    unseen, grid = Speeds(unseen_in_training(test_functions), seed), _grid()
    u_test = torch.from_numpy(unseen.solution(*grid.numpy().T))

    def loss(generator: torch.Generator) -> Tensor:
        batch = draw_batch(functions, settings, generator)
        coefficients = model.branch(at_sensors[batch])
        # Trunk outputs and their derivatives, (n, q), become fields of all functions, (i, n).
        t, x = (coefficients @ along(model.trunk, y, axis).T for axis in (0, 1))
        given = coefficients @ model.trunk(sides).T - values.T
        total: Tensor = (t + at_points[batch] * x).square().mean() + SIDE_WEIGHT * given.square().mean()
        return total

    return TrainingTask(
        model=model,
        loss=loss,
        error=mean_error(model, torch.from_numpy(unseen.at(SENSORS)), grid, u_test),
    )
