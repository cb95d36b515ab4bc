"""Problems of the shipped jobs for arms that do not use lsr_hpc's solvers.

They get the same network, the same weights, the same fitted and held-out rows with the same row scaling, and
are judged by the same figures; how they differentiate and solve is their own.
"""

# Legend: N fitted rows, P parameters, f row-scaled residual, J = df/dtheta at theta0.

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from lsr_hpc import Problem
from lsr_hpc.autodiff import push_forward
from lsr_hpc.build import build_problem
from lsr_hpc.job import load_job
from lsr_hpc.params import ParameterLayout
from lsr_hpc.rows import LocalRows, Segment
from lsr_hpc.settings import RefineSettings

__all__ = [
    "Case",
    "Linearised",
    "Tensors",
    "explicit_jacobian",
    "jacobian_of_points",
    "linearise",
    "load",
    "score",
]

Tensors = dict[str, Tensor]
# A case as it travels to an arm: job file, preset, overrides, instance.
Case = dict[str, Any]


def load(case: Case) -> tuple[Problem, RefineSettings]:
    """Build the problem and settings of a case.

    Args:
        case: ``{"job": path, "preset": name or None, "overrides": [...], "instance": number}``.

    Returns:
        The problem and the job's settings.
    """
    job = load_job(case["job"], case.get("overrides", ()), case.get("preset"))
    return build_problem(job).instance(case.get("instance", 0)), job.refine_settings


@dataclass(frozen=True)
class Linearised:
    """A problem as plain functions of named parameter tensors, in one dtype.

    Attributes:
        problem: The problem.
        theta0: The trained state.
        layout: Order of the flat parameter vector.
        fit_rows: Fitted rows.
        held_rows: Held-out rows.
        dtype: Arithmetic of everything.
        module: Copy of the network in that dtype.
    """

    problem: Problem
    theta0: Tensors
    layout: ParameterLayout
    fit_rows: LocalRows
    held_rows: LocalRows
    dtype: torch.dtype
    module: torch.nn.Module

    @property
    def n_rows(self) -> int:
        """Fitted rows N."""
        return self.fit_rows.n_rows

    @property
    def n_parameters(self) -> int:
        """Parameters P."""
        return self.layout.size

    def field(self, tensors: Tensors) -> Callable[..., Tensor]:
        """The network with parameters bound."""
        return lambda *inputs: functional_call(self.module, tensors, inputs)

    def residual(self, tensors: Tensors) -> Tensor:
        """Row-scaled residual of the fitted rows, shape (N,)."""
        return self._stacked(self.fit_rows, tensors)

    def held_residual(self, tensors: Tensors) -> Tensor:
        """Row-scaled residual of the held-out rows."""
        return self._stacked(self.held_rows, tensors)

    def segment_residual(self, segment: Segment, tensors: Tensors, data: tuple[Tensor, ...]) -> Tensor:
        """Row-scaled residual of some points of a segment, flat."""
        return segment.scale * segment.block.residual(self.field(tensors), *data).reshape(-1)

    def data(self, segment: Segment) -> tuple[Tensor, ...]:
        """Points and data of a segment in the dtype of the arm."""
        return tuple(t.to(self.dtype) if t.is_floating_point() else t for t in segment.tensors)

    def _stacked(self, rows: LocalRows, tensors: Tensors) -> Tensor:
        pieces = [self.segment_residual(s, tensors, self.data(s)) for s in rows.segments]
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=self.dtype)


def linearise(problem: Problem, settings: RefineSettings, dtype: torch.dtype = torch.float64) -> Linearised:
    """Prepare a problem for plain torch.

    Args:
        problem: The problem.
        settings: Its settings; they fix the held-out rows.
        dtype: Arithmetic.

    Returns:
        The functions.
    """
    from mpi4py import MPI

    from lsr_hpc.prepare import prepare

    # Nothing of the product's memory plan is used here.
    ample = replace(settings, compute=replace(settings.compute, memory_per_rank="100TiB", device="cpu"))
    prepared = prepare(problem, MPI.COMM_SELF, ample)
    module = copy.deepcopy(problem.model).to(dtype).requires_grad_(False)
    layout = prepared.model.layout
    theta0 = layout.unflatten(prepared.model.theta0.to(dtype))
    return Linearised(problem, theta0, layout, prepared.fit, prepared.held, dtype, module)


def explicit_jacobian(
    linear: Linearised, points_per_chunk: int = 512, at: Tensors | None = None, names: Sequence[str] = ()
) -> Tensor:
    """All of J, one reverse pass per point, vectorised over points.

    Args:
        linear: The problem.
        points_per_chunk: Points differentiated at once.
        at: Parameters to differentiate at; None for theta0.
        names: The parameters to differentiate by, in the order of the layout; all if empty.

    Returns:
        Shape (N, P), rows in the order of the fitted rows.
    """
    sizes = dict(zip(linear.layout.names, linear.layout.shapes, strict=True))
    columns = sum(math.prod(sizes[name]) for name in names or linear.layout.names)
    out = torch.empty(linear.n_rows, columns, dtype=linear.dtype)
    row = 0
    for segment in linear.fit_rows.segments:
        for lo in range(0, segment.n_points, points_per_chunk):
            hi = min(lo + points_per_chunk, segment.n_points)
            block = jacobian_of_points(linear, segment, lo, hi, at, names)
            out[row : row + len(block)] = block
            row += len(block)
    return out


def jacobian_of_points(
    linear: Linearised,
    segment: Segment,
    lo: int,
    hi: int,
    at: Tensors | None = None,
    names: Sequence[str] = (),
) -> Tensor:
    """Rows of J of some points of a segment.

    Args:
        linear: The problem.
        segment: The segment.
        lo: First point.
        hi: Point behind the last one.
        at: Parameters to differentiate at; None for theta0.
        names: The parameters to differentiate by; all if empty.

    Returns:
        Shape (rows of the points, P).
    """
    fixed = linear.theta0 if at is None else at
    free = {name: fixed[name] for name in names or linear.layout.names}

    def rows_of_point(*point: Tensor) -> Tensor:
        batch = tuple(t[None] for t in point)
        blocks: Any = jacrev(lambda part: linear.segment_residual(segment, {**fixed, **part}, batch))(free)
        return torch.cat([block.flatten(1) for block in blocks.values()], dim=1)

    rows: Tensor = vmap(rows_of_point)(*(t[lo:hi] for t in linear.data(segment))).flatten(0, 1)
    return rows


def score(linear: Linearised, delta: Tensor) -> dict[str, float | None]:
    """Judge a parameter correction, in float64 whatever the arm computed in.

    Args:
        linear: The problem in float64.
        delta: Shape (P,).

    Returns:
        ``error``: relative L2 error of the linear predictor on the evaluation data; ``held_out`` and
        ``train``: root weighted mean squares of the linearised residual; None without such data, and for
        figures that are not finite.
    """
    tangents = linear.layout.unflatten(delta.double())

    def root_mean_square(residual: Callable[[Tensors], Tensor]) -> float:
        value, change = push_forward(residual, linear.theta0, tangents)
        return float((value + change).norm())

    figures: dict[str, float | None] = {"error": None, "held_out": None}
    with torch.no_grad():
        # The row scale divides by the points of the whole block; weights of the shipped problems are 1.
        figures["train"] = root_mean_square(linear.residual) / _share(linear, linear.fit_rows)
        if linear.held_rows.n_rows:
            figures["held_out"] = root_mean_square(linear.held_residual) / _share(linear, linear.held_rows)
        evaluation = linear.problem.evaluation
        if evaluation is not None:
            inputs = tuple(t.double() for t in evaluation.inputs)
            value, change = push_forward(lambda p: linear.field(p)(*inputs), linear.theta0, tangents)
            figures["error"] = evaluation.error(value + change)
    return {k: v if v is not None and math.isfinite(v) else None for k, v in figures.items()}


def _share(linear: Linearised, rows: LocalRows) -> float:
    """Root of the summed weights of the blocks, each times its share of points in the set."""
    points: dict[str, int] = {}
    for segment in rows.segments:
        points[segment.block.name] = points.get(segment.block.name, 0) + segment.n_points
    blocks = linear.problem.blocks
    return math.sqrt(sum(b.weight * points.get(b.name, 0) / b.n_points for b in blocks))
