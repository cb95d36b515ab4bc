"""Transfer between initial values of the viscous Burgers equation, with a network trained at one of them.

Residual, initial values and reference are those of :mod:`lsr_hpc.problems.burgers_operator`. Source of the
experiment: the follow-up of arXiv:2601.13989 on transferable response spaces (2-20x4-1, 1,341 parameters).
"""

from __future__ import annotations

from lsr_hpc.problems.burgers_operator import Starts, residual_blocks
from lsr_hpc.problems.condition_transfer import ConditionTransfer
from lsr_hpc.problems.operator_learning import evaluation_grid

__all__ = ["build", "training_task"]

_PROBLEM = ConditionTransfer(
    name="transfer_burgers",
    dimensions=2,
    functions=Starts,
    blocks=residual_blocks,
    evaluation_points=evaluation_grid,
    stream=149,
)
build, training_task = _PROBLEM.build, _PROBLEM.training_task
