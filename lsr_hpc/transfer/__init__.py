"""Cross-condition transfer: many conditions solved in the tangent space of one network.

    q_c = q0 + Phi c,     min over c of ||F_t(c)||^2,     F_t(c) = N_t(q_c)

The channels q0 and response modes Phi (:mod:`lsr_hpc.channels`) are those of a network trained at one
condition, the source, and are computed once. Another condition t (forcing, initial value, coefficient)
changes the residual N_t alone, and is solved by Gauss-Newton in the same affine space. Source: the follow-up
of arXiv:2601.13989 on transferable response spaces.
"""

from lsr_hpc.transfer.groups import FailedTarget, SolvedTarget, solve_targets, target_groups
from lsr_hpc.transfer.modes import compute_modes, digest_of_modes
from lsr_hpc.transfer.space import TransferSpace
from lsr_hpc.transfer.statistics import Spread, spread

__all__ = [
    "FailedTarget",
    "SolvedTarget",
    "Spread",
    "TransferSpace",
    "compute_modes",
    "digest_of_modes",
    "solve_targets",
    "spread",
    "target_groups",
]
