"""What a refinement returns: values, an outcome, and advice where the outcome is not the hoped-for one."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Outcome", "RefineResult"]


class Outcome(Enum):
    """How a refinement ended; each is a result, not an error."""

    REFINED = "refined"
    REFUSED = "refused"
    NOT_CONVERGED = "not converged"


@dataclass(frozen=True, kw_only=True)
class RefineResult:
    """Result of one-shot LSR on one problem; equal on all ranks.

    Residual figures are square roots of the weighted loss ``sum_k weight_k mean(r_k^2)``, its means taken
    over the rows that the solution was fitted to.

    Attributes:
        problem: Name of the problem.
        outcome: How it ended.
        advice: One sentence for every outcome but ``REFINED``, and for every failed check.
        delta: Parameter correction, shape (P,), float64.
        rank: Directions used, 0 if refused.
        rank_max: Directions made.
        error_before: Relative L2 error of the start on the evaluation data, or None without any.
        error_after: The same of the refined predictor.
        residual_before: At the start.
        residual_linear: Of the linearisation at the solution.
        residual_true: Of the refined field itself.
        scan: One entry per scanned rank: rank, train, held_out (root weighted mean squares), error; at the
            rank used also true, the residual of the refined field on the same scale.
        checks: Measured promises by name.
        counts: Rows, parameters and products of J.
        jacobian: Representation of J that was used.
        seconds: By phase, and in total.
        detail: How the subspace and the solution were made, in words.
        singular_values: Of J V on the fitted rows, largest first; empty for the full space.
        residual_components: Shares of the start residual along the left singular directions of J V,
            ``|u_i^T r0| / ||r0||``, of those not left out.
    """

    problem: str
    outcome: Outcome
    advice: list[str]
    delta: NDArray[np.float64]
    rank: int
    rank_max: int
    error_before: float | None
    error_after: float | None
    residual_before: float
    residual_linear: float
    residual_true: float
    scan: list[dict[str, Any]]
    checks: dict[str, float]
    counts: dict[str, int]
    jacobian: str
    seconds: dict[str, float]
    detail: dict[str, str]
    singular_values: list[float] = field(default_factory=list)
    residual_components: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The part of ``result.json`` that belongs to this problem; only JSON types, no NaN.

        Returns:
            A dictionary.
        """
        return {
            "problem": self.problem,
            "outcome": self.outcome.value,
            "advice": self.advice,
            "rows": self.counts["rows"],
            "params": self.counts["params"],
            "jacobian": self.jacobian,
            "rank": self.rank,
            "rank_max": self.rank_max,
            "error": {"before": self.error_before, "after": self.error_after},
            "residual": {
                "before": self.residual_before,
                "linear": self.residual_linear,
                "true": self.residual_true,
            },
            "scan": self.scan,
            "checks": self.checks,
            "counts": self.counts,
            "detail": self.detail,
            "singular_values": self.singular_values,
            "residual_components": self.residual_components,
            "seconds": self.seconds,
        }
