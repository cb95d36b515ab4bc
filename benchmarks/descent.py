"""Training that goes on: Adam with a cosine schedule over the budget, and L-BFGS, on the loss itself.

Both take all rows in every step, in float64, on torch's own optimisers.
"""

# Legend: P parameters, f row-scaled residual, loss ||f||^2.

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.track import Track

__all__ = ["Residual", "adam", "lbfgs"]

Residual = Callable[[Tensor], Tensor]
"""Parameters (P,) to the row-scaled residual (N,)."""

_LBFGS_STEPS = 10
_HISTORY = 100


def adam(residual: Residual, theta0: Tensor, track: Track, learning_rate: float = 1e-3) -> int:
    """Adam whose step size falls to zero, as half a cosine, when the time is over.

    Args:
        residual: The residual.
        theta0: Start, shape (P,).
        track: Clock.
        learning_rate: First step size.

    Returns:
        Gradients taken.
    """
    theta = theta0.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=learning_rate)
    gradients = 0
    while track.tell(theta, iterations=gradients):
        share = min(track.seconds / track.budget_s, 1.0)
        optimiser.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * share)) / 2
        optimiser.zero_grad()
        loss = residual(theta).square().sum()
        if not torch.isfinite(loss):
            break
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        gradients += 1
    return gradients


def lbfgs(residual: Residual, theta0: Tensor, track: Track) -> int:
    """L-BFGS with strong Wolfe line searches and 100 pairs; begun anew where its line search finds no step.

    Args:
        residual: The residual.
        theta0: Start, shape (P,).
        track: Clock.

    Returns:
        Gradients taken.
    """
    theta = theta0.clone().requires_grad_()
    gradients = 0

    def closure() -> Tensor:
        nonlocal gradients
        optimiser.zero_grad()
        loss = residual(theta).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients += 1
        return loss

    optimiser = _new_lbfgs(theta)
    has_stalled = False
    while track.tell(theta, iterations=gradients):
        before = theta.detach().clone()
        optimiser.step(closure)  # type: ignore[no-untyped-call]
        if not bool(torch.isfinite(theta).all()):
            break
        if not torch.equal(before, theta.detach()):
            has_stalled = False
        elif has_stalled:
            break
        else:
            optimiser, has_stalled = _new_lbfgs(theta), True
    return gradients


def _new_lbfgs(theta: Tensor) -> torch.optim.LBFGS:
    return torch.optim.LBFGS(
        [theta],
        max_iter=_LBFGS_STEPS,
        max_eval=25 * _LBFGS_STEPS,
        history_size=_HISTORY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
