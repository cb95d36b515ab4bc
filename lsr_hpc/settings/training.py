"""Settings of the training that makes the start of a shipped problem."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from lsr_hpc.errors import JobError
from lsr_hpc.settings.checks import at_least, choice, refuse

__all__ = ["TrainingSettings"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How the start of a shipped problem is trained.

    Attributes:
        steps: Optimiser steps.
        optimizer: ``"adam"``, or ``"lbfgs"`` on all training points at once, with strong Wolfe line searches.
        lbfgs_steps: Iterations of L-BFGS behind those of Adam.
        batch_size: Functions or points per step of Adam, as the problem counts them; absent takes all.
        learning_rate: Adam's step size at the beginning.
        schedule: ``"cosine"`` to zero, or ``"exponential"``: times ``decay`` every ``decay_every`` steps.
        decay: Factor of the exponential schedule.
        decay_every: Steps between two factors.
        seed: Seed of the initial weights and of the batches.
    """

    steps: int
    optimizer: str = "adam"
    lbfgs_steps: int = 0
    batch_size: int | None = None
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    decay: float = 0.9
    decay_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check each value."""
        refuse(
            at_least("train", self, steps=1, lbfgs_steps=0, batch_size=1, decay_every=1, seed=0),
            [
                f"train.{key} = {getattr(self, key)}: must be positive and finite"
                for key in ("learning_rate", "decay")
                if not 0.0 < getattr(self, key) < inf
            ],
            choice("train", "schedule", self.schedule, ("cosine", "exponential")),
            choice("train", "optimizer", self.optimizer, ("adam", "lbfgs")),
        )
        if (self.optimizer == "lbfgs" or self.lbfgs_steps) and self.batch_size is not None:
            raise JobError(
                f"train.batch_size = {self.batch_size}: leave it out with L-BFGS, whose line searches need "
                "the same points in every step"
            )
        if self.optimizer == "lbfgs" and self.lbfgs_steps:
            raise JobError(
                f"train.lbfgs_steps = {self.lbfgs_steps} are those behind Adam: with train.optimizer = "
                '"lbfgs" add them to train.steps'
            )
