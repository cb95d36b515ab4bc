"""Time steps v' = L v + N(v) with a stiff diagonal L: the exponential Runge-Kutta method ETDRK4.

Cox, Matthews 2002; coefficients by contour integrals as in Kassam, Trefethen 2005.
"""

# Legend: v spectral coefficients, L linear part, N the rest, h time step.

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["etdrk4"]

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]
# Real or complex.
State = NDArray[Any]


def etdrk4(v: State, linear: Array, nonlinear: Callable[[State], State], h: float) -> Iterator[State]:
    """Step on for ever.

    Args:
        v: State at the start, shape (..., k).
        linear: Diagonal of L, shape (k,).
        nonlinear: N, shaped like v.
        h: Time step.

    Yields:
        The state after one step, two steps, ...
    """
    full, half, q, f1, f2, f3 = _coefficients(linear, h)
    while True:
        n_v = nonlinear(v)
        a = half * v + q * n_v
        n_a = nonlinear(a)
        b = half * v + q * n_a
        n_b = nonlinear(b)
        c = half * a + q * (2 * n_b - n_v)
        v = full * v + f1 * n_v + f2 * (n_a + n_b) + f3 * nonlinear(c)
        yield v


def _coefficients(linear: Array, h: float) -> tuple[Array, ...]:
    """Coefficients of ETDRK4; means over a circle avoid the cancellation that the formulas have near 0."""
    circle = np.exp(1j * np.pi * (np.arange(32) + 0.5) / 32)
    z = h * linear[:, np.newaxis] + circle
    e = np.exp(z)

    def mean(values: ComplexArray) -> Array:
        # The lower half of the circle holds the conjugates.
        real: Array = h * values.real.mean(axis=1)
        return real

    return (
        np.exp(h * linear),
        np.exp(h * linear / 2),
        mean((np.exp(z / 2) - 1) / z),
        mean((-4 - z + e * (4 - 3 * z + z**2)) / z**3),
        mean(2 * (2 + z + e * (z - 2)) / z**3),
        mean((-4 - 3 * z - z**2 + e * (4 - z)) / z**3),
    )
