"""Regression of sin(k pi x) sin(k pi y) on [-1, 1]^2 with a tanh network (arXiv:2601.13989, function fit).

10,000 uniform points, 80 % of them for the fit and 20 % to choose the rank; error on a 100 x 100 grid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lsr_hpc.models import MLP
from lsr_hpc.problem import Evaluation, Field, ModelSpec, Problem, ResidualBlock
from lsr_hpc.problems.arguments import check_range, check_seed, trained
from lsr_hpc.sampling import uniform_rows
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask, draw_batch

__all__ = ["build", "training_task"]

_STREAM_POINTS = 21


def _check_common(k: int, width: int, depth: int, stretch: float, points: int, seed: int) -> None:
    check_range("k", k, 1, 10**6)
    check_range("width", width, 1, 100_000)
    check_range("depth", depth, 1, 1000)
    check_range("stretch", stretch, 1e-6, 1e6)
    check_range("points", points, 2, 10**7)
    check_seed(seed)


def _target(x: Tensor, k: int) -> Tensor:
    return torch.sin(k * torch.pi * x).prod(dim=-1, keepdim=True)


def _points(n: int, seed: int) -> Tensor:
    return torch.from_numpy(2 * uniform_rows(seed, _STREAM_POINTS, 0, n, 2) - 1)


def _grid() -> Tensor:
    axis = torch.linspace(-1, 1, 100, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def _model_spec(width: int, depth: int, stretch: float) -> ModelSpec:
    # Inputs are uniform on [-1, 1]: mean 0, standard deviation 1 / sqrt(3).
    arguments = {"widths": [2] + [width] * depth + [1], "input_std": [float(np.sqrt(1 / 3)) / stretch] * 2}
    return ModelSpec(architecture="mlp", arguments=arguments)


def build(
    weights: dict[str, Tensor],
    *,
    k: int = 1,
    width: int = 128,
    depth: int = 6,
    stretch: float = 1.0,
    points: int = 10_000,
    seed: int = 0,
) -> Problem:
    """Build the problem from trained weights.

    Args:
        weights: State of the network.
        k: Wave number.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        stretch: Factor on the z-scored inputs; plain ones never leave the plateau at error 1 for k = 4.
        points: Number of sample points; the job's held-out fraction splits them.
        seed: Seed of the points.

    Returns:
        The problem.

    Raises:
        ArgumentError: If an argument is out of range, or the weights do not fit the network.
    """
    _check_common(k, width, depth, stretch, points, seed)
    spec = _model_spec(width, depth, stretch)
    sizes = f"width = {width}, depth = {depth}"
    model = trained(lambda: MLP(**spec.arguments), weights, sizes)
    x, grid = _points(points, seed), _grid()

    def misfit(u: Field, x: Tensor, target: Tensor) -> Tensor:
        return u(x) - target

    return Problem(
        name="function_fit",
        model=model,
        model_spec=spec,
        blocks=[ResidualBlock(name="misfit", residual=misfit, points=x, data=(_target(x, k),))],
        evaluation=Evaluation(inputs=(grid,), reference=_target(grid, k)),
    )


def training_task(
    settings: TrainingSettings,
    *,
    k: int = 1,
    width: int = 128,
    depth: int = 6,
    stretch: float = 1.0,
    points: int = 10_000,
    seed: int = 0,
    held_out: float = 0.2,
) -> TrainingTask:
    """Supervised training on mini-batches, float32.

    Args:
        settings: Training settings; ``batch_size`` counts points.
        k: Wave number.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        stretch: Factor on the z-scored inputs; plain ones never leave the plateau at error 1 for k = 4.
        points: Number of sample points.
        seed: Seed of the points.
        held_out: Share of the points that training never sees.

    Returns:
        The task.

    Raises:
        ArgumentError: If an argument is out of range.
    """
    _check_common(k, width, depth, stretch, points, seed)
    check_range("held_out", held_out, 0.0, 0.99)
    n_training = round(points * (1 - held_out))
    check_range("batch_size", settings.batch_size or 1, 1, n_training)
    torch.manual_seed(settings.seed)
    model = MLP(**_model_spec(width, depth, stretch).arguments)
    x = _points(points, seed)[:n_training].float()
    y, grid = _target(x, k), _grid().float()
    reference = _target(grid, k)

    def loss(generator: torch.Generator) -> Tensor:
        batch = draw_batch(len(x), settings, generator)
        misfit: Tensor = model(x[batch]) - y[batch]
        return misfit.square().mean()

    def error() -> float:
        with torch.no_grad():
            return float((model(grid) - reference).norm() / reference.norm())

    return TrainingTask(model=model, loss=loss, error=error)
