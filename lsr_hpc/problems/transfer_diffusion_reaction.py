"""Transfer between sources h(x) of u_t = 0.01 u_xx + 0.01 u^2 + h, with a network trained at one h.

Residual, functions and reference are those of :mod:`lsr_hpc.problems.diffusion_reaction`. Source of the
experiment: the follow-up of arXiv:2601.13989 on transferable response spaces (2-20x4-1, 1,341 parameters).
"""

from __future__ import annotations

from lsr_hpc.problems.condition_transfer import ConditionTransfer
from lsr_hpc.problems.diffusion_reaction import Sources, residual_blocks
from lsr_hpc.problems.operator_learning import evaluation_grid

__all__ = ["build", "training_task"]

_PROBLEM = ConditionTransfer(
    name="transfer_diffusion_reaction",
    dimensions=2,
    functions=Sources,
    blocks=residual_blocks,
    evaluation_points=evaluation_grid,
    stream=145,
)
build, training_task = _PROBLEM.build, _PROBLEM.training_task
