"""ENGD-W and SPRING on the weights, from their formulas.

    ENGD-W   theta <- theta - eta J^T (J J^T + lam I)^-1 f
    SPRING   phi <- mu phi + J^T (J J^T + lam I)^-1 (f - mu J phi),   theta <- theta - eta phi

eta is fixed, or that of {2^-30, ..., 1/2, 1} with the smallest loss. J comes in blocks of points and is held
where it fits into a limit, otherwise every block is made again for each pair of blocks of the kernel. Where
there are more rows than parameters, and J fits, (J^T J + lam I)^-1 J^T x takes the place of
J^T (J J^T + lam I)^-1 x; they are equal, and it is smaller.

Source: Guzman-Cordero et al., arXiv:2505.12149; SPRING: Goldshlager, Abrahamsen, Lin, arXiv:2401.10190.
"""

# Legend: N rows, P parameters, f row-scaled residual, J = df/dtheta, lam damping, mu momentum, eta step size.

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.cases import Linearised, Tensors, jacobian_of_points
from benchmarks.descent import Residual
from benchmarks.track import Track

__all__ = ["StreamedJacobian", "best_step_size", "natural_gradient"]

_STEP_SIZES = tuple(2.0**-i for i in range(31))
_POINTS_PER_BLOCK = 512
_HELD_BYTES = 2 * 2**30
# Factor on the damping where rounding leaves the damped kernel indefinite.
_MORE_DAMPING = 10.0


class StreamedJacobian:
    """J at one state of the network, in blocks of rows.

    Args:
        linear: The problem.
        at: Parameters.
        held_bytes: J is held if it takes no more.
        points_per_block: Points differentiated at once.

    Attributes:
        jt_columns: Rows of J made so far.
    """

    def __init__(
        self,
        linear: Linearised,
        at: Tensors,
        held_bytes: int = _HELD_BYTES,
        points_per_block: int = _POINTS_PER_BLOCK,
    ) -> None:
        self._linear, self._at = linear, at
        self._pieces = [
            (segment, lo, min(lo + points_per_block, segment.n_points))
            for segment in linear.fit_rows.segments
            for lo in range(0, segment.n_points, points_per_block)
        ]
        self.jt_columns = 0
        self._held: Tensor | None = None
        if 8 * linear.n_rows * linear.n_parameters <= held_bytes:
            self._held = torch.empty(linear.n_rows, linear.n_parameters, dtype=linear.dtype)
            for row, block in self._made():
                self._held[row : row + len(block)] = block

    def _made(self, first: int = 0) -> Iterator[tuple[int, Tensor]]:
        """First row and rows of the blocks from one on."""
        row = sum((hi - lo) * s.probe.rows_per_point for s, lo, hi in self._pieces[:first])
        for segment, lo, hi in self._pieces[first:]:
            block = jacobian_of_points(self._linear, segment, lo, hi, self._at)
            self.jt_columns += len(block)
            yield row, block
            row += len(block)

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        yield from self._made() if self._held is None else [(0, self._held)]

    def times(self, v: Tensor) -> Tensor:
        """``J v`` for v of shape (P,)."""
        return torch.cat([block @ v for _, block in self._blocks()])

    def transposed_times(self, u: Tensor) -> Tensor:
        """``J^T u`` for u of shape (N,)."""
        out = torch.zeros(self._linear.n_parameters, dtype=u.dtype)
        for row, block in self._blocks():
            out += block.T @ u[row : row + len(block)]
        return out

    def kernel(self) -> Tensor:
        """``J J^T``, shape (N, N)."""
        if self._held is not None:
            return self._held @ self._held.T
        out = torch.empty(self._linear.n_rows, self._linear.n_rows, dtype=self._linear.dtype)
        for number, (row, block) in enumerate(self._made()):
            here = slice(row, row + len(block))
            out[here, here] = block @ block.T
            for other_row, other in self._made(number + 1):
                there = slice(other_row, other_row + len(other))
                out[here, there] = block @ other.T
                out[there, here] = out[here, there].T
        return out

    def damped_inverse(self, damping: float) -> Callable[[Tensor], Tensor]:
        """``x -> J^T (J J^T + lam I)^-1 x``.

        Args:
            damping: lam.

        Returns:
            The map from (N,) to (P,).
        """
        if self._held is not None and self._linear.n_rows > self._linear.n_parameters:
            j = self._held
            factor = _cholesky(j.T @ j, damping)
            return lambda x: torch.cholesky_solve((j.T @ x)[:, None], factor)[:, 0]
        kernel = _cholesky(self.kernel(), damping)
        return lambda x: self.transposed_times(torch.cholesky_solve(x[:, None], kernel)[:, 0])


def _cholesky(matrix: Tensor, damping: float) -> Tensor:
    """Factor of the damped matrix, which is overwritten; damped more where that is not positive definite."""
    added = 0.0
    while True:
        matrix.diagonal().add_(damping - added)
        added = damping
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(matrix)
        if not info:
            return factor
        damping *= _MORE_DAMPING


def best_step_size(residual: Residual, theta: Tensor, direction: Tensor, loss: float) -> float:
    """The step size with the smallest loss at theta - eta direction.

    Args:
        residual: The residual.
        theta: Shape (P,).
        direction: Shape (P,).
        loss: Loss at theta.

    Returns:
        eta, one of {2^-30, ..., 1/2, 1}, or 0 if none of them lowers the loss.
    """
    best, best_loss = 0.0, loss
    with torch.no_grad():
        for eta in _STEP_SIZES:
            value = float(residual(theta - eta * direction).square().sum())
            if value < best_loss:
                best, best_loss = eta, value
    return best


def natural_gradient(
    linear: Linearised,
    residual: Residual,
    theta0: Tensor,
    track: Track,
    *,
    damping: float,
    momentum: float = 0.0,
    step_size: float | None = None,
) -> dict[str, int]:
    """ENGD-W, or SPRING where there is momentum, on all rows in every step.

    Args:
        linear: The problem.
        residual: Its residual as a function of flat parameters.
        theta0: Start, shape (P,).
        track: Clock.
        damping: lam.
        momentum: mu.
        step_size: eta; None searches it in every step.

    Returns:
        Counts of columns.
    """
    theta, phi = theta0.clone(), torch.zeros_like(theta0)
    steps = columns = j_columns = searches_in_vain = 0
    while track.tell(theta, iterations=steps):
        with torch.no_grad():
            f = residual(theta)
            jacobian = StreamedJacobian(linear, linear.layout.unflatten(theta))
            solve = jacobian.damped_inverse(damping)
            phi = momentum * phi + solve(f - momentum * jacobian.times(phi) if momentum else f)
            columns, j_columns = columns + jacobian.jt_columns, j_columns + bool(momentum)
            loss = float(f.square().sum())
            eta = best_step_size(residual, theta, phi, loss) if step_size is None else step_size
            theta = theta - eta * phi
        steps += 1
        searches_in_vain = 0 if eta else searches_in_vain + 1
        # Without momentum the next direction would be the same.
        if not bool(torch.isfinite(theta).all()) or searches_in_vain > (10 if momentum else 0):
            break
    return {"j_columns": j_columns, "jt_columns": columns}
