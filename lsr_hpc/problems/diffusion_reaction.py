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
from lsr_hpc.models import DeepONet
from lsr_hpc.problem import Evaluation, Field, Problem, ProblemFamily, ResidualBlock
from lsr_hpc.problems.arguments import check_range
from lsr_hpc.problems.exponential_steps import etdrk4
from lsr_hpc.problems.gaussian_process import PROCESSES, InputProcess, check_process
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

__all__ = ["balance", "build", "reference", "training_task"]

Array = NDArray[np.float64]
DIFFUSION = 0.01
REACTION = 0.01
SENSORS = np.linspace(0.0, 1.0, 100)
_AXIS = np.linspace(0.0, 1.0, 101)
_STREAM_INTERIOR = 121
_STREAM_SIDES = 122
_STREAM_TRAINING_INTERIOR = 123
_STREAM_TRAINING_SIDES = 124


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
    waves = np.sin(np.outer(k, _AXIS))
    u: Array = steady(_AXIS)[:, np.newaxis] + np.stack(snapshots, axis=1) @ waves
    # The sines of the start leave 1e-8 of it between the points of the grid.
    u[:, 0] = 0.0
    return u


def balance(u: Field, y: Tensor, h: Tensor) -> Tensor:
    """Residual of the equation.

    Args:
        u: The field.
        y: Points (t, x), shape (n, 2).
        h: Source there, shape (n, 1).

    Returns:
        u_t - 0.01 u_xx - 0.01 u^2 - h, shape (n, 1).
    """
    value, _, u_xx = value_and_two_along(u, y, 1)
    return along(u, y, 0) - DIFFUSION * u_xx - REACTION * value**2 - h


def _zero(u: Field, y: Tensor) -> Tensor:
    value: Tensor = u(y)
    return value


def _grid() -> Tensor:
    """The 101 x 101 points (t, x) of the reference, time by time."""
    axis = torch.from_numpy(_AXIS)
    return torch.cartesian_prod(axis, axis)


def _sides(seed: int, stream: int, first: int, n: int) -> Tensor:
    """Points of t = 0, x = 0 and x = 1, n of each, (3 n, 2)."""
    share = uniform_points(seed, stream, 3 * first, 3 * n, 1).reshape(3, n, 1)
    zero = torch.zeros(n, 1, dtype=torch.float64)
    pairs = [(zero, share[0]), (share[1], zero), (share[2], zero + 1)]
    return torch.cat([torch.cat(pair, dim=1) for pair in pairs])


def build(
    weights: dict[str, Tensor],
    *,
    instances: int = 30,
    points: int = 20_000,
    side_points: int = 1000,
    forcing: str = "interpolated",
    width: int = 50,
    depth: int = 5,
    seed: int = 7,
) -> ProblemFamily:
    """One problem per unseen function h.

    Args:
        weights: State of the trained DeepONet.
        instances: Number of unseen functions.
        points: Random points of the equation, others for each function.
        side_points: Random points of each of the three sides, others for each function.
        forcing: ``"interpolated"`` (published: piecewise linear on 512 points) or ``"spectral"`` (smooth).
        width: Width of branch and trunk.
        depth: Layers of branch and trunk.
        seed: Seed of functions and points.

    Returns:
        The family of instances.

    Raises:
        ArgumentError: If an argument is out of range, or the weights do not fit ``width`` and ``depth``.
    """
    check_process(forcing)
    check_operator(width, depth, seed)
    check_range("instances", instances, 1, 10_000)
    check_range("points", points, 1, 10**7)
    check_range("side_points", side_points, 1, 10**7)
    arguments = operator_arguments(len(SENSORS), 2, width, depth)
    operator = trained_operator(arguments, weights)

    def instance(i: int) -> Problem:
        process = PROCESSES[forcing](range(FIRST_TEST_FUNCTION + i, FIRST_TEST_FUNCTION + i + 1), seed)
        y = uniform_points(seed, _STREAM_INTERIOR, i * points, points, 2)
        sides = _sides(seed, _STREAM_SIDES, i * side_points, side_points)
        return instance_problem(
            f"diffusion_reaction {i}",
            operator,
            arguments,
            torch.from_numpy(process.at(SENSORS)[0]),
            [
                ResidualBlock(name="sides", residual=_zero, points=sides),
                ResidualBlock(
                    name="pde", residual=balance, points=y, data=(column(process.at(y[:, 1].numpy())[0]),)
                ),
            ],
            Evaluation(inputs=(_grid(),), reference=column(reference(process).ravel())),
        )

    return ProblemFamily(name="diffusion_reaction", n_instances=instances, instance=instance)


def training_task(
    settings: TrainingSettings,
    *,
    functions: int = 300,
    points: int = 1000,
    side_points: int = 100,
    forcing: str = "interpolated",
    width: int = 50,
    depth: int = 5,
    seed: int = 7,
    test_functions: int = 50,
) -> TrainingTask:
    """Physics-informed training on the same loss, no solution data; float64.

    All functions share one set of points, so that the trunk is evaluated once in each step.

    Args:
        settings: Training settings; ``batch_size`` counts functions.
        functions: Number of training functions.
        points: Random points of the equation.
        side_points: Random points of each of the three sides.
        forcing: As in :meth:`build`.
        width: Width of branch and trunk.
        depth: Layers of branch and trunk.
        seed: Seed of functions and points.
        test_functions: Unseen functions for the reported error.

    Returns:
        The task.

    Raises:
        ArgumentError: If an argument is out of range.
    """
    check_process(forcing)
    check_operator(width, depth, seed)
    check_range("functions", functions, 1, FIRST_TEST_FUNCTION // 2)
    check_range("points", points, 1, 10**6)
    check_range("side_points", side_points, 1, 10**6)
    check_range("test_functions", test_functions, 1, 10_000)
    check_range("batch_size", settings.batch_size or 1, 1, functions)
    torch.manual_seed(settings.seed)
    model = DeepONet(**operator_arguments(len(SENSORS), 2, width, depth)).double()
    process = PROCESSES[forcing](range(functions), seed)
    y = uniform_points(seed, _STREAM_TRAINING_INTERIOR, 0, points, 2)
    sides = _sides(seed, _STREAM_TRAINING_SIDES, 0, side_points)
    at_sensors, at_points = (torch.from_numpy(process.at(x)) for x in (SENSORS, y[:, 1].numpy()))
    unseen = PROCESSES[forcing](unseen_in_training(test_functions), seed)
    h_test = torch.from_numpy(unseen.at(SENSORS))
    u_test = torch.from_numpy(reference(unseen)).flatten(1)

    def loss(generator: torch.Generator) -> Tensor:
        batch = draw_batch(functions, settings, generator)
        coefficients = model.branch(at_sensors[batch])
        # Trunk outputs and their derivatives, (n, q), become fields of all functions, (i, n).
        value, _, xx = (coefficients @ phi.T for phi in value_and_two_along(model.trunk, y, 1))
        t = coefficients @ along(model.trunk, y, 0).T
        equation = t - DIFFUSION * xx - REACTION * value**2 - at_points[batch]
        side = coefficients @ model.trunk(sides).T
        total: Tensor = equation.square().mean() + side.square().mean()
        return total

    return TrainingTask(model=model, loss=loss, error=mean_error(model, h_test, _grid(), u_test))
