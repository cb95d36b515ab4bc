"""Every subspace method on matrices with known singular values, steep and flat, deficient, tall and wide.

Bounds for the randomised methods: Halko, Martinsson, Tropp 2011 (HMT). Seeds are fixed, so a bound on the
expectation is asserted with a factor of two; the Frobenius error concentrates well inside that.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lsr_hpc.errors import AccuracyError
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.subspace.basis import Basis, captured_energy
from lsr_hpc.subspace.sketched import random_basis, range_finder_basis
from lsr_hpc.subspace.svd import svd_basis

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
AsJacobian = Callable[..., DistributedJacobian]
WithSpectrum = Callable[..., tuple[Array, Array, Array]]

RANK, OVERSAMPLING = 12, 8
INDEX = np.arange(1, 61)
SPECTRA = {
    "slow": INDEX**-0.7,
    "exponential": 10.0 ** (-INDEX / 20),
    "plateau and cliff": np.where(INDEX <= RANK, 1.0 + 0.01 * (RANK - INDEX), 1e-6 / INDEX),
}
SHAPES = {"tall": (150, 80), "wide": (80, 150)}
RANDOMISED = ["randomized", "range finder", "uniform range finder"]
CONVERGED = ["trlanczos", "cross"]


def make_basis(
    method: str,
    jacobian: DistributedJacobian,
    rank: int = RANK,
    oversampling: int = OVERSAMPLING,
    seed: int = 0,
    iterations: int | None = None,
    orthogonalization: str = "auto",
) -> Basis:
    common: dict[str, Any] = {"rank": rank, "seed": seed, "orthogonalization": orthogonalization}
    if method == "random":
        return random_basis(jacobian, **common)
    if "range finder" in method:
        test_matrix = "uniform" if "uniform" in method else "gaussian"
        return range_finder_basis(jacobian, oversampling=oversampling, test_matrix=test_matrix, **common)
    return svd_basis(
        jacobian,
        first_row=0,
        n_rows=jacobian.local.n_rows,
        oversampling=oversampling,
        solver=method,
        iterations=iterations or (2 if method == "randomized" else 200),
        **common,
    )


def exact_share(a: Array, v: Array) -> float:
    """Share of ||a||_F^2 in the span of the rows of v."""
    return float(np.sum((a @ v.T) ** 2) / np.sum(a**2))


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", [*RANDOMISED, *CONVERGED, "random"])
def test_directions_are_orthonormal_and_the_loss_is_reported(
    method: str, shape: str, spectrum: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, _ = with_spectrum(*SHAPES[shape], SPECTRA[spectrum])
    basis = make_basis(method, as_jacobian(a))

    assert basis.v_local.shape == (RANK, a.shape[1])
    assert basis.rank == RANK
    loss = np.abs(basis.v_local @ basis.v_local.T - np.eye(RANK)).max()
    # Householder QR, or Gram-Schmidt with re-orthogonalisation, of some 20 columns.
    assert loss <= 1e-12
    assert basis.orthogonality == pytest.approx(loss, abs=10 * EPS)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", CONVERGED)
def test_converged_solvers_find_the_exact_singular_values_and_vectors(
    method: str, shape: str, spectrum: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    sigma = SPECTRA[spectrum]
    a, _, v = with_spectrum(*SHAPES[shape], sigma)
    basis = make_basis(method, as_jacobian(a))

    assert basis.singular_values is not None
    # Stopped at a relative residual of 1e-10; cross works on J^T J, where sigma_i^2 errs by eps sigma_1^2.
    np.testing.assert_allclose(basis.singular_values, sigma[:RANK], rtol=1e-9)
    # The span, angle by angle; the gap behind rank 12 is at least 5 % of sigma, so 1e-10 becomes some 1e-8.
    cosines = np.linalg.svd(basis.v_local @ v[:, :RANK], compute_uv=False)
    assert cosines.min() >= 1 - 1e-12
    assert exact_share(a, basis.v_local) == pytest.approx(
        np.sum(sigma[:RANK] ** 2) / np.sum(sigma**2), rel=1e-10
    )


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", RANDOMISED)
def test_randomised_methods_leave_no_more_than_theory_allows(
    method: str, shape: str, spectrum: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    sigma = SPECTRA[spectrum]
    a, _, _ = with_spectrum(*SHAPES[shape], sigma)
    basis = make_basis(method, as_jacobian(a))

    # HMT Theorem 10.5 for the k + p columns, plus what truncating the sketch to k of them leaves behind.
    tail = float(np.sum(sigma[RANK:] ** 2))
    left_behind = float(np.sum((a - (a @ basis.v_local.T) @ basis.v_local) ** 2))
    assert left_behind >= tail * (1 - 1e-10)
    assert left_behind <= 2 * tail * (2 + RANK / (OVERSAMPLING - 1))
    # Interlacing: sketched singular values lie below the true ones, by no more than the energy left behind.
    assert basis.singular_values is not None
    estimates = basis.singular_values
    assert np.all(np.diff(estimates) <= 0)
    assert np.all(estimates <= sigma[:RANK] * (1 + 1e-12))
    assert np.all(sigma[:RANK] ** 2 - estimates**2 <= left_behind)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", RANDOMISED)
def test_randomised_methods_are_exact_before_a_cliff(
    method: str, shape: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    sigma = SPECTRA["plateau and cliff"]
    a, _, v = with_spectrum(*SHAPES[shape], sigma)
    basis = make_basis(method, as_jacobian(a))

    # Angles behave like sigma_(k+1) / sigma_k = 1e-7, values like its square.
    cosines = np.linalg.svd(basis.v_local @ v[:, :RANK], compute_uv=False)
    assert np.sqrt(1 - np.minimum(cosines, 1.0) ** 2).max() <= 1e-5
    np.testing.assert_allclose(basis.singular_values, sigma[:RANK], rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_more_iterations_come_closer(
    shape: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    sigma = SPECTRA["slow"]
    a, _, _ = with_spectrum(*SHAPES[shape], sigma)
    best = np.sum(sigma[:RANK] ** 2) / np.sum(sigma**2)
    missed = [
        best - exact_share(a, make_basis("randomized", as_jacobian(a), iterations=q).v_local)
        for q in (1, 2, 4, 8)
    ]

    assert all(later < earlier for earlier, later in pairwise(missed))
    # Each iteration multiplies the error of the values by (sigma_(k+p+1) / sigma_k)^4, here 0.2 at the edge.
    assert missed[-1] <= 1e-3 * missed[0]


def test_range_finder_is_the_randomised_svd_of_one_iteration(
    as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    # Same algorithm with other random numbers: neither may be better by more than the scatter of seeds.
    sigma = SPECTRA["slow"]
    a, _, _ = with_spectrum(150, 80, sigma)
    shares = {
        method: [
            exact_share(a, make_basis(method, as_jacobian(a), seed=s, iterations=1).v_local) for s in range(8)
        ]
        for method in ("range finder", "randomized")
    }

    difference = np.mean(shares["range finder"]) - np.mean(shares["randomized"])
    scatter = np.hypot(*(np.std(s, ddof=1) / np.sqrt(8) for s in shares.values()))
    assert abs(difference) <= 4 * scatter


def test_bases_of_j_beat_random_directions(as_jacobian: AsJacobian, with_spectrum: WithSpectrum) -> None:
    a, _, _ = with_spectrum(150, 80, SPECTRA["exponential"])
    random = exact_share(a, make_basis("random", as_jacobian(a)).v_local)

    # k random directions of P dimensions catch k / P of the energy on average.
    assert random < 3 * RANK / 80
    for method in (*RANDOMISED, *CONVERGED):
        assert exact_share(a, make_basis(method, as_jacobian(a)).v_local) > 0.85


@pytest.mark.parametrize("method", [*RANDOMISED, *CONVERGED, "random"])
def test_seeds_reproduce_bit_for_bit_and_differ(
    method: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, _ = with_spectrum(150, 80, SPECTRA["slow"])
    first, again, other = (make_basis(method, as_jacobian(a), seed=seed).v_local for seed in (3, 3, 4))

    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", RANDOMISED)
def test_exactly_deficient_jacobian_is_caught_whole(
    method: str, shape: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    # Rank 5, twelve directions wanted: the further ones are of no use but must be orthonormal.
    sigma = np.array([4.0, 3.0, 2.0, 1.0, 0.5])
    a, _, _ = with_spectrum(*SHAPES[shape], sigma)
    basis = make_basis(method, as_jacobian(a))

    assert basis.singular_values is not None
    np.testing.assert_allclose(basis.singular_values[:5], sigma, rtol=1e-12)
    assert np.all(basis.singular_values[5:] <= 1e-12)
    assert basis.orthogonality <= 1e-12
    assert exact_share(a, basis.v_local[:5]) >= 1 - 1e-12


@pytest.mark.parametrize("method", CONVERGED)
def test_converged_solvers_take_an_exactly_deficient_jacobian(
    method: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    sigma = np.array([4.0, 3.0, 2.0, 1.0, 0.5])
    a, _, _ = with_spectrum(150, 80, sigma)
    basis = make_basis(method, as_jacobian(a))

    assert basis.singular_values is not None
    np.testing.assert_allclose(basis.singular_values[:5], sigma, rtol=1e-10)
    # Zeros up to the rounding of J, or up to the root of it where J^T J is used.
    assert np.all(basis.singular_values[5:] <= (1e-12 if method == "trlanczos" else 1e-6))
    assert basis.orthogonality <= 1e-12
    assert exact_share(a, basis.v_local) >= 1 - 1e-12


@pytest.mark.parametrize("method", [*RANDOMISED, *CONVERGED])
def test_parameters_without_influence_stay_out_of_the_directions(
    method: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    # Zero columns of J, as dead units and unused layers make them.
    a, _, _ = with_spectrum(150, 60, SPECTRA["exponential"])
    dead = np.zeros(80, dtype=bool)
    dead[[0, 7, *range(40, 56), 78, 79]] = True
    wide = np.zeros((150, 80))
    wide[:, ~dead] = a
    basis = make_basis(method, as_jacobian(wide))

    # sigma_12 = 0.25: rounding of the products, divided by it.
    assert np.abs(basis.v_local[:, dead]).max() <= 1e-13


@pytest.mark.parametrize("method", RANDOMISED)
def test_rows_of_zeros_do_not_change_the_span(
    method: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, _ = with_spectrum(100, 80, SPECTRA["exponential"])
    padded = np.vstack([a, np.zeros((50, 80))])
    plain, other = make_basis(method, as_jacobian(a)), make_basis(method, as_jacobian(padded))

    np.testing.assert_allclose(other.singular_values, plain.singular_values, rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(other.v_local * plain.v_local, axis=1)), 1.0, rtol=1e-10)


@pytest.mark.parametrize("method", [*RANDOMISED, *CONVERGED])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scale_of_the_jacobian_goes_into_the_singular_values_alone(
    scale: float, method: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, _ = with_spectrum(150, 80, SPECTRA["exponential"])
    plain, scaled = make_basis(method, as_jacobian(a)), make_basis(method, as_jacobian(scale * a))

    assert plain.singular_values is not None
    np.testing.assert_allclose(scaled.singular_values, scale * plain.singular_values, rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(scaled.v_local * plain.v_local, axis=1)), 1.0, rtol=1e-8)


@pytest.mark.parametrize("method", [*RANDOMISED, "trlanczos", "cross"])
def test_as_many_directions_as_the_matrix_has_are_possible(method: str, as_jacobian: AsJacobian) -> None:
    for shape in ((30, 10), (10, 30), (10, 10)):
        a = np.random.default_rng(0).standard_normal(shape)
        basis = make_basis(method, as_jacobian(a), rank=10, oversampling=0)
        np.testing.assert_allclose(basis.singular_values, np.linalg.svd(a, compute_uv=False), rtol=1e-8)
        assert exact_share(a, basis.v_local) >= 1 - 1e-10


@pytest.mark.parametrize("method", [*RANDOMISED, "trlanczos", "cross", "random"])
def test_one_direction_is_possible(method: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum) -> None:
    a, _, v = with_spectrum(40, 30, np.array([10.0, 0.1, 0.01]))
    basis = make_basis(method, as_jacobian(a), rank=1, oversampling=2)

    assert basis.v_local.shape == (1, 30)
    if method != "random":
        assert abs(basis.v_local[0] @ v[:, 0]) >= 1 - 1e-10


@pytest.mark.parametrize("orthogonalization", ["auto", "tsqr", "cholesky_qr2"])
@pytest.mark.parametrize("method", ["randomized", "range finder"])
def test_orthogonalisation_does_not_change_the_answer(
    method: str, orthogonalization: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, _ = with_spectrum(150, 80, SPECTRA["slow"])
    reference = make_basis(method, as_jacobian(a), orthogonalization="tsqr")
    basis = make_basis(method, as_jacobian(a), orthogonalization=orthogonalization)

    np.testing.assert_allclose(basis.singular_values, reference.singular_values, rtol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(basis.v_local * reference.v_local, axis=1)), 1.0, rtol=1e-10)


def test_a_solver_that_finds_nothing_says_what_to_do(as_jacobian: AsJacobian) -> None:
    # A flat spectrum, one restart: Lanczos has no chance.
    a = np.linalg.qr(np.random.default_rng(0).standard_normal((300, 200)))[0]
    a = a * (1 + 1e-3 * np.random.default_rng(1).random(200))

    with pytest.raises(AccuracyError, match=r"subspace\.iterations"):
        make_basis("trlanczos", as_jacobian(a), rank=4, iterations=1)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_captured_energy_is_the_exact_share(
    spectrum: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    sigma = SPECTRA[spectrum]
    a, _, v = with_spectrum(150, 80, sigma)
    directions = np.ascontiguousarray(v[:, :RANK].T)
    estimate = captured_energy(
        as_jacobian(a), directions, float(np.sum((a @ directions.T) ** 2)), seed=0, probes=4
    )

    # The remainder alone is estimated; 4 Gaussian probes of a remainder of effective rank n_eff have a
    # relative standard error sqrt(2 / (4 n_eff)), of which three are allowed.
    remainder = sigma[RANK:] ** 2
    n_eff = remainder.sum() ** 2 / np.sum(remainder**2)
    share = float(np.sum(sigma[:RANK] ** 2) / np.sum(sigma**2))
    assert estimate == pytest.approx(share, abs=3 * np.sqrt(0.5 / n_eff) * (1 - share) + 10 * EPS)


def test_captured_energy_of_everything_is_one(as_jacobian: AsJacobian, with_spectrum: WithSpectrum) -> None:
    a, _, v = with_spectrum(150, 80, np.logspace(0, -9, 10))
    directions = np.ascontiguousarray(v.T)
    share = captured_energy(as_jacobian(a), directions, float(np.sum((a @ directions.T) ** 2)), seed=1)

    # Deflated twice, so that the large directions leave eps^2 of themselves behind at most.
    assert 1 - share <= 1e-25 + 2 * EPS


def test_captured_energy_of_a_zero_jacobian_is_zero(as_jacobian: AsJacobian) -> None:
    assert captured_energy(as_jacobian(np.zeros((20, 10))), np.eye(3, 10), 0.0, seed=0) == 0.0


@pytest.mark.parametrize(("named", "option"), [("randomized", "cross"), ("cross", "randomized")])
def test_solver_named_by_an_option_works_as_if_the_job_had_named_it(
    named: str, option: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum, petsc_option: Any
) -> None:
    a, _, _ = with_spectrum(150, 80, SPECTRA["exponential"])
    expected = make_basis(option, as_jacobian(a), iterations=20)
    petsc_option("lsr_svd_type", option)
    basis = make_basis(named, as_jacobian(a), iterations=20)

    assert basis.detail == expected.detail
    np.testing.assert_array_equal(basis.v_local, expected.v_local)
