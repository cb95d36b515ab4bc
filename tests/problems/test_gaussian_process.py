"""Random input functions: their primitives against quadrature."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.problems.gaussian_process import PROCESSES, check_process, odd_periodic_draws


@pytest.mark.parametrize("forcing", PROCESSES)
def test_primitives_are_integrals(forcing: str) -> None:
    process = PROCESSES[forcing](range(3, 5), 7)
    places = np.array([0.0, 0.3, 0.7123, 1.0])
    once, twice = process.primitive(places), process.second_primitive(places)
    kinks = np.linspace(0, 1, 512)[1:-1]

    for row in range(2):

        def moment(x: float, power: int, row: int = row) -> float:
            """Cauchy's formula: the integral of (x - z)^power h(z)."""
            total = 0.0
            # Between its kinks the function is a line, or smooth.
            edges = [0.0, *kinks[kinks < x], x]
            for a, b in pairwise(edges):
                z, w = np.polynomial.legendre.leggauss(4)
                nodes = (a + b) / 2 + (b - a) / 2 * z
                total += (b - a) / 2 * float(w @ ((x - nodes) ** power * process.at(nodes)[row]))
            return total

        for i, x in enumerate(places):
            assert once[row, i] == pytest.approx(moment(x, 0), abs=1e-13)
            assert twice[row, i] == pytest.approx(moment(x, 1), abs=1e-13)


def test_unknown_process_is_refused() -> None:
    with pytest.raises(ArgumentError, match="forcing = 'white'"):
        check_process("white")


@pytest.mark.parametrize("length", [0.5, 1.0])
def test_odd_periodic_draws_have_their_covariance(length: float) -> None:
    x = np.array([0.1, 0.35, 0.8])
    draws = odd_periodic_draws(range(20_000), 7, x, period=2.0, length=length)

    def kernel(d: np.ndarray) -> np.ndarray:
        return np.exp(-2 * np.sin(np.pi * d / 2) ** 2 / length**2)

    # Of (a(x) - a(-x)) / sqrt(2), whose mean square over the period is k(0) less the mean of k.
    mean = kernel(np.linspace(0, 2, 400, endpoint=False)).mean()
    odd = (kernel(x[:, None] - x) - kernel(x[:, None] + x)) / (1 - mean)
    # 20,000 draws: the sampling error of a covariance is one percent.
    np.testing.assert_allclose(draws.T @ draws / len(draws), odd, atol=0.05)
