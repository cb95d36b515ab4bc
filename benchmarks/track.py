"""The clock of an arm of ``accuracy``, and the judge of what it found.

An arm tells of its iterates while its clock runs; a thinned copy is kept, and judged once the time is over,
by the same code in float64 for every arm. So no evaluation is on the clock, nor in the memory peak.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.arms import Measurement
from benchmarks.cases import Linearised, Tensors
from lsr_hpc import Problem
from lsr_hpc.autodiff import push_forward
from lsr_hpc.params import ParameterLayout, digest
from lsr_hpc.plan import peak_rss_bytes

__all__ = ["Iterate", "Track", "identity", "judge"]

# Seconds between two iterates that are kept, as a share of the seconds so far.
_SPACING = 0.15
# Evaluation points at once.
_POINTS = 8192


@dataclass(frozen=True)
class Iterate:
    """What an arm has at some moment.

    Attributes:
        seconds: When it had it.
        theta: Weights, shape (P,), float64.
        delta: Correction of a linear predictor around them, shape (P,); None where the weights are it.
        notes: More of JSON types, such as the number of iterations.
    """

    seconds: float
    theta: Tensor
    delta: Tensor | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass
class Track:
    """Clock of one arm; it runs from construction on.

    Attributes:
        budget_s: Seconds that count.
        started: When it began, on the clock of ``time.perf_counter``.
        kept: Iterates to judge, in the order of time.
        last: The last iterate in time, kept or not.
    """

    budget_s: float
    started: float = field(default_factory=time.perf_counter)
    kept: list[Iterate] = field(default_factory=list)
    last: Iterate | None = None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.started

    @property
    def is_over(self) -> bool:
        """Whether the time is over."""
        return self.seconds > self.budget_s

    def tell(
        self, theta: Tensor, delta: Tensor | None = None, seconds: float | None = None, **notes: Any
    ) -> bool:
        """Tell of what the arm has now, in place of what it had before.

        One that comes late does not count, unless it is the first: a result in one shot takes the time it
        takes.

        Args:
            theta: Weights, shape (P,).
            delta: Correction of a linear predictor around them.
            seconds: When it was there; None for now.
            **notes: More to keep with it.

        Returns:
            Whether there is time for more.
        """
        now = self.seconds if seconds is None else seconds
        is_late = now > self.budget_s
        if not is_late or self.last is None:
            self.last = Iterate(
                now,
                theta.detach().double().clone(),
                None if delta is None else delta.detach().double().clone(),
                notes,
            )
            if not self.kept or now >= (1 + _SPACING) * self.kept[-1].seconds:
                self.kept.append(self.last)
        return not is_late

    def judged(self, linear: Linearised, **more: Any) -> Measurement:
        """Judge what was kept; the clock stands still from here on.

        Args:
            linear: The problem with all of its rows, in float64.
            **more: Entries of the measurement.

        Returns:
            The figures of the last iterate, ``history``, and the memory peak before any judging.
        """
        spent, peak = self.seconds, peak_rss_bytes()
        iterates = [*self.kept]
        if self.last is not None and self.last is not iterates[-1]:
            iterates.append(self.last)
        history = [{"seconds": i.seconds, **judge(linear, i.theta, i.delta), **i.notes} for i in iterates]
        finite = [point for point in history if point["error"] is not None]
        last: Measurement = history[-1] if history else {"seconds": None, "error": None}
        return {
            **last,
            "kind": "weights" if self.last is None or self.last.delta is None else "predictor",
            "best_error": min((p["error"] for p in finite), default=None),
            "history": finite,
            "spent_s": spent,
            "is_late": bool(iterates) and iterates[-1].seconds > self.budget_s,
            "rows": linear.n_rows,
            "params": linear.n_parameters,
            "peak_rss_bytes": peak,
            **more,
        }


def judge(linear: Linearised, theta: Tensor, delta: Tensor | None = None) -> dict[str, float | None]:
    """Error and residuals of weights, or of a linear predictor around them.

    Args:
        linear: The problem with all of its rows, in float64.
        theta: Weights, shape (P,).
        delta: Correction of the predictor, shape (P,).

    Returns:
        ``error``: relative L2 on the evaluation data; ``true``: square root of the loss of the field;
        ``linear``: the same of the linearised residual, of predictors alone. None where it is not finite.
    """
    at = linear.layout.unflatten(theta)
    figures: dict[str, float | None] = {"linear": None}
    with torch.no_grad():
        if delta is None:
            field_ = linear.field(at)
        else:
            tangents = linear.layout.unflatten(delta)
            field_ = _predictor(linear, at, tangents)
            value, change = push_forward(linear.residual, at, tangents)
            figures["linear"] = float((value + change).norm())
        rows = [
            s.scale * s.block.residual(field_, *linear.data(s)).reshape(-1) for s in linear.fit_rows.segments
        ]
        figures["true"] = float(torch.cat(rows).norm())
        evaluation = linear.problem.evaluation
        assert evaluation is not None
        inputs, _ = evaluation.take(slice(None))
        parts = zip(*(t.split(_POINTS) for t in inputs), strict=True)
        figures["error"] = evaluation.error(torch.cat([field_(*part) for part in parts]))
    return {k: v if v is not None and math.isfinite(v) else None for k, v in figures.items()}


def _predictor(linear: Linearised, at: Tensors, tangents: Tensors) -> Callable[..., Tensor]:
    def field_(*inputs: Tensor) -> Tensor:
        value, change = push_forward(lambda tensors: linear.field(tensors)(*inputs), at, tangents)
        return value + change

    return field_


def identity(problem: Problem) -> dict[str, str]:
    """Digests of what every arm must have been given.

    Args:
        problem: The problem.

    Returns:
        ``theta0_sha256`` of the weights as float64, ``rows_sha256`` of points, data and weights of all
        blocks.
    """
    theta = ParameterLayout.of(problem.model).read(problem.model)
    found = hashlib.sha256()
    for block in problem.blocks:
        found.update(f"{block.name} {block.weight!r}".encode())
        for values in block.take(np.arange(block.n_points)):
            found.update(np.ascontiguousarray(values.numpy()).tobytes())
    return {"theta0_sha256": digest(theta), "rows_sha256": found.hexdigest()}
