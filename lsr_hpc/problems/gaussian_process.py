"""Random input functions: a Gaussian process on [0, 1] with covariance exp(-d^2 / (2 l^2)).

Two ways to sample it. ``spectral`` sums random cosines with the process's own spectral density: smooth and
exact. ``interpolated`` is the published one: noise of 1e-5 on 512 equispaced points, linear between them, so
the function is only piecewise linear. Both come with their exact primitive.
"""

# Legend: l correlation length, i functions, n points.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ive

from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.sampling import gaussian_rows

__all__ = ["PROCESSES", "InputProcess", "InterpolatedProcess", "SpectralProcess", "check_process"]

Array = NDArray[np.float64]
_STREAM_FUNCTIONS = 11
_STREAM_NOISE = 12
_STREAM_PERIODIC = 13
# For l >= 0.3 the last wave has an amplitude below 1e-16.
_PERIODIC_WAVES = 48


class SpectralProcess:
    """Draws of the process as sums of random cosines and sines: smooth, with a smooth primitive.

    The covariance is the trapezoidal sum of the spectral density l sqrt(2 / pi) exp(-(l w)^2 / 2) on w >= 0,
    exact to rounding for ``|d| <= 1`` with the step and the range used here.

    Args:
        numbers: Global numbers of the functions.
        seed: Seed of the draws.
        length: Correlation length l.
    """

    def __init__(self, numbers: range, seed: int, length: float = 0.2) -> None:
        # Step 2 pi / 4: copies of the covariance sit at distance 4, and exp(-(4 - 1)^2 / (2 l^2)) < 1e-48.
        step = 2 * np.pi / 4.0
        self.frequencies = np.arange(0.0, 9.0 / length, step)
        weights = step * length * np.sqrt(2 / np.pi) * np.exp(-((length * self.frequencies) ** 2) / 2)
        weights[0] /= 2
        xi = gaussian_rows(seed, _STREAM_FUNCTIONS, numbers.start, numbers.stop, 2 * len(self.frequencies))
        self.cosine, self.sine = np.split(xi * np.tile(np.sqrt(weights), 2), 2, axis=1)

    def at(self, x: Array) -> Array:
        """Function values.

        Args:
            x: Points, shape (n,).

        Returns:
            Shape (i, n).
        """
        phase = np.outer(self.frequencies, x)
        values: Array = self.cosine @ np.cos(phase) + self.sine @ np.sin(phase)
        return values

    def primitive(self, x: Array) -> Array:
        """Integral from 0 to x, exact.

        Args:
            x: Points, shape (n,).

        Returns:
            Shape (i, n).
        """
        w = self.frequencies[1:, np.newaxis]
        waves = (np.vstack([x, np.sin(w * x) / w]), np.vstack([np.zeros_like(x), (1 - np.cos(w * x)) / w]))
        primitive: Array = self.cosine @ waves[0] + self.sine @ waves[1]
        return primitive

    def second_primitive(self, x: Array) -> Array:
        """Integral of the primitive from 0 to x, exact.

        Args:
            x: Points, shape (n,).

        Returns:
            Shape (i, n).
        """
        w = self.frequencies[1:, np.newaxis]
        waves = (
            np.vstack([x**2 / 2, (1 - np.cos(w * x)) / w**2]),
            np.vstack([np.zeros_like(x), (x - np.sin(w * x) / w) / w]),
        )
        primitive: Array = self.cosine @ waves[0] + self.sine @ waves[1]
        return primitive


def odd_periodic_draws(numbers: range, seed: int, x: Array, *, period: float, length: float) -> Array:
    """Odd periodic Gaussian process, smooth, its mean square over the period 1.

    The odd part of a process with covariance exp(-2 sin(pi d / period)^2 / l^2) (MacKay 1998), scaled. The
    Fourier coefficients of that are modified Bessel functions, I_k(1 / l^2).

    Args:
        numbers: Global numbers of the functions; function i of a seed is the same everywhere.
        seed: Seed of the draws.
        x: Places, shape (n,).
        period: Period in x.
        length: Correlation length l, of the order of the period over 2 pi for l = 1.

    Returns:
        Values, shape (i, n).
    """
    k = np.arange(1, _PERIODIC_WAVES + 1)
    variances = ive(k, 1 / length**2)
    amplitudes = np.sqrt(2 * variances / variances.sum())
    draws = gaussian_rows(seed, _STREAM_PERIODIC, numbers.start, numbers.stop, len(k))
    values: Array = (draws * amplitudes) @ np.sin(2 * np.pi / period * np.outer(k, x))
    return values


class InterpolatedProcess:
    """Draws of the process at 512 equispaced points, linear between, plus noise of variance 1e-10.

    The published recipe factors K + 1e-10 I by Cholesky. Samples of that agree to five digits only from one
    machine to the next, so the same distribution is drawn in another way: a spectral draw plus the noise that
    the 1e-10 stands for.

    Args:
        numbers: Global numbers of the functions; function i of a seed is the same everywhere.
        seed: Seed of the draws.
        length: Correlation length l.
        n_grid: Grid points on [0, 1].
    """

    def __init__(self, numbers: range, seed: int, length: float = 0.2, n_grid: int = 512) -> None:
        self.grid = np.linspace(0.0, 1.0, n_grid)
        noise = gaussian_rows(seed, _STREAM_NOISE, numbers.start, numbers.stop, n_grid)
        self.values = SpectralProcess(numbers, seed, length).at(self.grid) + 1e-5 * noise

    def at(self, x: Array) -> Array:
        """Function values.

        Args:
            x: Points in [0, 1], shape (n,).

        Returns:
            Shape (i, n).
        """
        return np.stack([np.interp(x, self.grid, row) for row in self.values])

    def primitive(self, x: Array) -> Array:
        """Integral from 0 to x of the interpolant, exact.

        Args:
            x: Points in [0, 1], shape (n,).

        Returns:
            Shape (i, n).
        """
        d, cell, left, slope = self._pieces(x)
        values: Array = self._at_grid(1)[:, cell] + left * d + slope * d**2 / 2
        return values

    def second_primitive(self, x: Array) -> Array:
        """Integral of the primitive from 0 to x, exact.

        Args:
            x: Points in [0, 1], shape (n,).

        Returns:
            Shape (i, n).
        """
        d, cell, left, slope = self._pieces(x)
        once, twice = self._at_grid(1)[:, cell], self._at_grid(2)[:, cell]
        values: Array = twice + once * d + left * d**2 / 2 + slope * d**3 / 6
        return values

    def _pieces(self, x: Array) -> tuple[Array, NDArray[np.int64], Array, Array]:
        """Distance from the grid point before, its number, the value there, and the slope behind it."""
        dx = self.grid[1]
        cell = np.clip((x / dx).astype(int), 0, len(self.grid) - 2)
        left = self.values[:, cell]
        return x - self.grid[cell], cell, left, (self.values[:, cell + 1] - left) / dx

    def _at_grid(self, times: int) -> Array:
        """First or second primitive at the grid points."""
        dx = self.grid[1]
        left, right = self.values[:, :-1], self.values[:, 1:]
        once = np.zeros_like(self.values)
        once[:, 1:] = np.cumsum(dx * (left + right) / 2, axis=1)
        if times == 1:
            return once
        twice = np.zeros_like(self.values)
        twice[:, 1:] = np.cumsum(dx * once[:, :-1] + dx**2 * (2 * left + right) / 6, axis=1)
        return twice


InputProcess = SpectralProcess | InterpolatedProcess
PROCESSES: dict[str, type[InputProcess]] = {
    "interpolated": InterpolatedProcess,
    "spectral": SpectralProcess,
}


def check_process(forcing: str) -> None:
    """Refuse an unknown way to sample.

    Args:
        forcing: Its name.

    Raises:
        ArgumentError: If it is none of :data:`PROCESSES`.
    """
    if forcing not in PROCESSES:
        raise ArgumentError("forcing", f"= {forcing!r}: use one of {', '.join(map(repr, PROCESSES))}")
