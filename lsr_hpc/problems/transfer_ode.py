"""Transfer between forcings h of the linear ODE s' = h, s(0) = 0 on [0, 1], with a network trained at one h.

The equation is linear, so that each condition takes one least-squares solve on the cached modes. Functions h
as in :mod:`lsr_hpc.problems.antiderivative`: piecewise linear on 512 points, with exact primitives. Source of
the experiment: the follow-up of arXiv:2601.13989 on transferable response spaces (1,321 parameters).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.derivatives import along
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.problems.condition_transfer import ConditionTransfer
from lsr_hpc.problems.gaussian_process import InterpolatedProcess
from lsr_hpc.problems.operator_learning import PointDraws, column

__all__ = ["build", "training_task"]

_EVALUATION = np.linspace(0.0, 1.0, 501)


class _Forcings(InterpolatedProcess):
    """Functions h with their primitives."""

    def solutions(self) -> NDArray[np.float64]:
        return self.primitive(_EVALUATION)


def _ode(u: Field, y: Tensor, h: Tensor) -> Tensor:
    return along(u, y) - h


def _start(u: Field, y: Tensor) -> Tensor:
    value: Tensor = u(y)
    return value


def _blocks(forcings: _Forcings, draws: PointDraws) -> list[ResidualBlock]:
    y = np.linspace(0.0, 1.0, draws.points)
    return [
        ResidualBlock(
            name="start", residual=_start, points=torch.zeros(1, 1, dtype=torch.float64), hold_out=False
        ),
        ResidualBlock(name="ode", residual=_ode, points=column(y), data=(column(forcings.at(y)[0]),)),
    ]


_PROBLEM = ConditionTransfer(
    name="transfer_ode",
    dimensions=1,
    functions=_Forcings,
    blocks=_blocks,
    evaluation_points=lambda: column(_EVALUATION),
    stream=141,
)
build, training_task = _PROBLEM.build, _PROBLEM.training_task
