"""TSQR: the R factor of numpy's QR with a fixed sign, whatever the chunks and however few the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lsr_hpc.least_squares.tsqr import combine_r, tsqr

EPS = float(np.finfo(np.float64).eps)


def r_of_numpy(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """R with a non-negative diagonal, padded to square with zero rows."""
    m = a.shape[1]
    r = np.zeros((m, m))
    factor = np.linalg.qr(a, mode="r")
    r[: len(factor)] = np.where(np.diag(factor) < 0, -1.0, 1.0)[:, np.newaxis] * factor
    return r


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (100, 1), (100, 12), (513, 30)])
def test_r_is_that_of_numpy(n: int, m: int, comm_self: Any) -> None:
    a = np.random.default_rng(n + m).standard_normal((n, m))

    # R is unique up to signs; square random matrices are the worst conditioned of these, up to some 1e3.
    np.testing.assert_allclose(tsqr(comm_self, a), r_of_numpy(a), rtol=0, atol=1e4 * EPS * np.linalg.norm(a))


@pytest.mark.parametrize("rows_per_chunk", [1, 5, 10, 32, 33, 99, 100, 101])
def test_chunks_do_not_change_r(rows_per_chunk: int, comm_self: Any) -> None:
    # 100 rows: chunks of 33 and 99 leave a last chunk of one row, 1 and 5 are narrower than the matrix.
    a = np.random.default_rng(0).standard_normal((100, 10)) * np.logspace(3, -3, 10)

    r = tsqr(comm_self, a, rows_per_chunk)
    # Column-wise backward stable: every column errs relative to its own size.
    error = np.abs(r - r_of_numpy(a)) / np.linalg.norm(a, axis=0)
    assert error.max() <= 100 * EPS


@pytest.mark.parametrize("rows_per_chunk", [3, 1000])
def test_r_preserves_the_gram_matrix_and_is_triangular(rows_per_chunk: int, comm_self: Any) -> None:
    a = np.random.default_rng(1).standard_normal((200, 8))
    r = tsqr(comm_self, a, rows_per_chunk)

    assert not np.tril(r, -1).any()
    np.testing.assert_allclose(r.T @ r, a.T @ a, rtol=0, atol=100 * EPS * np.linalg.norm(a) ** 2)


def test_diagonal_is_never_negative(comm_self: Any) -> None:
    for seed in range(20):
        a = np.random.default_rng(seed).standard_normal((30, 6))
        assert np.all(np.diag(tsqr(comm_self, a, 7)) >= 0)
        assert np.all(np.diag(tsqr(comm_self, -a, 7)) >= 0)


def test_no_rows_give_a_zero_factor(comm_self: Any) -> None:
    r = tsqr(comm_self, np.zeros((0, 5)))

    assert r.shape == (5, 5)
    assert not r.any()


def test_fewer_rows_than_columns_are_padded_with_zero_rows(comm_self: Any) -> None:
    a = np.random.default_rng(2).standard_normal((3, 6))
    r = tsqr(comm_self, a)

    assert r.shape == (6, 6)
    assert not r[3:].any()
    np.testing.assert_allclose(r, r_of_numpy(a), rtol=0, atol=100 * EPS * np.linalg.norm(a))


def test_rows_of_zeros_change_nothing(comm_self: Any) -> None:
    a = np.random.default_rng(3).standard_normal((20, 4))
    padded = np.insert(a, [0, 7, 20], 0.0, axis=0)

    np.testing.assert_allclose(
        tsqr(comm_self, padded), tsqr(comm_self, a), rtol=0, atol=10 * EPS * np.linalg.norm(a)
    )


def test_order_of_the_rows_does_not_matter(comm_self: Any) -> None:
    rng = np.random.default_rng(4)
    a = rng.standard_normal((150, 9))
    expected = tsqr(comm_self, a, 16)

    for _ in range(3):
        shuffled = tsqr(comm_self, rng.permutation(a), 16)
        np.testing.assert_allclose(shuffled, expected, rtol=0, atol=100 * EPS * np.linalg.norm(a))


def test_tiny_singular_values_survive(comm_self: Any) -> None:
    rng = np.random.default_rng(5)
    q1, q2 = np.linalg.qr(rng.standard_normal((80, 6)))[0], np.linalg.qr(rng.standard_normal((6, 6)))[0]
    sigma = np.logspace(0, -12, 6)
    s = np.linalg.svd(tsqr(comm_self, (q1 * sigma) @ q2, 13), compute_uv=False)

    # Weyl: every singular value errs by eps * sigma_1; a Gram matrix would lose all below 1e-8.
    assert np.abs(s - sigma).max() <= 50 * EPS


def test_factors_combine_into_the_factor_of_all_rows(comm_self: Any) -> None:
    a = np.random.default_rng(6).standard_normal((50, 7))
    # The lower part has fewer rows than columns.
    combined = combine_r(tsqr(comm_self, a[:46]), tsqr(comm_self, a[46:]))

    np.testing.assert_allclose(combined, tsqr(comm_self, a), rtol=0, atol=100 * EPS * np.linalg.norm(a))


def test_input_is_left_as_it_was(comm_self: Any) -> None:
    a = np.asfortranarray(np.random.default_rng(7).standard_normal((40, 5)))
    before = a.copy()
    tsqr(comm_self, a, 11)

    np.testing.assert_array_equal(a, before)
