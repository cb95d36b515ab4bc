"""How certain a refinement is, under its linear model: standard errors, and a band around the refined field.

    rows  f = r0 + J V c + noise,  independent, of variance sigma^2 after the rows' scaling
    sigma^2 = ||r||^2 / (N - j)
    Cov c = L L^T,   L = sigma F^+ F^+T R^T,   F = [R; mu I];   without damping L = sigma R^+
    Var u(x) = sum over columns l of L of ( [du/dtheta](x) V W l )^2

R is the reduced factor that solved the problem, W its singular directions; so standard errors cost nothing,
and a band j columns of J at the points asked for. What the model leaves out is not in it: the bias of
directions that the rank or the damping leaves out, the choice of the rank on held-out rows, and what is
nonlinear in theta.
"""

# Legend: N fitted rows, j directions used, P parameters, n points.

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from lsr_hpc.errors import JobError
from lsr_hpc.oneshot import Refinement, refine_prepared
from lsr_hpc.phases import Phases
from lsr_hpc.prepare import PreparedProblem, prepare
from lsr_hpc.problem import Problem, ResidualBlock
from lsr_hpc.result import RefineResult
from lsr_hpc.settings import HeldOutSettings, RefineSettings, SubspaceSettings
from lsr_hpc.world import this_process

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Band", "Coefficients", "coefficients", "refine_with_band"]

Array = NDArray[np.float64]
# Of the column-scaled factor: directions below are dependent on others and have no error of their own.
_DEPENDENT = 1e-13


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """Coefficients of the singular directions of J V, with their covariance.

    Attributes:
        c: Coefficients, shape (j,).
        root: L with Cov c = L L^T, shape (j, j).
        sigma: Standard deviation of the scaled rows.
        degrees_of_freedom: Fitted rows less directions used.
    """

    c: Array
    root: Array
    sigma: float
    degrees_of_freedom: int

    @property
    def standard_errors(self) -> Array:
        """Of each coefficient, shape (j,)."""
        errors: Array = np.linalg.norm(self.root, axis=1)
        return errors


@dataclass(frozen=True, kw_only=True)
class Band:
    """A refined field with its uncertainty, equal on all ranks.

    Attributes:
        points: Where, shape (n, d).
        field: Refined field, shape (n, C).
        standard_error: Of the field at each point, shape (n, C).
        half_width: Half the width of the band that holds the field at each point, taken by itself, with the
            probability asked for.
        coefficients: What it follows from.
    """

    points: Array
    field: Array
    standard_error: Array
    half_width: Array
    coefficients: Coefficients


def coefficients(refinement: Refinement, mu: float = 0.0) -> Coefficients:
    """Standard errors of the coefficients of a refinement.

    Args:
        refinement: The refinement, of a residual that is linear in u.
        mu: Its damping, ``solver.mu``.

    Returns:
        Coefficients and covariance, equal on all ranks.

    Raises:
        JobError: If there are no coefficients, or no rows left to tell the noise from.
    """
    solution = refinement.solution
    if solution.fitted is None or solution.rank == 0:
        raise JobError(
            "no coefficients to be uncertain of: the refinement was refused, or was over all of parameter "
            'space (solver.space = "full")',
            on_every_rank=True,
        )
    if solution.resolve_steps is not None:
        raise JobError(
            "the residual was solved again because it is nonlinear in u, where the linear model has no say: "
            "set solver.resolve = false to have its standard errors all the same",
            on_every_rank=True,
        )
    fitted, j = solution.fitted, len(solution.c)
    freedom = fitted.n_rows - j
    if freedom < 1:
        raise JobError(
            f"{fitted.n_rows} rows and {j} directions leave none to tell the noise from: lower subspace.rank",
            on_every_rank=True,
        )
    sigma = fitted.residual_norm(solution.c) / np.sqrt(freedom)
    r = fitted.r[:j, :j]
    inverse = _pseudo_inverse(np.vstack([r, mu * np.eye(j)]) if mu > 0 else r)
    root = sigma * (inverse @ (inverse.T @ r.T) if mu > 0 else inverse)
    return Coefficients(c=solution.c, root=root, sigma=float(sigma), degrees_of_freedom=freedom)


def refine_with_band(
    problem: Problem,
    points: Tensor,
    comm: MPI.Comm | None = None,
    settings: RefineSettings | None = None,
    level: float = 0.95,
) -> tuple[RefineResult, Band]:
    """Refine a network, and say how certain the refined field is at some points.

    Args:
        problem: Network and residual blocks, equal on all ranks. The weights of its blocks must be such that
            all scaled rows have the same variance: one block of data of equal noise, or weight_k proportional
            to N_k / variance_k.
        points: Where, shape (n, d); the network must take one input.
        comm: Communicator whose ranks share the rows; None works in this process alone.
        settings: Settings of the refinement; None takes the defaults.
        level: Probability that the band holds the field at a point, above 0 and below 1.

    Returns:
        The refinement's result, and the band, both equal on all ranks.

    Raises:
        JobError: If the input is wrong, or the refinement has no linear model; see :func:`coefficients`.

    Collective: all ranks; a refinement, and one block product of j columns with n rows.
    """
    comm = this_process() if comm is None else comm
    settings = settings or RefineSettings()
    if not 0 < level < 1:
        raise JobError(f"level = {level}: must be above 0 and below 1", on_every_rank=True)
    phases = Phases()
    with phases("prepare"):
        prepared = prepare(problem, comm, settings)
    refinement = refine_prepared(prepared, phases)
    found = coefficients(refinement, settings.solver.mu)
    with phases("band"):
        modes = _field_modes(prepared, refinement, found.root, points)
    with torch.no_grad():
        delta = torch.from_numpy(refinement.result.delta).to(prepared.model.device)
        field = prepared.model.refined_field(delta)(points.double().to(prepared.model.device)).cpu().numpy()
    deviation = np.linalg.norm(modes, axis=0).reshape(field.shape)
    band = Band(
        points=points.double().numpy(),
        field=field,
        standard_error=deviation,
        half_width=float(student.ppf((1 + level) / 2, found.degrees_of_freedom)) * deviation,
        coefficients=found,
    )
    return refinement.result, band


def _field_modes(prepared: PreparedProblem, refinement: Refinement, root: Array, points: Tensor) -> Array:
    """[du/dtheta](x) V W L at the points, shape (j, n C): the field taken for a residual of its own."""

    def value(u: Any, x: Tensor) -> Tensor:
        out: Tensor = u(x)
        return out

    problem = Problem(
        name=f"{prepared.problem.name}: field",
        model=prepared.problem.model,
        blocks=[ResidualBlock(name="field", residual=value, points=points)],
    )
    settings = RefineSettings(
        subspace=SubspaceSettings(
            rank=len(root),
            parameters=prepared.settings.subspace.parameters,
            parameter_fraction=prepared.settings.subspace.parameter_fraction,
            seed=prepared.settings.subspace.seed,
        ),
        held_out=HeldOutSettings(fraction=0.0),
        compute=prepared.settings.compute,
    )
    at_points = prepare(problem, prepared.comm, settings, may_lower_rank=True)
    assert refinement.basis is not None
    turned = root.T @ refinement.solution.rotation[:, : len(root)].T @ refinement.basis.v_local
    local = at_points.jacobian.jv(np.ascontiguousarray(turned))
    # The rows of a block of weight one are divided by the root of its number of points.
    modes: Array = np.hstack(prepared.comm.allgather(local)) * np.sqrt(len(points))
    return modes


def _pseudo_inverse(matrix: Array) -> Array:
    """Of a tall matrix of full column rank but for directions that depend on others, columns scaled first."""
    scale = np.linalg.norm(matrix, axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    inverse: Array = np.linalg.pinv(matrix / scale, rcond=_DEPENDENT) / scale[:, np.newaxis]
    return inverse
