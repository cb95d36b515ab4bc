"""ETDRK4 against scipy's solver and its own order."""

from __future__ import annotations

from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp

from lsr_hpc.problems.exponential_steps import etdrk4

LINEAR = np.array([0.0, -1.0, -300.0])
START = np.array([0.7, -0.4, 0.5])


def coupled(v: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([v[..., 1] * v[..., 2], np.cos(v[..., 0]), v[..., 0] ** 2], axis=-1)


def error(steps: int) -> float:
    exact = solve_ivp(
        lambda t, v: LINEAR * v + coupled(v), (0, 1), START, method="Radau", rtol=1e-12, atol=1e-13
    ).y[:, -1]
    *_, last = islice(etdrk4(START, LINEAR, coupled, 1 / steps), steps)
    return float(np.abs(last - exact).max())


def test_stiff_system_is_followed_with_fourth_order() -> None:
    assert error(1600) < 1e-9
    assert 12 < error(400) / error(800) < 20


def test_linear_system_is_exact_in_one_step() -> None:
    first = next(etdrk4(START, LINEAR, np.zeros_like, 0.37))
    np.testing.assert_allclose(first, np.exp(0.37 * LINEAR) * START, rtol=1e-14)
