"""What the network is aligned to, as a problem of its own: its residual blocks are those of the alignment.

    residual      the blocks of the problem itself
    targets       u(x) - y(x) at the alignment points
    pseudo_time   the problem's blocks, (u(x) - y(x)) / dtau added to the largest one (arXiv:2601.13989v1)

with targets y = u0 + share * (u* - u0) between the network u0 and the refined predictor u*.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.problem import Field, Problem, ResidualBlock, RowSource, as_tensor
from lsr_hpc.settings import IterateSettings

__all__ = ["alignment_problem"]

_BATCH = 4096


def alignment_problem(
    problem: Problem, model: FunctionalModel, delta: NDArray[np.float64], settings: IterateSettings
) -> Problem:
    """The least-squares problem whose solution is the aligned network.

    Args:
        problem: The problem at this round's network.
        model: This round's network.
        delta: Correction of the refined predictor, shape (P,).
        settings: Section ``[iterate]``.

    Returns:
        A problem with the same network and other residual blocks; nothing of it is to be held out.

    Raises:
        JobError: If the network cannot be evaluated at the alignment points, or one is NaN or Inf.
    """
    # One of weight 0 is left out of the loss.
    largest = max((b for b in problem.blocks if b.weight > 0), key=lambda block: block.n_points)
    blocks = list(problem.blocks)
    if settings.objective != "residual":
        step = torch.from_numpy(settings.target_share * delta).to(model.device)
        points = largest.points
        if settings.objective == "targets" and problem.alignment_points is not None:
            points = problem.alignment_points
            _require_finite(points)
        _check_points(model, points)
        targets = _TargetValues(model.refined_field(step), points, model.device)
        if settings.objective == "targets":
            blocks = [
                ResidualBlock(
                    name="targets", residual=_misfit, points=points, data=(targets,), hold_out=False
                )
            ]
        else:
            blocks[blocks.index(largest)] = _proximal(largest, targets, settings.pseudo_time)
    return replace(problem, blocks=blocks, validation=(), evaluation=None)


def _misfit(u: Field, x: Tensor, y: Tensor) -> Tensor:
    return u(x) - y


def _proximal(block: ResidualBlock, targets: RowSource, pseudo_time: float) -> ResidualBlock:
    """The block with the distance to the targets added to its rows."""

    def residual(u: Field, x: Tensor, *data: Tensor) -> Tensor:
        *own, y = data
        rows = block.residual(u, x, *own)
        distance = (u(x) - y) / pseudo_time
        return rows + distance.reshape(rows.shape)

    return replace(block, residual=residual, data=(*block.data, targets))


@dataclass(frozen=True)
class _TargetValues:
    """Values of a field at points, evaluated where and when a rank takes its rows."""

    field: Field
    points: RowSource
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self.points.shape[0]), *self[np.arange(1)].shape[1:])

    def __getitem__(self, index: Any, /) -> Tensor:
        if isinstance(self.points, Tensor) and isinstance(index, np.ndarray):
            index = torch.from_numpy(index)
        x = as_tensor(self.points[index])
        with torch.no_grad():
            pieces = [self.field(x[lo : lo + _BATCH].to(self.device)) for lo in range(0, len(x), _BATCH)]
        return torch.cat(pieces).cpu() if pieces else torch.zeros(0, 1, dtype=torch.float64)


def _require_finite(points: RowSource) -> None:
    if not bool(torch.isfinite(as_tensor(points[:])).all()):
        raise JobError("Problem.alignment_points holds NaN or Inf: clean the points")


def _check_points(model: FunctionalModel, points: RowSource) -> None:
    x = as_tensor(points[:2])
    try:
        with torch.no_grad():
            shape = tuple(model.field()(x.to(model.device)).shape)
    except Exception as error:
        raise JobError(
            f"the network cannot be evaluated at the alignment points, shape {tuple(x.shape)} for two "
            f"of them ({type(error).__name__}: {error}): give Problem.alignment_points that are inputs of "
            'the network, or set iterate.objective = "residual"'
        ) from error
    if len(shape) != 2 or shape[0] != len(x):
        raise JobError(f"the network maps {len(x)} alignment points to shape {shape}: (n, C) is needed")
