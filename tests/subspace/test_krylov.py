"""The block Krylov basis against dense references: SciPy's LSQR, powers of J^T J, exact least squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
from numpy.typing import NDArray

from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.rows import FitAndHeld
from lsr_hpc.subspace.basis import Basis
from lsr_hpc.subspace.krylov import GrownSpace, krylov_basis

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
AsJacobian = Callable[..., DistributedJacobian]
WithSpectrum = Callable[..., tuple[Array, Array, Array]]

INDEX = np.arange(1, 61)
SPECTRA = {
    "slow": INDEX**-0.7,
    "exponential": 10.0 ** (-INDEX / 20),
    "steep": 10.0 ** (-INDEX / 4),
    "plateau and cliff": np.where(INDEX <= 12, 1.0 + 0.01 * (12 - INDEX), 1e-6 / INDEX),
}
SHAPES = {"tall": (150, 80), "wide": (80, 150)}


def make_basis(a: Array, r0: Array, as_jacobian: AsJacobian, **changes: Any) -> Basis:
    """A basis of 12 directions; the last 20 rows of ``a`` are held out."""
    arguments = {"rank": 12, "width": 3, "orthogonalization": "auto", "first_row": 0} | changes
    fit, held = as_jacobian(a[:-20]), as_jacobian(a[-20:])
    return krylov_basis(fit, held, FitAndHeld(r0[:-20], r0[-20:]), **arguments)


def residual_of(n: int) -> Array:
    return np.random.default_rng(1).standard_normal(n)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [1, 3, 5, 12])
def test_directions_are_orthonormal_and_the_image_is_that_of_j(
    width: int, shape: str, spectrum: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, _ = with_spectrum(*SHAPES[shape], SPECTRA[spectrum])
    basis = make_basis(a, residual_of(len(a)), as_jacobian, width=width)

    v = basis.v_local
    assert v.shape == (12, a.shape[1])
    assert np.abs(v @ v.T - np.eye(12)).max() <= 1e-13
    assert basis.image is not None
    np.testing.assert_allclose(basis.image.fit, v @ a[:-20].T, atol=1e-14)
    np.testing.assert_allclose(basis.image.held, v @ a[-20:].T, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spectrum", ["slow", "exponential"])
def test_width_one_spans_the_space_of_lsqr(
    spectrum: str, shape: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, _ = with_spectrum(*SHAPES[shape], SPECTRA[spectrum])
    r0 = residual_of(len(a))
    basis = make_basis(a, r0, as_jacobian, width=1)
    assert basis.image is not None

    fit, target = a[:-20], -r0[:-20]
    for m in range(1, 13):
        c = np.linalg.lstsq(basis.image.fit[:m].T, target, rcond=None)[0]
        mine = np.linalg.norm(basis.image.fit[:m].T @ c - target)
        x = scipy.sparse.linalg.lsqr(fit, target, atol=0, btol=0, conlim=0, iter_lim=m)[0]
        theirs = np.linalg.norm(fit @ x - target)
        # LSQR keeps no vectors and loses some orthogonality within 12 steps, so it may only be worse.
        assert mine <= theirs * (1 + 1e-12)
        assert theirs <= mine * (1 + 1e-6)


def test_blocks_span_the_powers_of_the_normal_matrix(
    as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, _ = with_spectrum(*SHAPES["tall"], SPECTRA["slow"])
    basis = make_basis(a, residual_of(len(a)), as_jacobian)

    # The first block is known to lie in the row space; its powers are built densely.
    fit, first = a[:-20], basis.v_local[:3].T
    powers = [first, fit.T @ (fit @ first), fit.T @ (fit @ (fit.T @ (fit @ first)))]
    reference = np.linalg.qr(np.hstack(powers))[0]
    cosines = np.linalg.svd(basis.v_local[:9] @ reference, compute_uv=False)
    assert cosines.min() >= 1 - 1e-10


@pytest.mark.parametrize("width", [1, 3, 12])
def test_first_block_holds_the_gradient_of_the_loss(
    width: int, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, _ = with_spectrum(*SHAPES["wide"], SPECTRA["exponential"])
    r0 = residual_of(len(a))
    basis = make_basis(a, r0, as_jacobian, width=width)

    gradient = a[:-20].T @ r0[:-20]
    outside = gradient - basis.v_local[:width].T @ (basis.v_local[:width] @ gradient)
    assert np.linalg.norm(outside) <= 1e-13 * np.linalg.norm(gradient)


def test_residual_that_singular_vectors_miss_is_reached(
    as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    """A trained state: nothing of r0 is left along the dominant left singular vectors."""
    a, u, _ = with_spectrum(200, 90, INDEX**-1.0)
    r0 = u[:, 20:60] @ np.random.default_rng(2).standard_normal(40)
    basis = make_basis(a, r0, as_jacobian, rank=20, width=2)
    assert basis.image is not None

    def removed(image: Array) -> float:
        target = -r0[:-20]
        c = np.linalg.lstsq(image.T, target, rcond=None)[0]
        return 1 - float(np.sum((image.T @ c - target) ** 2) / np.sum(target**2))

    singular = np.linalg.svd(a[:-20])[2][:20]
    assert removed(singular @ a[:-20].T) < 0.25
    assert removed(basis.image.fit) > 0.6


def test_every_block_is_one_product_with_j_and_one_with_its_transpose(
    as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, _ = with_spectrum(*SHAPES["tall"], SPECTRA["slow"])
    jacobian, held = as_jacobian(a[:-20]), as_jacobian(a[-20:])
    r0 = residual_of(len(a))
    krylov_basis(
        jacobian,
        held,
        FitAndHeld(r0[:-20], r0[-20:]),
        first_row=0,
        rank=14,
        width=4,
        orthogonalization="auto",
    )
    assert (jacobian.counter.jv_calls, jacobian.counter.jv_columns) == (4, 14)
    assert (jacobian.counter.jtu_calls, jacobian.counter.jtu_columns) == (4, 14)
    assert held.counter.jv_columns == 14


@pytest.mark.parametrize("orthogonalization", ["auto", "tsqr"])
def test_growth_ends_where_j_has_no_more_directions(
    orthogonalization: str, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, v = with_spectrum(150, 80, np.ones(5))
    basis = make_basis(a, residual_of(150), as_jacobian, orthogonalization=orthogonalization)

    assert basis.rank == 5
    assert np.abs(basis.v_local @ basis.v_local.T - np.eye(5)).max() <= 1e-13
    cosines = np.linalg.svd(basis.v_local @ v, compute_uv=False)
    assert cosines.min() >= 1 - 1e-12


@pytest.mark.parametrize("width", [2, 8, 12])
def test_rows_that_repeat_give_no_directions_of_noise(width: int, as_jacobian: AsJacobian) -> None:
    # Seven different rows, each twenty times, and a residual that tells none of the copies apart.
    rng = np.random.default_rng(5)
    a, r0 = np.tile(rng.standard_normal((7, 40)), (20, 1)), np.tile(rng.standard_normal(7), 20)
    basis = make_basis(a, r0, as_jacobian, width=width)

    outside = basis.v_local - basis.v_local @ np.linalg.pinv(a[:7]) @ a[:7]
    assert np.abs(outside).max() <= 1e-6
    assert basis.rank <= 7


def test_zero_residual_still_gives_orthonormal_directions(
    as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, _ = with_spectrum(150, 80, SPECTRA["slow"])
    basis = make_basis(a, np.zeros(150), as_jacobian)
    assert np.abs(basis.v_local @ basis.v_local.T - np.eye(basis.rank)).max() <= 1e-13
    assert basis.rank >= 1


def test_given_directions_come_first_and_are_kept(
    as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, v = with_spectrum(*SHAPES["tall"], SPECTRA["exponential"])
    given = np.ascontiguousarray(v[:, :5].T)
    basis = make_basis(a, residual_of(len(a)), as_jacobian, given=given)

    # Each by itself, up to the sign that QR gives it.
    np.testing.assert_allclose(np.abs(basis.v_local[:5] @ given.T), np.eye(5), atol=1e-14)
    assert basis.v_local.shape[0] == 12
    assert basis.image is not None
    np.testing.assert_allclose(basis.image.fit, basis.v_local @ a[:-20].T, atol=1e-14)


def test_growth_ends_when_it_is_enough(as_jacobian: AsJacobian, with_spectrum: WithSpectrum) -> None:
    a, _, _ = with_spectrum(*SHAPES["tall"], SPECTRA["slow"])
    seen: list[int] = []

    def is_enough(image: FitAndHeld) -> bool:
        seen.append(len(image.fit))
        return len(image.held) >= 6

    basis = make_basis(a, residual_of(len(a)), as_jacobian, is_enough=is_enough)
    assert seen == [3, 6]
    assert basis.rank == 6


@pytest.mark.parametrize("n_given", [0, 4])
@pytest.mark.parametrize("enough", [8, 100])
def test_growth_taken_up_after_any_block_ends_in_the_same_basis(
    enough: int, n_given: int, as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, v = with_spectrum(*SHAPES["tall"], SPECTRA["slow"])
    kept: list[GrownSpace] = []

    def basis(**changes: Any) -> Basis:
        return make_basis(
            a,
            residual_of(len(a)),
            as_jacobian,
            given=v[:, :n_given].T.copy() if n_given else None,
            is_enough=lambda image: len(image.fit) >= enough,
            **changes,
        )

    whole = basis(on_block=lambda space: kept.append(space()))
    assert whole.rank == (12 if enough == 100 else {0: 9, 4: 10}[n_given])
    assert [len(space.v_local) for space in kept] == [*range(n_given + 3, whole.rank, 3), whole.rank]
    assert [space.depth for space in kept] == list(range(1, len(kept) + 1))
    for space in kept:
        pieced = basis(grown=space)
        np.testing.assert_array_equal(pieced.v_local, whole.v_local)
        assert pieced.image is not None
        assert whole.image is not None
        np.testing.assert_array_equal(pieced.image.fit, whole.image.fit)
        np.testing.assert_array_equal(pieced.image.held, whole.image.held)
        assert pieced.detail == whole.detail


def test_growth_is_ended_by_what_is_called_between_two_blocks(
    as_jacobian: AsJacobian, with_spectrum: WithSpectrum
) -> None:
    a, _, _ = with_spectrum(*SHAPES["tall"], SPECTRA["slow"])

    def stop(space: Callable[[], GrownSpace]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_basis(a, residual_of(len(a)), as_jacobian, on_block=stop)
