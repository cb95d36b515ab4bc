"""Poisson equation u_xx + u_yy = s on [0, 1]^2, u = 0 on the boundary, by a physics-informed tanh network.

Source: the Poisson problem of arXiv:2601.13989 (first version), with the exact solution
u = sin(pi (2 x)^2) sin(pi y); error on a 257 x 257 grid.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from lsr_hpc.derivatives import second_along
from lsr_hpc.models import MLP
from lsr_hpc.problem import Evaluation, Field, ModelSpec, Problem, ResidualBlock, as_tensor
from lsr_hpc.problems.arguments import check_range, check_seed, trained
from lsr_hpc.sampling import stream_of_round, uniform_rows
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask

__all__ = ["build", "exact", "laplacian", "source", "training_task"]

_STREAM_INTERIOR = 41
_STREAM_BOUNDARY = 42
_STREAM_ALIGNMENT = 43
# Points of alignment by points of the equation.
_DENSER = 2


def exact(x: Tensor) -> Tensor:
    """The solution.

    Args:
        x: Points (x, y), shape (n, 2).

    Returns:
        u, shape (n, 1).
    """
    x, y = x[..., :1], x[..., 1:]
    return torch.sin(4 * torch.pi * x**2) * torch.sin(torch.pi * y)


def source(x: Tensor) -> Tensor:
    """The Laplacian of the solution.

    Args:
        x: Points (x, y), shape (n, 2).

    Returns:
        s, shape (n, 1).
    """
    x, y = x[..., :1], x[..., 1:]
    phase = 4 * torch.pi * x**2
    u_xx = 8 * torch.pi * torch.cos(phase) - (8 * torch.pi * x) ** 2 * torch.sin(phase)
    return (u_xx - torch.pi**2 * torch.sin(phase)) * torch.sin(torch.pi * y)


def laplacian(u: Field, x: Tensor, s: Tensor) -> Tensor:
    """Residual inside the domain.

    Args:
        u: The field.
        x: Points, shape (n, 2).
        s: Source there, shape (n, 1).

    Returns:
        u_xx + u_yy - s, shape (n, 1).
    """
    return second_along(u, x, 0) + second_along(u, x, 1) - s


def _zero(u: Field, x: Tensor) -> Tensor:
    """Residual on the boundary."""
    value: Tensor = u(x)
    return value


def _boundary_points(per_side: int, seed: int, round_: int) -> Tensor:
    """Random points of the sides x = 0, x = 1, y = 0, y = 1, in this order."""
    stream = stream_of_round(_STREAM_BOUNDARY, round_)
    along = uniform_rows(seed, stream, 0, 4 * per_side, 1)[:, 0].reshape(4, per_side)
    points = np.empty((4, per_side, 2))
    for side in range(4):
        points[side, :, side // 2] = side % 2
        points[side, :, 1 - side // 2] = along[side]
    return torch.from_numpy(points.reshape(-1, 2))


def _model_spec(width: int, depth: int) -> ModelSpec:
    # Inputs are uniform on [0, 1]: mean 1 / 2, standard deviation 1 / sqrt(12).
    arguments = {
        "widths": [2] + [width] * depth + [1],
        "input_mean": [0.5] * 2,
        "input_std": [float(np.sqrt(1 / 12))] * 2,
    }
    return ModelSpec(architecture="mlp", arguments=arguments)


def _interior_points(n: int, seed: int, stream: int) -> Tensor:
    return torch.from_numpy(uniform_rows(seed, stream, 0, n, 2))


def _blocks(points: int, boundary_points: int, weight: float, seed: int, round_: int) -> list[ResidualBlock]:
    """The residual on the points of a round."""
    x = _interior_points(points, seed, stream_of_round(_STREAM_INTERIOR, round_))
    edge = _boundary_points(boundary_points, seed, round_)
    return [
        ResidualBlock(name="pde", residual=laplacian, points=x, data=(source(x),)),
        ResidualBlock(name="boundary", residual=_zero, points=edge, weight=weight),
    ]


def _problem(
    model: MLP, spec: ModelSpec, points: int, boundary_points: int, weight: float, seed: int
) -> Problem:
    resample = partial(_blocks, points, boundary_points, weight, seed)
    blocks = resample(0)
    inside = _interior_points(_DENSER * points, seed, _STREAM_ALIGNMENT)
    axis = torch.linspace(0, 1, 257, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    return Problem(
        name="poisson",
        model=model,
        model_spec=spec,
        blocks=blocks,
        evaluation=Evaluation(inputs=(grid,), reference=exact(grid)),
        alignment_points=torch.cat([inside, as_tensor(blocks[1].points)]),
        resample=resample,
    )


def _check(width: int, depth: int, points: int, boundary_points: int, weight: float, seed: int) -> None:
    check_range("width", width, 1, 100_000)
    check_range("depth", depth, 1, 1000)
    check_range("points", points, 1, 10**7)
    check_range("boundary_points", boundary_points, 1, 10**6)
    check_range("weight", weight, 0.0, 1e12)
    check_seed(seed)


def build(
    weights: dict[str, Tensor],
    *,
    width: int = 128,
    depth: int = 6,
    points: int = 20_000,
    boundary_points: int = 500,
    weight: float = 100.0,
    seed: int = 0,
) -> Problem:
    """Build the problem from trained weights.

    Args:
        weights: State of the network.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        points: Random points of the equation.
        boundary_points: Random points on each of the four sides.
        weight: Weight of the boundary in the loss; the equation has weight 1.
        seed: Seed of the points.

    Returns:
        The problem.

    Raises:
        ArgumentError: If an argument is out of range, or the weights do not fit the network.
    """
    _check(width, depth, points, boundary_points, weight, seed)
    spec = _model_spec(width, depth)
    model = trained(lambda: MLP(**spec.arguments), weights, f"width = {width}, depth = {depth}")
    return _problem(model, spec, points, boundary_points, weight, seed)


def training_task(
    settings: TrainingSettings,
    *,
    width: int = 128,
    depth: int = 6,
    points: int = 20_000,
    boundary_points: int = 500,
    weight: float = 100.0,
    seed: int = 0,
) -> TrainingTask:
    """Physics-informed training on the same loss, float64.

    Args:
        settings: Training settings; ``batch_size`` counts points of every block that has more.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        points: Random points of the equation.
        boundary_points: Random points on each of the four sides.
        weight: Weight of the boundary in the loss.
        seed: Seed of the points.

    Returns:
        The task.

    Raises:
        ArgumentError: If an argument is out of range.
    """
    _check(width, depth, points, boundary_points, weight, seed)
    torch.manual_seed(settings.seed)
    spec = _model_spec(width, depth)
    problem = _problem(MLP(**spec.arguments), spec, points, boundary_points, weight, seed)
    return TrainingTask.of(problem, settings)
