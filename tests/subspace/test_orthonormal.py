"""Orthonormalisation: how orthonormal each method stays at which condition, and that Q R is the panel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lsr_hpc.errors import AccuracyError
from lsr_hpc.subspace.basis import check_orthonormal
from lsr_hpc.subspace.orthonormal import orthonormalise

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
N, B = 300, 20


def panel(with_spectrum: Callable[..., tuple[Array, Array, Array]], condition: float) -> Array:
    """A tall panel of the given condition, one vector per row."""
    a, _, _ = with_spectrum(N, B, np.geomspace(1.0, 1.0 / condition, B))
    return np.ascontiguousarray(a.T)


def loss(q: Array) -> float:
    return float(np.abs(q @ q.T - np.eye(len(q))).max())


# Yamamoto et al. 2015: CholeskyQR2 is as good as Householder QR up to a condition of about 1e7.
CONDITIONS = {"tsqr": (1e2, 1e7, 1e12), "auto": (1e2, 1e7, 1e12), "cholesky_qr2": (1e2, 1e6)}
KEEPS_ITS_PROMISE = [(method, condition) for method, those in CONDITIONS.items() for condition in those]


@pytest.mark.parametrize(("method", "condition"), KEEPS_ITS_PROMISE)
def test_q_is_orthonormal_and_q_r_is_the_panel(
    method: str, condition: float, comm_self: Any, with_spectrum: Any
) -> None:
    a = panel(with_spectrum, condition)
    q, r = orthonormalise(comm_self, a, method)

    # Backward stable QR: a few eps times the square root of the number of entries summed.
    assert q.shape == a.shape
    assert loss(q) <= 50 * EPS
    assert np.linalg.norm(r.T @ q - a) <= 50 * EPS * np.linalg.norm(a)
    assert not np.tril(r, -1).any()


@pytest.mark.parametrize("condition", [1e2, 1e7, 1e12])
def test_r_has_the_singular_values_of_the_panel(condition: float, comm_self: Any, with_spectrum: Any) -> None:
    _, r = orthonormalise(comm_self, panel(with_spectrum, condition), "auto")

    # Weyl: an error of 50 eps in the panel moves no singular value further.
    sigma = np.geomspace(1.0, 1.0 / condition, B)
    assert np.abs(np.linalg.svd(r, compute_uv=False) - sigma).max() <= 50 * EPS * np.sqrt(B)


def test_cholesky_qr2_beyond_its_range_is_refused_and_never_silently_wrong(
    comm_self: Any, with_spectrum: Any
) -> None:
    a = panel(with_spectrum, 1e12)
    q, _ = orthonormalise(comm_self, a, "cholesky_qr2")

    # SLEPc hands out what it got, though the Gram matrix holds no digit of the smallest direction.
    assert loss(q) > 1e-8
    with pytest.raises(AccuracyError, match=r"not orthonormal.*tsqr"):
        check_orthonormal(comm_self, q)


def test_a_basis_that_is_not_orthonormal_is_refused(comm_self: Any) -> None:
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 5)))[0].T.copy()

    assert check_orthonormal(comm_self, q) <= 50 * EPS
    q[2] += 1e-7 * q[1]
    with pytest.raises(AccuracyError, match="not orthonormal"):
        check_orthonormal(comm_self, q)
    q[2, 0] = np.nan
    with pytest.raises(AccuracyError, match="not orthonormal"):
        check_orthonormal(comm_self, q)


@pytest.mark.parametrize("method", ["tsqr", "auto"])
def test_rank_deficient_panel_still_gives_orthonormal_columns(method: str, comm_self: Any) -> None:
    a = np.random.default_rng(1).standard_normal((6, 40))
    a[3], a[5] = a[1] - a[2], 0.0
    q, r = orthonormalise(comm_self, a, method)

    assert loss(q) <= 50 * EPS
    assert np.linalg.norm(r.T @ q - a) <= 50 * EPS * np.linalg.norm(a)


@pytest.mark.parametrize("method", ["tsqr", "cholesky_qr2", "auto"])
@pytest.mark.parametrize(("b", "n"), [(1, 1), (1, 50), (7, 7), (7, 8)])
def test_panels_of_extreme_shape_are_taken(method: str, b: int, n: int, comm_self: Any) -> None:
    # Well conditioned by a dominant diagonal, so that every method may be used.
    a = np.random.default_rng(2).standard_normal((b, n)) / n + 3.0 * np.eye(b, n)
    q, r = orthonormalise(comm_self, a, method)

    assert loss(q) <= 50 * EPS
    assert np.linalg.norm(r.T @ q - a) <= 50 * EPS * np.linalg.norm(a)


@pytest.mark.parametrize("method", ["tsqr", "auto"])
@pytest.mark.parametrize("scale", [1e-120, 1e-8, 1e8, 1e120])
def test_scale_of_the_panel_does_not_matter(
    scale: float, method: str, comm_self: Any, with_spectrum: Any
) -> None:
    a = scale * panel(with_spectrum, 1e4)
    q, r = orthonormalise(comm_self, a, method)

    assert loss(q) <= 50 * EPS
    assert np.linalg.norm(r.T @ q / scale - a / scale) <= 50 * EPS * np.linalg.norm(a / scale)


def test_input_is_left_as_it_was(comm_self: Any, with_spectrum: Any) -> None:
    a = panel(with_spectrum, 1e3)
    before = a.copy()
    orthonormalise(comm_self, a)

    np.testing.assert_array_equal(a, before)
