"""Section ``[iterate]`` of a job: rounds of refinement and alignment."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from lsr_hpc.errors import JobError
from lsr_hpc.settings.checks import at_least, choice, refuse

__all__ = ["IterateSettings"]


@dataclass(frozen=True, kw_only=True)
class IterateSettings:
    """Section ``[iterate]``: rounds of refinement and alignment of the network.

    Attributes:
        rounds: Most rounds.
        resample: Whether every round draws new points; the problem must know how.
        ranks: ``subspace.rank`` of round after round, the last one repeated; empty for the same in all.
        warm_share: Share of a round's Krylov basis that is taken over from the round before; at most half.
        objective: What the network is aligned to: ``"residual"`` (the problem's own loss), ``"targets"`` (the
            values of the refined predictor), or ``"pseudo_time"`` (published: the loss, with
            ``(u - target) / pseudo_time`` added to the largest block).
        target_share: Part of the way from network to predictor at which the targets lie, above 0, at most 1.
        pseudo_time: Length of the pseudo-time step.
        optimizer: ``"tangent"`` (damped Gauss-Newton steps in the tangent space), ``"lbfgs"`` or ``"adam"``.
        steps: Optimiser steps in a round.
        learning_rate: Of Adam.
        history: Of L-BFGS.
        precision: ``"float64"``, or ``"float32"`` for L-BFGS and Adam.
        tangent_rank: Directions of a tangent step.
        momentum: Share of the last tangent step to start the next one from, below 1.
        acceleration: Whether tangent steps are bent along the curvature (geodesic acceleration).
        max_seconds: No round begins later than this many seconds after the first; absent for no limit.
        target_error: Stop once the network's error on the evaluation data is at most this.
        target_residual: Stop once the network's residual, the square root of the loss, is at most this.
        patience: Stop after so many rounds in a row that improve neither network nor predictor by a tenth.
    """

    rounds: int = 10
    resample: bool = False
    ranks: tuple[int, ...] = ()
    warm_share: float = 0.0
    objective: str = "residual"
    target_share: float = 1.0
    pseudo_time: float = 1e-3
    optimizer: str = "tangent"
    steps: int = 10
    learning_rate: float = 1e-3
    history: int = 100
    precision: str = "float64"
    tangent_rank: int = 400
    momentum: float = 0.9
    acceleration: bool = True
    max_seconds: float | None = None
    target_error: float | None = None
    target_residual: float | None = None
    patience: int = 3

    def __post_init__(self) -> None:
        """Check each value and how they go together."""
        refuse(
            choice("iterate", "objective", self.objective, ("residual", "targets", "pseudo_time")),
            choice("iterate", "optimizer", self.optimizer, ("tangent", "lbfgs", "adam")),
            choice("iterate", "precision", self.precision, ("float64", "float32")),
            at_least("iterate", self, rounds=1, steps=1, history=1, tangent_rank=1, patience=1),
            at_least("iterate", self, max_seconds=0.0, target_error=0.0, target_residual=0.0),
            [
                f"iterate.{key} = {getattr(self, key)}: must be positive and finite"
                for key in ("learning_rate", "pseudo_time")
                if not 0.0 < getattr(self, key) < inf
            ],
            [
                f"iterate.{key} = {getattr(self, key)}: must be at least 0 and below 1"
                for key in ("momentum", "warm_share")
                if not 0.0 <= getattr(self, key) < 1.0
            ],
            [f"iterate.ranks = {list(self.ranks)}: each must be at least 1"] * any(k < 1 for k in self.ranks),
        )
        if not 0.0 < self.target_share <= 1.0:
            raise JobError(f"iterate.target_share = {self.target_share}: must be above 0 and at most 1")
        if self.precision == "float32" and self.optimizer == "tangent":
            raise JobError(
                'iterate.precision = "float32" is for "lbfgs" and "adam": tangent steps are solved in float64'
            )

    def rank_of(self, round_: int, otherwise: int) -> int:
        """``subspace.rank`` of a round.

        Args:
            round_: Number of the round, from 0.
            otherwise: The job's ``subspace.rank``.

        Returns:
            The rank.
        """
        return self.ranks[min(round_, len(self.ranks) - 1)] if self.ranks else otherwise
