"""Two reference methods for Burgers' equation, against each other and against what is known of both."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from lsr_hpc.problems.burgers_reference import burgers_spectrum, burgers_wave, sum_of_waves

STEEP = 0.01 / np.pi
X = np.linspace(-1, 1, 257)
T = np.linspace(0, 1, 101)


def wave(viscosity: float, nodes: int = 120) -> np.ndarray:
    """On the grid, shape (101, 257)."""
    t, x = (a.ravel() for a in np.meshgrid(T, X, indexing="ij"))
    return burgers_wave(x, t, viscosity, nodes).reshape(101, 257)


def spectral(viscosity: float, n: int, steps: int) -> np.ndarray:
    grid = -1 + 2 * np.arange(n) / n
    waves = burgers_spectrum(
        -np.sin(np.pi * grid)[None], viscosity=viscosity, length=2.0, snapshots=101, steps=steps
    )
    return sum_of_waves(waves[0], X + 1, 2.0)


def test_cole_hopf_and_the_spectral_method_agree_on_a_steep_front() -> None:
    assert np.abs(spectral(STEEP, 2048, 2000) - wave(STEEP)).max() < 2e-8


def test_cole_hopf_and_the_spectral_method_agree_to_rounding_on_a_smooth_solution() -> None:
    assert np.abs(spectral(0.1, 128, 4000) - wave(0.1)).max() < 1e-12


def test_quadrature_of_the_wave_has_converged() -> None:
    assert np.abs(wave(STEEP, 160) - wave(STEEP)).max() < 1e-13


@pytest.mark.parametrize(("x", "t"), [(0.1, 0.3), (-0.5, 0.7), (0.002, 1.0)])
def test_wave_is_the_quotient_of_integrals_of_cole_and_hopf(x: float, t: float) -> None:
    """u = -2 nu phi_x / phi, phi = integral of F(y) exp(-(x - y)^2 / (4 nu t)), by adaptive integration."""
    with mpmath.workdps(30):
        nu = mpmath.mpf("0.01") / mpmath.pi
        width = mpmath.sqrt(2 * nu * t)

        def heat(factor):  # type: ignore[no-untyped-def]
            def integrand(y):  # type: ignore[no-untyped-def]
                weight = mpmath.exp((1 - mpmath.cos(mpmath.pi * y)) / (2 * mpmath.pi * nu))
                return factor(y) * weight * mpmath.exp(-((x - y) ** 2) / (4 * nu * t))

            return mpmath.quad(integrand, [x + k * width for k in range(-30, 31)])

        slope = heat(lambda y: -(x - y) / (2 * nu * t))
        expected = float(-2 * nu * slope / heat(lambda _: 1))

    assert burgers_wave(np.array([x]), np.array([t]), STEEP)[0] == pytest.approx(expected, abs=1e-13)


def test_spectral_method_is_of_fourth_order_in_time() -> None:
    exact = wave(0.1)
    coarse, fine = (np.abs(spectral(0.1, 128, steps) - exact).max() for steps in (100, 200))
    assert 12 < coarse / fine < 20


def test_waves_are_those_of_an_fft_and_go_through_the_initial_values() -> None:
    rng = np.random.default_rng(0)
    values = np.cumsum(rng.standard_normal((2, 16)), axis=1)
    # Smooth enough that the last coefficient, which is left out, vanishes.
    spectrum = np.fft.rfft(values)
    spectrum[:, 8] = 0
    values = np.fft.irfft(spectrum, 16)
    waves = burgers_spectrum(values, viscosity=0.1, length=3.0, snapshots=2, steps=400)

    assert waves.shape == (2, 2, 9)
    np.testing.assert_allclose(sum_of_waves(waves[:, 0], 3 * np.arange(16) / 16, 3.0), values, atol=1e-14)


def test_mean_is_kept_and_a_moving_frame_only_shifts() -> None:
    """Galilean invariance: u + 1 started from a + 1 is u moved by t."""
    grid = np.arange(256) / 256
    a = 0.3 * np.sin(2 * np.pi * grid) + 0.1 * np.cos(4 * np.pi * grid)
    waves = burgers_spectrum(np.stack([a, a + 1]), viscosity=0.01, length=1.0, snapshots=3, steps=2000)
    x = np.linspace(0, 1, 50)

    assert np.abs(waves[0, :, 0] - waves[0, 0, 0]).max() < 1e-15
    for m, t in enumerate((0, 0.5, 1)):
        still, moving = sum_of_waves(waves[0, m], x, 1.0), sum_of_waves(waves[1, m], x + t, 1.0)
        np.testing.assert_allclose(moving, still + 1, atol=1e-9)
