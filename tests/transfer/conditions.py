"""A family of conditions small enough for dense truth, also as a user's own problem in job files.

    u' + a u + b u^2 = f(x),   u(0) = s

with one network; forcing f, start s and coefficient a are data of a condition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsr_hpc import Evaluation, Problem, ProblemFamily, ResidualBlock
from lsr_hpc.derivatives import value_and_along
from lsr_hpc.models import MLP

X = torch.linspace(0, 1, 120, dtype=torch.float64)[:, None]
WEIGHT = 5.0


def network() -> MLP:
    torch.manual_seed(3)
    return MLP([1, 10, 10, 1]).double()


def forcing(i: int) -> Tensor:
    return torch.cos((1 + i) * X) + 0.3 * i


def coefficient(i: int) -> Tensor:
    return (1 + 0.2 * i) * torch.ones_like(X)


def condition(i: int, b: float = 0.0, **changes: Any) -> Problem:
    """Condition i; ``b = 0`` is linear in u."""

    def equation(u: Any, x: Tensor, a: Tensor, f: Tensor) -> Tensor:
        value, slope = value_and_along(u, x)
        return slope + a * value + b * value**2 - f

    start = torch.full((1, 1), 0.1 * i, dtype=torch.float64)
    settings = {
        "model": network(),
        "blocks": [
            ResidualBlock(name="equation", residual=equation, points=X, data=(coefficient(i), forcing(i))),
            ResidualBlock(
                name="start", residual=lambda u, x, s: u(x) - s, points=X[:1], data=(start,), weight=WEIGHT
            ),
        ],
        "evaluation": Evaluation(inputs=(X,), reference=torch.ones_like(X)),
    }
    return Problem(name=f"condition {i}", **(settings | changes))


def family(conditions: int = 5, b: float = 0.0, spoilt: int = -1) -> ProblemFamily:
    """Conditions 0 to ``conditions - 1``; one of them may have a NaN in its forcing."""

    def instance(i: int) -> Problem:
        made = condition(i, b)
        if i == spoilt:
            equation, start = made.blocks
            bad = forcing(i)
            bad[7] = torch.nan
            block = ResidualBlock(
                name="equation", residual=equation.residual, points=X, data=(equation.data[0], bad)
            )
            return condition(i, b, blocks=[block, start])
        return made

    return ProblemFamily(name="conditions", n_instances=conditions, instance=instance)
