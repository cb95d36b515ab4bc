"""Standard errors and bands against closed forms, and their coverage of a truth that is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsr_hpc import (
    ComputeSettings,
    HeldOutSettings,
    Problem,
    RefineSettings,
    ResidualBlock,
    SolverSettings,
    SubspaceSettings,
)
from lsr_hpc.errors import JobError
from lsr_hpc.uncertainty import refine_with_band

N, P, NOISE = 60, 7, 0.1
X = torch.linspace(-1, 1, N, dtype=torch.float64)[:, None]
AT = torch.linspace(-1.2, 1.2, 13, dtype=torch.float64)[:, None]


class Polynomial(nn.Module):
    """Linear in its parameters: the linear model is the truth."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(P, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return features(x) @ self.theta[:, None]


def features(x: Tensor) -> Tensor:
    return x ** torch.arange(P)


def truth(x: Tensor) -> Tensor:
    return features(x) @ torch.tensor([0.3, -1.2, 0.8, 0.5, -0.7, 1.1, -0.9], dtype=torch.float64)[:, None]


def noisy(seed: int, noise: float = NOISE) -> Problem:
    y = truth(X) + noise * torch.from_numpy(np.random.default_rng(seed).standard_normal((N, 1)))
    block = ResidualBlock(name="data", residual=lambda u, x, y: u(x) - y, points=X, data=(y,), weight=3.0)
    return Problem(name="polynomial", model=Polynomial(), blocks=[block])


def settings(**solver: Any) -> RefineSettings:
    return RefineSettings(
        subspace=SubspaceSettings(rank=P, basis="svd"),
        held_out=HeldOutSettings(fraction=0.0),
        solver=SolverSettings(**solver),
        compute=ComputeSettings(device="cpu", jacobian="matrix_free"),
    )


def least_squares(problem: Problem, mu: float = 0.0) -> tuple[np.ndarray, np.ndarray, float]:
    """Field and standard errors at the points, and sigma of the data, by the normal equations."""
    a, y = features(X).numpy(), problem.blocks[0].data[0].numpy()[:, 0]
    # Rows are scaled by sqrt(3 / N), which is what mu is measured against.
    ridge = np.linalg.inv(a.T @ a + mu**2 * N / 3 * np.eye(P)) @ a.T
    theta = ridge @ y
    sigma = np.linalg.norm(a @ theta - y) / np.sqrt(N - P)
    at = features(AT).numpy()
    return at @ theta, sigma * np.linalg.norm(at @ ridge, axis=1), sigma


@pytest.mark.parametrize(("mu", "fraction"), [(0.0, 0.0), (0.05, 0.0), (0.0, 0.2)])
def test_band_is_that_of_the_normal_equations(mu: float, fraction: float) -> None:
    # So little noise that the held-out rows choose every direction.
    problem = noisy(0, NOISE if fraction == 0.0 else 1e-6)
    chosen = replace(settings(mu=mu), held_out=HeldOutSettings(fraction=fraction))
    result, band = refine_with_band(problem, AT, settings=chosen)
    assert result.rank == P
    field, error, sigma = least_squares(problem, mu)

    # The noise is the difference of numbers a million times larger in the second case.
    np.testing.assert_allclose(band.field[:, 0], field, rtol=1e-9)
    np.testing.assert_allclose(band.standard_error[:, 0], error, rtol=1e-6)
    assert band.coefficients.degrees_of_freedom == N - P
    assert band.coefficients.sigma == pytest.approx(sigma * np.sqrt(3 / N), rel=1e-9)
    # Of 53 degrees of freedom, from tables of Student's distribution.
    np.testing.assert_allclose(band.half_width / band.standard_error, 2.005746, rtol=1e-6)


def test_standard_errors_are_those_of_singular_directions() -> None:
    _, band = refine_with_band(noisy(0), AT, settings=settings())
    singular = np.linalg.svd(features(X).numpy() * np.sqrt(3 / N))[1]

    np.testing.assert_allclose(
        band.coefficients.standard_errors, band.coefficients.sigma / singular, rtol=1e-7
    )


@pytest.mark.parametrize("level", [0.95, 0.6])
def test_band_covers_the_truth_as_often_as_it_says(level: float) -> None:
    draws = 100
    covered = np.zeros((draws, len(AT)))
    for seed in range(draws):
        _, band = refine_with_band(noisy(seed), AT, settings=settings(), level=level)
        covered[seed] = np.abs(band.field - truth(AT).numpy())[:, 0] <= band.half_width[:, 0]

    # Each point is covered or not in 100 independent draws: within 4 standard deviations of a binomial.
    spread = 4 * np.sqrt(level * (1 - level) / draws)
    assert np.abs(covered.mean(axis=0) - level).max() <= spread
    assert abs(covered.mean() - level) <= spread / 2


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (settings(type="lsqr", space="full"), "no coefficients to be uncertain of"),
        (settings(resolve=True), "has no say"),
    ],
)
def test_refinement_without_a_linear_model_is_refused(chosen: RefineSettings, words: str) -> None:
    with pytest.raises(JobError, match=words):
        refine_with_band(noisy(0), AT, settings=chosen)


def test_as_many_directions_as_rows_are_refused() -> None:
    block = ResidualBlock(name="data", residual=lambda u, x: u(x) - torch.sin(x), points=X[:P])
    problem = Problem(name="interpolation", model=Polynomial(), blocks=[block])
    with pytest.raises(JobError, match="leave none to tell the noise from"):
        refine_with_band(problem, AT, settings=settings())


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_level_that_is_no_probability_is_refused(level: float) -> None:
    with pytest.raises(JobError, match="above 0 and below 1"):
        refine_with_band(noisy(0), AT, settings=settings(), level=level)
