"""Reference solutions of the viscous Burgers equation u_t + u u_x = nu u_xx, periodic in x.

Two methods that share nothing, so that each checks the other: a Fourier spectral method in x with exponential
time differencing for any initial values, and the Cole-Hopf formula for u(x, 0) = -sin(pi x).
"""

# Legend: i solutions, n grid points, m snapshots, k wave number.

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.problems.exponential_steps import etdrk4

__all__ = ["burgers_spectrum", "burgers_wave", "sum_of_waves"]

Array = NDArray[np.float64]
ComplexArray = NDArray[np.complex128]


def burgers_spectrum(
    initial: Array, *, viscosity: float, length: float, snapshots: int, steps: int, duration: float = 1.0
) -> ComplexArray:
    """Solve from initial values on an equispaced grid.

    Args:
        initial: Values at x = 0, length / n, 2 length / n, ..., shape (i, n), n even.
        viscosity: nu.
        length: Period in x.
        snapshots: Number m of equispaced times that are kept, the first and the last included.
        steps: Time steps, a multiple of m - 1.
        duration: Last time.

    Returns:
        Fourier coefficients c_k of each solution at each time, shape (i, m, n / 2 + 1), for
        :func:`sum_of_waves`.
    """
    n = initial.shape[1]
    k = 2 * np.pi / length * np.arange(n // 2 + 1)
    # The square of u has waves that the grid cannot tell from longer ones: two thirds are free of them.
    kept = np.arange(n // 2 + 1) <= n // 3

    def advection(v: NDArray[Any]) -> ComplexArray:
        u = np.fft.irfft(v, n)
        product: ComplexArray = -0.5j * k * kept * np.fft.rfft(u * u)
        return product

    steps_per_snapshot = steps // (snapshots - 1)
    v = np.fft.rfft(initial)
    out = np.empty((len(initial), snapshots, len(k)), dtype=np.complex128)
    out[:, 0] = v
    states = etdrk4(v, -viscosity * k**2, advection, duration / steps)
    for step, v in enumerate(islice(states, steps), start=1):
        if step % steps_per_snapshot == 0:
            out[:, step // steps_per_snapshot] = v
    return out / n


def sum_of_waves(coefficients: ComplexArray, x: Array, length: float) -> Array:
    """Evaluate Fourier coefficients anywhere: ``c_0 + 2 Re sum_k c_k exp(2 pi i k x / length)``.

    Args:
        coefficients: Shape (..., n / 2 + 1); the last, which a grid holds only in part, is left out.
        x: Points, shape (p,).
        length: Period.

    Returns:
        Values, shape (..., p).
    """
    waves = np.exp(2j * np.pi / length * np.outer(np.arange(coefficients.shape[-1] - 1), x))
    weights = np.where(np.arange(len(waves)) == 0, 1.0, 2.0)
    values: Array = ((coefficients[..., :-1] * weights) @ waves).real
    return values


def burgers_wave(x: Array, t: Array, viscosity: float, nodes: int = 120) -> Array:
    """The solution with u(x, 0) = -sin(pi x) on [-1, 1], by Cole-Hopf and Gauss-Hermite quadrature.

    With F(y) = exp(-cos(pi y) / (2 pi nu)) and y = x - 2 sqrt(nu t) z,
    ``u = -sum w sin(pi y) F(y) / sum w F(y)`` over nodes z and weights w.

    Args:
        x: Places, shape (p,).
        t: Times >= 0, shape (p,).
        viscosity: nu; down to 0.003 F stays within float64.
        nodes: Nodes of the quadrature.

    Returns:
        u, shape (p,).
    """
    z, w = np.polynomial.hermite.hermgauss(nodes)  # type: ignore[no-untyped-call]
    y = np.pi * (x[:, np.newaxis] - 2 * np.sqrt(viscosity * t)[:, np.newaxis] * z)
    weights = w * np.exp(-np.cos(y) / (2 * np.pi * viscosity))
    u: Array = -(np.sin(y) * weights).sum(axis=1) / weights.sum(axis=1)
    return u
