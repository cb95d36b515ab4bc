"""Gauss-Newton on the weights: by conjugate gradients with damping, and in the last layer.

    min over d of ||f + J d||^2 + mu ||d||^2,   theta <- theta + d   if ||f||^2 falls

The first is matrix-free, its damping that of Levenberg and Marquardt; conjugate gradients end by the relative
progress of the quadratic, as in Hessian-free optimisation (Martens 2010). The second solves for the last
linear layer alone, in which the field is linear; where the residual is linear in u, one step is the
least-squares solution.
"""

# Legend: N rows, P parameters, f row-scaled residual, J = df/dtheta, mu damping.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.cases import Linearised, explicit_jacobian
from benchmarks.descent import Residual
from benchmarks.track import Track

__all__ = ["Products", "damped_step", "gn_cg", "last_layer", "last_layer_names"]

# Damping at the start as a share of an estimate of the largest squared singular value of J.
_FIRST_DAMPING = 1e-4
_LESS, _MORE, _REJECTED = 1 / 3, 2.0, 4.0
# Ratio of achieved to predicted fall of ||f||^2 above and below which the damping changes (Marquardt).
_GOOD, _POOR = 0.75, 0.25
_MOST_ITERATIONS = 300
_PROGRESS = 5e-4
# Share of the last direction from which conjugate gradients start (Martens 2010).
_KEPT = 0.95
_MOST_REJECTIONS = 20
_MOST_HALVINGS = 30
# Relative fall of the loss below which the last layer is done.
_DONE = 1e-12


@dataclass
class Products:
    """J and J^T at one state of the network, with counts.

    Attributes:
        residual: The residual.
        j_columns: Products with J so far.
        jt_columns: Products with J^T so far.
    """

    residual: Residual
    j_columns: int = 0
    jt_columns: int = 0

    def at(self, theta: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Linearise.

        Args:
            theta: Where, shape (P,).

        Returns:
            f, and the products with J and with J^T.
        """
        at = theta.detach().requires_grad_()
        f = self.residual(at)
        # J v is the derivative of u -> J^T u, which is linear. A reverse pass through its graph, which is
        # kept, takes a fraction of forward mode around the forward-mode derivatives of the residual.
        dummy = torch.zeros_like(f, requires_grad=True)
        [pulled] = torch.autograd.grad(f, at, dummy, create_graph=True)

        def j_times(v: Tensor) -> Tensor:
            self.j_columns += 1
            return torch.autograd.grad(pulled, dummy, v, retain_graph=True)[0]

        def jt_times(u: Tensor) -> Tensor:
            self.jt_columns += 1
            return torch.autograd.grad(f, at, u, retain_graph=True)[0]

        return f.detach(), j_times, jt_times


def damped_step(
    j_times: Callable[[Tensor], Tensor],
    jt_times: Callable[[Tensor], Tensor],
    gradient: Tensor,
    damping: float,
    start: Tensor,
    *,
    most_iterations: int = _MOST_ITERATIONS,
    progress: float = _PROGRESS,
    is_over: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Solve ``(J^T J + mu I) d = -J^T f`` by conjugate gradients.

    Args:
        j_times: Product with J.
        jt_times: Product with J^T.
        gradient: J^T f, shape (P,).
        damping: mu.
        start: Where to start, shape (P,).
        most_iterations: Limit.
        progress: End once the last k iterations lowered the quadratic by less than k times this share of it,
            k being a tenth of all but at least 10.
        is_over: Whether to end at once.

    Returns:
        d, shape (P,).
    """
    d = start.clone()
    left = -gradient - (jt_times(j_times(d)) + damping * d)
    direction = left.clone()
    squared = float(left @ left)
    values = [0.5 * float(d @ (gradient - left))]
    for i in range(1, most_iterations + 1):
        if squared == 0.0 or is_over():
            break
        image = j_times(direction)
        curved = jt_times(image) + damping * direction
        curvature = float(direction @ curved)
        if curvature == 0.0:
            # Both squares have underflown: the solution was reached long before.
            break
        length = squared / curvature
        d += length * direction
        left -= length * curved
        before, squared = squared, float(left @ left)
        direction = left + (squared / before) * direction
        # The quadratic 1/2 d^T (J^T J + mu) d + d^T J^T f, from what is left of its gradient.
        values.append(0.5 * float(d @ (gradient - left)))
        k = max(10, i // 10)
        if i > k and values[i] < 0 and values[i - k] - values[i] < -k * progress * values[i]:
            break
    return d


def gn_cg(residual: Residual, theta0: Tensor, track: Track) -> Products:
    """Gauss-Newton-CG with Levenberg-Marquardt damping; the loss never grows.

    Args:
        residual: The residual.
        theta0: Start, shape (P,).
        track: Clock.

    Returns:
        Counts of products.
    """
    products = Products(residual)
    theta, step, steps = theta0.clone(), torch.zeros_like(theta0), 0
    damping: float | None = None
    rejections = 0
    f, j_times, jt_times = products.at(theta)
    gradient = jt_times(f)
    while track.tell(theta, iterations=steps) and rejections < _MOST_REJECTIONS:
        if damping is None:
            # A Rayleigh quotient along the gradient, which training has left along large directions.
            damping = _FIRST_DAMPING * float(j_times(gradient).square().sum() / gradient.square().sum())
        step = damped_step(j_times, jt_times, gradient, damping, _KEPT * step, is_over=lambda: track.is_over)
        predicted = float((f + j_times(step)).square().sum())
        with torch.no_grad():
            after = residual(theta + step)
        loss, loss_after = float(f.square().sum()), float(after.square().sum())
        if not loss_after < loss:
            damping, step, rejections = damping * _REJECTED, torch.zeros_like(step), rejections + 1
            continue
        ratio = (loss - loss_after) / max(loss - predicted, torch.finfo(f.dtype).tiny)
        damping *= _LESS if ratio > _GOOD else _MORE if ratio < _POOR else 1.0
        theta, steps, rejections = theta + step, steps + 1, 0
        f, j_times, jt_times = products.at(theta)
        gradient = jt_times(f)
    return products


def last_layer_names(linear: Linearised) -> list[str]:
    """Weight and bias of the last linear layer: of a DeepONet that of the trunk.

    Args:
        linear: The problem.

    Returns:
        Names, in the order of the layout.
    """
    layer = linear.layout.names[-1].rpartition(".")[0]
    return [name for name in linear.layout.names if name.rpartition(".")[0] == layer]


def last_layer(linear: Linearised, theta0: Tensor, track: Track) -> int:
    """Least squares in the last layer; Gauss-Newton with halved steps where the residual is nonlinear in u.

    Args:
        linear: The problem.
        theta0: Start, shape (P,).
        track: Clock.

    Returns:
        Gauss-Newton steps taken.
    """
    names = last_layer_names(linear)
    at = linear.layout.unflatten(theta0)
    steps = 0
    with torch.no_grad():
        f = linear.residual(at)
        track.tell(theta0, iterations=0)
        while True:
            j = explicit_jacobian(linear, at=at, names=names)
            step = torch.linalg.lstsq(
                j, -f[:, None], driver="gelsd", rcond=torch.finfo(j.dtype).eps * max(j.shape)
            ).solution[:, 0]
            moved = _halved(linear, at, names, step, f)
            if moved is None:
                return steps
            loss, (at, f), steps = float(f.square().sum()), moved, steps + 1
            goes_on = track.tell(linear.layout.flatten(at), iterations=steps)
            if not goes_on or loss - float(f.square().sum()) <= _DONE * loss:
                return steps


def _halved(
    linear: Linearised, at: dict[str, Tensor], names: list[str], step: Tensor, f: Tensor
) -> tuple[dict[str, Tensor], Tensor] | None:
    """The first of step, step/2, step/4, ... that lowers the loss, with its residual; None if none does."""
    pieces = dict(zip(names, torch.split(step, [at[n].numel() for n in names]), strict=True))
    for halving in range(_MOST_HALVINGS):
        moved = {n: t + pieces[n].view(t.shape) / 2**halving if n in pieces else t for n, t in at.items()}
        residual = linear.residual(moved)
        if float(residual.square().sum()) < float(f.square().sum()):
            return moved, residual
    return None
