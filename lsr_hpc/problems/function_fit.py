"""Regression of sin(k pi x) sin(k pi y) on [-1, 1]^2 with a tanh network (arXiv:2601.13989, function fit).

10,000 uniform points, 80 % of them for the fit and 20 % to choose the rank; error on a 100 x 100 grid.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lsr_hpc.models import MLP
from lsr_hpc.problem import Evaluation, Field, ModelSpec, Problem, ResidualBlock
from lsr_hpc.sampling import uniform_rows
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask

__all__ = ["build", "training_task"]

_STREAM_POINTS = 21


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
    """
    spec = _model_spec(width, depth, stretch)
    model = MLP(**spec.arguments)
    model.load_state_dict(weights)
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
    """
    torch.manual_seed(settings.seed)
    model = MLP(**_model_spec(width, depth, stretch).arguments)
    x = _points(points, seed)[: round(points * (1 - held_out))].float()
    y, grid = _target(x, k), _grid().float()
    reference = _target(grid, k)

    def loss(generator: torch.Generator) -> Tensor:
        batch = torch.randint(len(x), (settings.batch_size,), generator=generator)
        misfit: Tensor = model(x[batch]) - y[batch]
        return misfit.square().mean()

    def error() -> float:
        with torch.no_grad():
            return float((model(grid) - reference).norm() / reference.norm())

    return TrainingTask(model=model, loss=loss, error=error)
