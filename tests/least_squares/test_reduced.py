"""The reduced problem: certified NIST values, ill-conditioned and rank-deficient factors, damping, nesting.

Data and certified values: NIST Statistical Reference Datasets (Longley 1967, Wampler 1970).
Errors are counted in digits, the log relative error -log10(|c - exact| / |exact|) of the worst coefficient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray

from lsr_hpc.errors import AccuracyError
from lsr_hpc.least_squares.reduced import ReducedProblem, reduce_rows

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)

# Employment; GNP deflator, GNP, unemployed, armed forces, population, year.
LONGLEY = """
60323  83.0 234289 2356 1590 107608 1947
61122  88.5 259426 2325 1456 108632 1948
60171  88.2 258054 3682 1616 109773 1949
61187  89.5 284599 3351 1650 110929 1950
63221  96.2 328975 2099 3099 112075 1951
63639  98.1 346999 1932 3594 113270 1952
64989  99.0 365385 1870 3547 115094 1953
63761 100.0 363112 3578 3350 116219 1954
66019 101.2 397469 2904 3048 117388 1955
67857 104.6 419180 2822 2857 118734 1956
68169 108.4 442769 2936 2798 120445 1957
66513 110.8 444546 4681 2637 121950 1958
68655 112.6 482704 3813 2552 123366 1959
69564 114.2 502601 3931 2514 125368 1960
69331 115.7 518173 4806 2572 127852 1961
70551 116.9 554894 4007 2827 130081 1962
"""
LONGLEY_CERTIFIED = """
-3482258.63459582 15.0618722713733 -0.358191792925910E-01 -2.02022980381683
-1.03322686717359 -0.511041056535807E-01 1829.15146461355
"""
# What Wampler3 adds to the polynomial 1 + x + ... + x^5; Wampler4 and 5 add 100 and 10,000 times as much.
WAMPLER_DEVIATION = (759, *[-2048, 2048, -2048, 2523], *[-2048, 2048, -2048, 1838] * 2,
                     *[-2048, 2048, -2048, 2523], -2048, 2048, -2048, 759)  # fmt: skip


@dataclass(frozen=True)
class Regression:
    """A regression problem in exact numbers."""

    rows: list[list[Fraction]]
    y: list[Fraction]
    certified: list[Fraction]
    certified_rss: Fraction

    def exact(self) -> list[Fraction]:
        """Solve the normal equations in rational arithmetic."""
        m = len(self.rows[0])
        system = [
            [sum((r[i] * r[j] for r in self.rows), Fraction(0)) for j in range(m)]
            + [sum((r[i] * b for r, b in zip(self.rows, self.y, strict=True)), Fraction(0))]
            for i in range(m)
        ]
        for i in range(m):
            system[i] = [value / system[i][i] for value in system[i]]
            for k in range(m):
                if k != i:
                    system[k] = [a - system[k][i] * b for a, b in zip(system[k], system[i], strict=True)]
        return [row[-1] for row in system]

    def exact_rss(self) -> Fraction:
        """Residual sum of squares of the exact solution."""
        c = self.exact()
        misfits = [
            sum((a * b for a, b in zip(r, c, strict=True)), -y)
            for r, y in zip(self.rows, self.y, strict=True)
        ]
        return sum((misfit**2 for misfit in misfits), Fraction(0))

    def solved(self, comm: Any) -> Any:
        a, y = np.array(self.rows, dtype=float), np.array(self.y, dtype=float)
        return reduce_rows(comm, np.ascontiguousarray(a.T), -y, len(y)).solve(a.shape[1])

    def guaranteed_digits(self) -> float:
        """Digits that a backward stable solver owes in every coefficient.

        First-order perturbation of least squares (Bjorck 1996, section 1.4): with column j of A wrong by
        eta |a_j|, y by eta |y|, and unit columns A_s = A / d,
        ``|delta(d c)_i| <= eta (|row i of A_s^+| (|y| + sum_j |d c|_j) + |r| sum_j |((A_s^T A_s)^-1)_ij|)``.
        Householder QR has eta = eps times a modest constant, for which sqrt(N m) is the statistical estimate.
        """
        a, y = np.array(self.rows, dtype=float), np.array(self.y, dtype=float)
        d = np.linalg.norm(a, axis=0)
        dc, r = d * np.array(self.exact(), dtype=float), float(self.exact_rss()) ** 0.5
        inverse = np.linalg.pinv(a / d, rcond=0.0)
        bound = np.linalg.norm(inverse, axis=1) * (np.linalg.norm(y) + np.abs(dc).sum())
        bound += r * np.abs(inverse @ inverse.T).sum(axis=1)
        return float(-np.log10(np.max(np.sqrt(a.size) * EPS * bound / np.abs(dc))))


def digits(computed: Array, exact: list[Fraction]) -> float:
    """Correct digits of the worst coefficient, at most 16."""
    errors = [abs(Fraction(float(c)) - e) / abs(e) for c, e in zip(computed, exact, strict=True)]
    return min(16.0, -np.log10(max(float(max(errors)), 1e-16)))


def nist(name: str) -> Regression:
    """One of the NIST problems with its certified values."""
    if name == "Longley":
        table = [[Fraction(word) for word in line.split()] for line in LONGLEY.strip().splitlines()]
        return Regression([[Fraction(1), *r[1:]] for r in table], [r[0] for r in table],
                          [Fraction(word) for word in LONGLEY_CERTIFIED.split()],
                          Fraction("836424.055505915"))  # fmt: skip
    rows = [[Fraction(x) ** j for j in range(6)] for x in range(21)]
    c = [Fraction(1, 10**j) if name == "Wampler2" else Fraction(1) for j in range(6)]
    factor = {"Wampler3": 1, "Wampler4": 100, "Wampler5": 10_000}.get(name, 0)
    y = [sum(a * b for a, b in zip(row, c, strict=True)) + factor * d
         for row, d in zip(rows, WAMPLER_DEVIATION, strict=True)]  # fmt: skip
    return Regression(rows, y, c, Fraction("83554268.0000000") * factor**2)


# Name and whole digits that the bound must promise, or the test would say too little. Normal equations reach
# 7 on Longley and an SVD without column scaling 10.4 on Wampler2, both below what is owed.
NIST = {"Longley": 8, "Wampler1": 7, "Wampler2": 10, "Wampler3": 7, "Wampler4": 5, "Wampler5": 3}


@pytest.mark.parametrize("name", NIST)
def test_nist_data_reproduce_the_certified_values_in_exact_arithmetic(name: str) -> None:
    problem = nist(name)

    # Certified values carry 15 digits, so they agree to half a unit of the last one or a little more.
    for exact, certified in zip(problem.exact(), problem.certified, strict=True):
        assert abs(exact - certified) <= Fraction(1, 10**14) * abs(certified)
    assert abs(problem.exact_rss() - problem.certified_rss) <= Fraction(1, 10**14) * problem.certified_rss


@pytest.mark.parametrize("name", NIST)
def test_nist_coefficients_have_the_digits_that_the_condition_allows(
    name: str, comm_self: Any, record_property: Callable[[str, object], None]
) -> None:
    problem = nist(name)
    solution = problem.solved(comm_self)

    reached, owed = digits(solution.c, problem.certified), problem.guaranteed_digits()
    record_property(f"{name} digits", reached)
    print(f"{name}: {reached:.1f} digits, {owed:.1f} owed")
    assert owed > NIST[name]
    assert reached >= owed
    assert solution.cut == 0


@pytest.mark.parametrize("name", ["Longley", "Wampler3", "Wampler4", "Wampler5"])
def test_nist_residual_sum_of_squares_is_certified(name: str, comm_self: Any) -> None:
    problem = nist(name)
    residual = problem.solved(comm_self).residual

    # The norm errs by rounding of the whole right-hand side, amplified by nothing.
    scale = float(np.linalg.norm(np.array(problem.y, dtype=float)))
    assert abs(residual - float(problem.certified_rss) ** 0.5) <= 100 * EPS * scale


def precise_solution(a: Array, y: Array) -> tuple[Array, float]:
    """Least-squares solution and residual norm of these very floating-point numbers, with 80 digits."""
    with mpmath.workdps(80):
        c, residual = mpmath.qr_solve(mpmath.matrix(a.tolist()), mpmath.matrix(y.tolist()))
        return np.array([float(value) for value in c]), float(residual)


def precise_residual(a: Array, y: Array, c: Array) -> float:
    """``||a c - y||`` of given coefficients without rounding."""
    with mpmath.workdps(80):
        misfit = mpmath.matrix(a.tolist()) * mpmath.matrix(c.tolist()) - mpmath.matrix(y.tolist())
        return float(mpmath.norm(misfit))


@pytest.mark.parametrize("right_hand_side", ["consistent", "noisy", "random"])
@pytest.mark.parametrize("decades", [3, 7, 11, 14])
def test_ill_conditioned_problem_has_its_digits_or_says_that_it_was_cut(
    decades: int,
    right_hand_side: str,
    comm_self: Any,
    with_spectrum: Callable[..., tuple[Array, Array, Array]],
) -> None:
    n, m = 40, 10
    a, _, _ = with_spectrum(n, m, np.logspace(0, -decades, m))
    rng = np.random.default_rng(decades)
    noise = {"consistent": 0.0, "noisy": 1e-6, "random": 1.0}[right_hand_side]
    y = a @ rng.standard_normal(m) * (right_hand_side != "random") + noise * rng.standard_normal(n)
    solution = reduce_rows(comm_self, np.ascontiguousarray(a.T), -y, n).solve(m)
    exact, smallest_residual = precise_solution(a, y)

    d = np.linalg.norm(a, axis=0)
    s = np.linalg.svd(a / d, compute_uv=False)
    eta = np.sqrt(n * m) * EPS
    # Backward stable: the optimum of a problem whose matrix is off by eta. Cut: what lies below the cut
    # (eps * max(N, m)) may stay in the residual, times the coefficients that it would have taken.
    wanted = np.linalg.norm(d * exact)
    excess = precise_residual(a, y, solution.c) - smallest_residual
    below_cut = EPS * n * s[0] * wanted if solution.cut else 0.0
    assert excess <= eta * (s[0] * np.linalg.norm(d * solution.c) + np.linalg.norm(y)) + below_cut
    assert np.all(np.isfinite(solution.c))
    if not solution.cut:
        kappa = s[0] / s[-1]
        bound = eta * kappa * (wanted + np.linalg.norm(y) / s[0] + kappa * smallest_residual / s[0])
        assert np.linalg.norm(d * (solution.c - exact)) <= bound


@pytest.mark.parametrize("decades", [3, 11, 14])
def test_reported_residual_is_that_of_the_returned_coefficients(
    decades: int, comm_self: Any, with_spectrum: Callable[..., tuple[Array, Array, Array]]
) -> None:
    n, m = 40, 10
    a, _, _ = with_spectrum(n, m, np.logspace(0, -decades, m))
    y = np.random.default_rng(1).standard_normal(n)
    solution = reduce_rows(comm_self, np.ascontiguousarray(a.T), -y, n).solve(m)

    # Rounding of the factorisation, times the norms that it works on.
    tolerance = np.sqrt(n * m) * EPS * (np.linalg.norm(a) * np.linalg.norm(solution.c) + np.linalg.norm(y))
    assert abs(solution.residual - precise_residual(a, y, solution.c)) <= tolerance


DEFICIENT = {"duplicate columns": (2, [1, 5]), "zero column": (1, [3]), "zero and duplicate": (2, [3, 5]),
             "sum of others": (1, [6]), "all zero": (8, list(range(8)))}  # fmt: skip


@pytest.mark.parametrize("kind", DEFICIENT)
def test_dependent_directions_are_cut_and_the_residual_stays_optimal(kind: str, comm_self: Any) -> None:
    rng = np.random.default_rng(4)
    n, m = 50, 8
    a = rng.standard_normal((n, m))
    if "duplicate" in kind:
        a[:, 5] = a[:, 0]
    if kind == "duplicate columns":
        a[:, 1] = -3 * a[:, 0]
    if "zero" in kind:
        a[:, 3] = 0.0
    if kind == "sum of others":
        a[:, 6] = a[:, 0] + a[:, 2]
    if kind == "all zero":
        a[:] = 0.0
    expected_cut, dependent = DEFICIENT[kind]
    y = rng.standard_normal(n)
    solution = reduce_rows(comm_self, np.ascontiguousarray(a.T), -y, n).solve(m)

    # The other columns are random and well conditioned, so a plain solve with them gives the optimum.
    rest = np.delete(a, dependent, axis=1)
    optimum = (
        np.linalg.norm(y - rest @ np.linalg.lstsq(rest, y, rcond=None)[0]) if rest.size else np.linalg.norm(y)
    )
    assert solution.cut == expected_cut
    assert np.all(np.isfinite(solution.c))
    # 1e3 eps: condition below 10, a few dozen operations per entry.
    assert solution.residual == pytest.approx(optimum, rel=1e3 * EPS)
    assert np.linalg.norm(a @ solution.c - y) == pytest.approx(optimum, rel=1e3 * EPS)
    assert np.linalg.norm(solution.c) < 10 * np.linalg.norm(y)


def test_zero_columns_get_coefficient_zero(comm_self: Any) -> None:
    rng = np.random.default_rng(8)
    a = rng.standard_normal((30, 4))
    a[:, 2] = 0.0
    solution = reduce_rows(comm_self, np.ascontiguousarray(a.T), rng.standard_normal(30), 30).solve(4)

    assert solution.c[2] == 0.0


@pytest.mark.parametrize("position", ["matrix", "residual"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 17, 39])
def test_one_value_that_is_not_finite_is_refused(
    value: float, position: str, row: int, comm_self: Any
) -> None:
    rng = np.random.default_rng(2)
    av, r0 = rng.standard_normal((5, 40)), rng.standard_normal(40)
    if position == "matrix":
        av[3, row] = value
    else:
        r0[row] = value

    with pytest.raises(AccuracyError, match="NaN or Inf"):
        reduce_rows(comm_self, av, r0, 40)


@pytest.mark.parametrize("mu", [1e-8, 1e-3, 1.0, 1e4])
@pytest.mark.parametrize("rank", [1, 4, 9])
def test_damping_is_dense_least_squares_with_rows_mu_appended(mu: float, rank: int, comm_self: Any) -> None:
    rng = np.random.default_rng(3)
    n, m = 60, 9
    a, y = rng.standard_normal((n, m)) * np.logspace(0, -3, m), rng.standard_normal(n)
    solution = reduce_rows(comm_self, np.ascontiguousarray(a.T), -y, n).damped(mu).solve(rank)

    augmented = np.vstack([a[:, :rank], mu * np.eye(rank)])
    y_augmented = np.concatenate([y, np.zeros(rank)])
    expected = np.linalg.lstsq(augmented, y_augmented, rcond=None)[0]
    # Two backward stable solutions; the scaled condition is at most that of the columns, 1e3.
    np.testing.assert_allclose(solution.c, expected, rtol=0, atol=1e5 * EPS * np.linalg.norm(expected))
    objective = np.linalg.norm(augmented @ expected - y_augmented)
    assert solution.residual == pytest.approx(objective, rel=1e3 * EPS)


def test_no_damping_changes_nothing(comm_self: Any) -> None:
    rng = np.random.default_rng(3)
    problem = reduce_rows(comm_self, rng.standard_normal((4, 30)), rng.standard_normal(30), 30)

    assert problem.damped(0.0) is problem


def nested_problem(comm: Any) -> tuple[Array, Array, ReducedProblem]:
    """Columns of falling size, as J V has them."""
    rng = np.random.default_rng(5)
    a, y = rng.standard_normal((80, 12)) * np.logspace(0, -4, 12), rng.standard_normal(80)
    return a, y, reduce_rows(comm, np.ascontiguousarray(a.T), -y, 80)


@pytest.mark.parametrize("rank", range(13))
def test_every_leading_rank_is_solved_as_if_alone(rank: int, comm_self: Any) -> None:
    a, y, problem = nested_problem(comm_self)
    solution = problem.solve(rank)

    expected = np.linalg.lstsq(a[:, :rank], y, rcond=None)[0] if rank else np.zeros(0)
    # Independent columns but for their scale, which column scaling takes out; lstsq alone sees condition 1e4.
    np.testing.assert_allclose(solution.c, expected, rtol=1e5 * EPS)
    assert solution.residual == pytest.approx(np.linalg.norm(a[:, :rank] @ expected - y), rel=1e3 * EPS)


def test_residual_does_not_grow_with_the_rank(comm_self: Any) -> None:
    residuals = [nested_problem(comm_self)[2].solve(rank).residual for rank in range(13)]

    assert all(b <= a * (1 + 10 * EPS) for a, b in pairwise(residuals))


def test_residual_does_not_grow_with_the_rank_where_directions_are_cut(comm_self: Any) -> None:
    rng = np.random.default_rng(6)
    a, y = rng.standard_normal((60, 10)), rng.standard_normal(60)
    a[:, 4] = a[:, 1] - a[:, 2]
    a[:, 7] = 0.0
    problem = reduce_rows(comm_self, np.ascontiguousarray(a.T), -y, 60)
    solutions = [problem.solve(rank) for rank in range(11)]

    assert [s.cut for s in solutions] == [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    # A direction that is cut may leave eps * N of its own share behind.
    residuals = [s.residual for s in solutions]
    assert all(b <= a * (1 + 60 * EPS) for a, b in pairwise(residuals))


@pytest.mark.parametrize(("cut", "left"), [(0.0, 8), (3e-6, 6), (3e-3, 3), (0.3, 1)])
def test_leading_singular_directions_are_truncated_singular_value_solutions(
    cut: float, left: int, comm_self: Any, with_spectrum: Callable[..., tuple[Array, Array, Array]]
) -> None:
    sigma = np.logspace(0, -7, 8)
    a, u, v = with_spectrum(50, 8, sigma)
    y = np.random.default_rng(13).standard_normal(50)
    problem = reduce_rows(comm_self, np.ascontiguousarray(a.T), -y, 50)
    rotation, singular_values = problem.singular_directions(cut)

    assert rotation.shape == (8, left)
    # Singular values are known to eps times the largest.
    np.testing.assert_allclose(singular_values, sigma, rtol=0, atol=100 * EPS)
    turned = problem.rotated(rotation)
    assert len(turned.z) == left
    for rank in range(left + 1):
        solution = turned.solve(rank)
        expected = v[:, :rank] @ (u[:, :rank].T @ y / sigma[:rank])
        # A direction of singular value s turns by eps / s, and its coefficient is y / s.
        turn = EPS / sigma[rank - 1] ** 2 if rank else 0.0
        assert np.linalg.norm(rotation[:, :rank] @ solution.c - expected) <= 100 * turn * np.linalg.norm(y)
        residual = np.linalg.norm(y - u[:, :rank] @ (u[:, :rank].T @ y))
        # What is left out leaves no trace: rho takes it up.
        assert solution.residual == pytest.approx(residual, rel=1e-7)


def test_directions_that_j_maps_to_nothing_are_left_out(comm_self: Any) -> None:
    av = np.zeros((3, 20))
    rotation, singular_values = reduce_rows(comm_self, av, np.ones(20), 20).singular_directions(0.0)

    assert rotation.shape == (3, 0)
    assert not singular_values.any()


def test_stacking_two_factors_equals_factoring_all_rows(comm_self: Any) -> None:
    rng = np.random.default_rng(7)
    av, r0 = rng.standard_normal((6, 70)), rng.standard_normal(70)
    whole = reduce_rows(comm_self, av, r0, 70)
    parts = [
        reduce_rows(comm_self, np.ascontiguousarray(av[:, rows]), r0[rows], av[:, rows].shape[1])
        for rows in (slice(0, 50), slice(50, 53), slice(53, 70))
    ]
    stacked = parts[0].stacked_with(parts[1]).stacked_with(parts[2])

    assert stacked.n_rows == 70
    # R is unique up to signs, which are fixed; condition below 10.
    np.testing.assert_allclose(
        stacked.factor, whole.factor, rtol=0, atol=1e3 * EPS * np.linalg.norm(whole.factor)
    )
    np.testing.assert_allclose(stacked.solve(6).c, whole.solve(6).c, rtol=1e4 * EPS)


@pytest.mark.parametrize("n", [1, 3, 6])
def test_more_directions_than_rows_fit_exactly_and_report_the_cut(n: int, comm_self: Any) -> None:
    rng = np.random.default_rng(n)
    m = 6
    av, r0 = rng.standard_normal((m, n)), rng.standard_normal(n)
    solution = reduce_rows(comm_self, av, r0, n).solve(m)

    assert solution.cut == m - n
    assert np.linalg.norm(r0 + av.T @ solution.c) <= 1e3 * EPS * np.linalg.norm(r0)
    assert solution.residual <= 1e3 * EPS * np.linalg.norm(r0)
    assert np.linalg.norm(solution.c) < 100 * np.linalg.norm(r0)


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e8, 1e150])
def test_scaling_the_jacobian_scales_the_coefficients_back(scale: float, comm_self: Any) -> None:
    rng = np.random.default_rng(9)
    a, y = rng.standard_normal((40, 5)) * np.logspace(0, -6, 5), rng.standard_normal(40)
    plain = reduce_rows(comm_self, np.ascontiguousarray(a.T), -y, 40).solve(5)
    scaled = reduce_rows(comm_self, np.ascontiguousarray(scale * a.T), -y, 40).solve(5)

    # Unit columns have condition below 10, whatever their scale.
    np.testing.assert_allclose(scaled.c * scale, plain.c, rtol=1e3 * EPS)
    assert scaled.residual == pytest.approx(plain.residual, rel=100 * EPS)
    assert scaled.cut == plain.cut == 0


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_scaling_single_columns_changes_neither_cut_nor_residual(scale: float, comm_self: Any) -> None:
    rng = np.random.default_rng(10)
    a, y = rng.standard_normal((40, 5)), rng.standard_normal(40)
    factors = np.array([1.0, scale, 1.0, scale**2, 1.0])
    plain = reduce_rows(comm_self, np.ascontiguousarray(a.T), -y, 40).solve(5)
    scaled = reduce_rows(comm_self, np.ascontiguousarray((a * factors).T), -y, 40).solve(5)

    np.testing.assert_allclose(scaled.c * factors, plain.c, rtol=1e3 * EPS)
    assert scaled.residual == pytest.approx(plain.residual, rel=100 * EPS)
    assert scaled.cut == 0


def test_zero_residual_needs_no_step(comm_self: Any) -> None:
    av = np.random.default_rng(11).standard_normal((5, 30))
    solution = reduce_rows(comm_self, av, np.zeros(30), 30).solve(5)

    assert not solution.c.any()
    assert solution.residual == 0.0


def test_residual_orthogonal_to_the_range_stays(comm_self: Any) -> None:
    q = np.linalg.qr(np.random.default_rng(12).standard_normal((30, 6)))[0]
    solution = reduce_rows(comm_self, np.ascontiguousarray(q[:, :5].T), q[:, 5], 30).solve(5)

    assert np.linalg.norm(solution.c) <= 100 * EPS
    assert solution.residual == pytest.approx(1.0, rel=100 * EPS)


def test_decomposition_that_divide_and_conquer_gives_up_is_taken_over(monkeypatch):
    """LAPACK's gesdd fails on some matrices, which depend on its version; here it always does."""
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((40, 12)), rng.standard_normal(40)
    expected = [np.linalg.lstsq(a[:, :rank], b, rcond=None)[0] for rank in (5, 12)]

    def fails(*words, **more):
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(np.linalg, "svd", fails)
    problem = ReducedProblem.from_factor(np.linalg.qr(np.column_stack([a, b]), mode="r"), 40)
    for rank, c in zip((5, 12), expected, strict=True):
        np.testing.assert_allclose(problem.solve(rank).c, c, rtol=1e-10)
