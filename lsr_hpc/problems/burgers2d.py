"""Viscous Burgers equation u_t + u u_x = (0.01 / pi) u_xx, by a physics-informed tanh network in x and t.

x in [-1, 1], t in [0, 1], u(x, 0) = -sin(pi x), u and u_x periodic in x: a front about 0.01 wide forms at
x = 0, t = 1 / pi. Source: the Burgers problem of arXiv:2601.13989 (first version); error on 257 (x) x 101 (t)
points against the Cole-Hopf solution, which is exact to 1e-13.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from lsr_hpc.derivatives import along, value_and_two_along
from lsr_hpc.models import MLP
from lsr_hpc.problem import Evaluation, Field, ModelSpec, Problem, ResidualBlock, as_tensor
from lsr_hpc.problems.arguments import check_range, check_seed, trained
from lsr_hpc.problems.burgers_reference import burgers_wave
from lsr_hpc.sampling import stream_of_round, uniform_rows
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask

__all__ = ["VISCOSITY", "advection", "build", "training_task"]

VISCOSITY = 0.01 / np.pi
_STREAM_INTERIOR = 51
_STREAM_INITIAL = 52
_STREAM_PERIODIC = 53
_STREAM_ALIGNMENT = 54
# Points of alignment by points of the equation.
_DENSER = 2


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


def _initial(u: Field, x: Tensor, start: Tensor) -> Tensor:
    return u(x) - start


def _periodic(u: Field, right: Tensor, left: Tensor) -> Tensor:
    return u(right) - u(left)


def _periodic_slope(u: Field, right: Tensor, left: Tensor) -> Tensor:
    return along(u, right, 0) - along(u, left, 0)


def _uniform(seed: int, stream: int, n: int, columns: int) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(uniform_rows(seed, stream, 0, n, columns)))


def _model_spec(width: int, depth: int) -> ModelSpec:
    # x is uniform on [-1, 1] and t on [0, 1].
    arguments = {
        "widths": [2] + [width] * depth + [1],
        "input_mean": [0.0, 0.5],
        "input_std": [float(np.sqrt(1 / 3)), float(np.sqrt(1 / 12))],
    }
    return ModelSpec(architecture="mlp", arguments=arguments)


def _interior_points(n: int, seed: int, stream: int) -> Tensor:
    points = _uniform(seed, stream, n, 2)
    points[:, 0] = 2 * points[:, 0] - 1
    return points


def _blocks(points: int, side_points: int, weight: float, seed: int, round_: int) -> list[ResidualBlock]:
    """The residual on the points of a round."""
    interior = _interior_points(points, seed, stream_of_round(_STREAM_INTERIOR, round_))
    x0 = 2 * _uniform(seed, stream_of_round(_STREAM_INITIAL, round_), side_points, 1) - 1
    t = _uniform(seed, stream_of_round(_STREAM_PERIODIC, round_), side_points, 1)
    right, left = (torch.cat([torch.full_like(t, side), t], dim=1) for side in (1.0, -1.0))
    return [
        ResidualBlock(name="pde", residual=advection, points=interior),
        ResidualBlock(
            name="initial",
            residual=_initial,
            points=torch.cat([x0, torch.zeros_like(x0)], dim=1),
            data=(-torch.sin(torch.pi * x0),),
            weight=weight,
        ),
        ResidualBlock(name="periodic", residual=_periodic, points=right, data=(left,), weight=weight),
        ResidualBlock(
            name="periodic_slope", residual=_periodic_slope, points=right, data=(left,), weight=weight
        ),
    ]


def _problem(model: MLP, spec: ModelSpec, points: int, side_points: int, weight: float, seed: int) -> Problem:
    resample = partial(_blocks, points, side_points, weight, seed)
    blocks = resample(0)
    inside = _interior_points(_DENSER * points, seed, _STREAM_ALIGNMENT)
    _, initial, periodic, _ = blocks
    sides = [initial.points, periodic.points, *periodic.data]
    grid = torch.cartesian_prod(
        torch.linspace(-1, 1, 257, dtype=torch.float64), torch.linspace(0, 1, 101, dtype=torch.float64)
    )
    x_grid, t_grid = grid.numpy().T
    reference = torch.from_numpy(burgers_wave(x_grid, t_grid, VISCOSITY))[:, None]
    return Problem(
        name="burgers2d",
        model=model,
        model_spec=spec,
        blocks=blocks,
        evaluation=Evaluation(inputs=(grid,), reference=reference),
        alignment_points=torch.cat([inside, *map(as_tensor, sides)]),
        resample=resample,
    )


def _check(width: int, depth: int, points: int, side_points: int, weight: float, seed: int) -> None:
    check_range("width", width, 1, 100_000)
    check_range("depth", depth, 1, 1000)
    check_range("points", points, 1, 10**7)
    check_range("side_points", side_points, 1, 10**7)
    check_range("weight", weight, 0.0, 1e12)
    check_seed(seed)


def build(
    weights: dict[str, Tensor],
    *,
    width: int = 128,
    depth: int = 6,
    points: int = 20_000,
    side_points: int = 1000,
    weight: float = 1.0,
    seed: int = 0,
) -> Problem:
    """Build the problem from trained weights.

    Args:
        weights: State of the network.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        points: Random points of the equation.
        side_points: Random points of each side condition: initial values, periodic u, periodic u_x.
        weight: Weight of each side condition in the loss; the equation has weight 1.
        seed: Seed of the points.

    Returns:
        The problem.

    Raises:
        ArgumentError: If an argument is out of range, or the weights do not fit the network.
    """
    _check(width, depth, points, side_points, weight, seed)
    spec = _model_spec(width, depth)
    model = trained(lambda: MLP(**spec.arguments), weights, f"width = {width}, depth = {depth}")
    return _problem(model, spec, points, side_points, weight, seed)


def training_task(
    settings: TrainingSettings,
    *,
    width: int = 128,
    depth: int = 6,
    points: int = 20_000,
    side_points: int = 1000,
    weight: float = 1.0,
    seed: int = 0,
) -> TrainingTask:
    """Physics-informed training on the same loss, float64.

    Args:
        settings: Training settings; ``batch_size`` counts points of every block that has more.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        points: Random points of the equation.
        side_points: Random points of each side condition.
        weight: Weight of each side condition in the loss.
        seed: Seed of the points.

    Returns:
        The task.

    Raises:
        ArgumentError: If an argument is out of range.
    """
    _check(width, depth, points, side_points, weight, seed)
    torch.manual_seed(settings.seed)
    spec = _model_spec(width, depth)
    problem = _problem(MLP(**spec.arguments), spec, points, side_points, weight, seed)
    return TrainingTask.of(problem, settings)
