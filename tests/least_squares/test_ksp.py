"""LSQR and CGLS of PETSc: the dense answer on the reduced and the full problem, or honest words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lsr_hpc.errors import AccuracyError
from lsr_hpc.least_squares.ksp import IterativeSolution, solve_full, solve_reduced

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
METHODS = ["lsqr", "cgls"]
SPACES = ["reduced", "full"]


@pytest.fixture
def solve(comm_self: Any, as_jacobian: Callable[..., Any]) -> Callable[..., IterativeSolution]:
    """Solves ``min ||r0 + a x||`` either as a reduced problem (a = J V) or over the full space (a = J)."""

    def run(space: str, a: Array, r0: Array, method: str, tolerance: float = 1e-12, max_iterations: int = 1000
            ) -> IterativeSolution:  # fmt: skip
        options: dict[str, Any] = {"method": method, "tolerance": tolerance, "max_iterations": max_iterations}
        if space == "reduced":
            return solve_reduced(comm_self, np.ascontiguousarray(a.T), r0, **options)
        return solve_full(as_jacobian(a), r0, **options)

    return run


def problem(
    with_spectrum: Callable[..., tuple[Array, Array, Array]],
    n: int = 70,
    m: int = 20,
    condition: float = 50.0,
) -> tuple[Array, Array, Array]:
    """An inconsistent problem with its dense solution."""
    a, _, _ = with_spectrum(n, m, np.geomspace(1.0, 1.0 / condition, m))
    r0 = np.random.default_rng(1).standard_normal(n)
    return a, r0, np.linalg.lstsq(a, -r0, rcond=None)[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
def test_solution_is_the_dense_one(space: str, method: str, solve: Any, with_spectrum: Any) -> None:
    a, r0, expected = problem(with_spectrum)
    solution = solve(space, a, r0, method)

    assert solution.is_converged
    assert solution.gradient <= 1e-12
    assert solution.reason.startswith("converged: relative gradient")
    # ||x - x*|| <= ||A^T r|| / sigma_min^2 with ||A^T r|| <= 1e-12 sigma_1 ||r|| and condition 50.
    assert np.linalg.norm(solution.x_local - expected) <= 1e-12 * 50**2 * np.linalg.norm(r0)
    assert solution.residual == pytest.approx(np.linalg.norm(r0 + a @ solution.x_local), rel=100 * EPS)
    assert solution.residual == pytest.approx(np.linalg.norm(r0 + a @ expected), rel=100 * EPS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
def test_consistent_problem_is_solved_exactly(
    space: str, method: str, solve: Any, with_spectrum: Any
) -> None:
    a, _, _ = problem(with_spectrum)
    expected = np.random.default_rng(2).standard_normal(a.shape[1])
    solution = solve(space, a, -a @ expected, method)

    assert solution.is_converged
    assert solution.reason.startswith("converged to rounding")
    np.testing.assert_allclose(solution.x_local, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_wide_problem_gets_the_shortest_solution(method: str, solve: Any, with_spectrum: Any) -> None:
    # Fewer rows than parameters, the usual case of a full solve: Krylov methods stay in the range of J^T.
    a, _, _ = with_spectrum(25, 80, np.geomspace(1.0, 0.05, 25))
    r0 = np.random.default_rng(3).standard_normal(25)
    solution = solve("full", a, r0, method)

    assert solution.is_converged
    expected = -np.linalg.pinv(a) @ r0
    np.testing.assert_allclose(solution.x_local, expected, rtol=0, atol=1e-9 * np.linalg.norm(expected))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
def test_iterations_do_not_depend_on_the_scale_of_the_jacobian(
    space: str, method: str, solve: Any, with_spectrum: Any
) -> None:
    a, r0, expected = problem(with_spectrum, condition=300.0)
    counts = {}
    for scale in (1e-4, 1.0, 1e4):
        solution = solve(space, scale * a, r0, method, tolerance=1e-8)
        assert solution.is_converged
        # As in the first test, now with tolerance 1e-8 and condition 300.
        assert np.linalg.norm(scale * solution.x_local - expected) <= 1e-8 * 300**2 * np.linalg.norm(r0)
        counts[scale] = solution.iterations
    # Convergence is looked at every tenth iteration.
    assert max(counts.values()) <= 1.2 * min(counts.values()) + 10, counts


@pytest.mark.parametrize("method", METHODS)
def test_columns_of_very_different_size_do_not_slow_the_reduced_problem(
    method: str, solve: Any, with_spectrum: Any
) -> None:
    a, r0, expected = problem(with_spectrum, condition=5.0)
    sizes = np.geomspace(1.0, 1e-8, a.shape[1])
    plain, graded = solve("reduced", a, r0, method), solve("reduced", a * sizes, r0, method)

    assert graded.is_converged
    assert graded.iterations <= 1.2 * plain.iterations + 10
    np.testing.assert_allclose(graded.x_local * sizes, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("limit", [1, 7, 10, 13])
def test_iteration_limit_is_reported_with_advice(
    limit: int, space: str, method: str, solve: Any, with_spectrum: Any
) -> None:
    a, r0, _ = problem(with_spectrum, n=120, m=60, condition=1e5)
    solution = solve(space, a, r0, method, max_iterations=limit)

    assert not solution.is_converged
    assert solution.iterations == limit
    assert solution.gradient > 1e-12
    assert solution.reason.startswith("stopped at the limit")
    assert "max_iterations" in solution.reason
    assert "tsqr" in solution.reason
    # What was reached is handed out and never worse than the start.
    assert solution.residual <= np.linalg.norm(r0) * (1 + 100 * EPS)
    assert solution.residual == pytest.approx(np.linalg.norm(r0 + a @ solution.x_local), rel=1e4 * EPS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("m", [1, 2, 3])
def test_a_few_directions_are_solved_though_the_test_comes_later(
    m: int, space: str, method: str, solve: Any, with_spectrum: Any
) -> None:
    # Exact after m iterations, long before the gradient is looked at: what follows must not spoil it.
    a, _, _ = with_spectrum(30, m, np.geomspace(1.0, 0.5, m))
    r0 = np.random.default_rng(4).standard_normal(30)
    solution = solve(space, a, r0, method)

    assert solution.is_converged
    np.testing.assert_allclose(solution.x_local, np.linalg.lstsq(a, -r0, rcond=None)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_iterations_after_the_exact_solution_do_not_diverge(method: str, solve: Any) -> None:
    # What is left of the gradient is rounding, which CGLS can blow up within a few steps: one problem in ten.
    for seed in range(100):
        rng = np.random.default_rng(seed)
        a, r0 = rng.standard_normal((30, 1)), rng.standard_normal(30)
        solution = solve("reduced", a / np.linalg.norm(a), r0, method)
        assert solution.is_converged, seed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
def test_orthonormal_columns_are_solved_in_one_step(
    space: str, method: str, solve: Any, with_spectrum: Any
) -> None:
    a, _, _ = with_spectrum(30, 6, np.ones(6))
    r0 = np.random.default_rng(5).standard_normal(30)
    solution = solve(space, a, r0, method)

    assert solution.is_converged
    np.testing.assert_allclose(solution.x_local, -a.T @ r0, rtol=0, atol=1e-12)


EXACT = {
    "unit vectors": (np.eye(8)[:, :3], np.arange(1.0, 9.0), [1.0, 2.0, 3.0]),
    "consistent": (np.eye(8), np.ones(8), [1.0] * 8),
    "one column": (np.ones((4, 1)), np.array([1.0, 2.0, 3.0, 4.0]), [2.5]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("limit", [5, 1000])
@pytest.mark.parametrize("case", EXACT)
def test_gradient_of_zero_to_the_last_bit_ends_the_iteration_well(
    case: str, limit: int, space: str, method: str, solve: Any
) -> None:
    # Where no step is left to do, the next one divides zero by zero.
    a, b, expected = EXACT[case]
    solution = solve(space, a, -b, method, max_iterations=limit)

    assert solution.is_converged
    np.testing.assert_allclose(solution.x_local, expected, rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("method", METHODS)
def test_tolerance_out_of_reach_ends_with_the_best_iterate_and_says_so(
    method: str, solve: Any, with_spectrum: Any
) -> None:
    # At condition 1e6 rounding keeps the gradient above 1e-15; the residual is optimal nevertheless.
    a, r0, expected = problem(with_spectrum, n=200, condition=1e6)
    solution = solve("reduced", a, r0, method, tolerance=1e-15, max_iterations=5000)

    assert not solution.is_converged
    assert solution.iterations < 1000
    assert solution.reason.startswith("stagnated")
    assert "tsqr" in solution.reason
    # ||r||^2 - opt^2 <= (||A^T r|| / sigma_min)^2; a gradient of 1.4e-9 at condition 1e6 gives ||r|| to 1e-6.
    assert solution.gradient <= 1.4e-9
    assert solution.residual == pytest.approx(np.linalg.norm(r0 + a @ expected), rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
def test_zero_residual_needs_no_iteration(space: str, method: str, solve: Any, with_spectrum: Any) -> None:
    a, _, _ = problem(with_spectrum)
    solution = solve(space, a, np.zeros(len(a)), method)

    assert solution.is_converged
    assert solution.iterations == 0
    assert solution.residual == 0.0
    assert not solution.x_local.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("m", [1, 20])
def test_residual_orthogonal_to_the_range_stays(
    m: int, space: str, method: str, solve: Any, with_spectrum: Any
) -> None:
    _, u, v = with_spectrum(70, m + 1, np.ones(m + 1))
    a = u[:, :m] * np.geomspace(1.0, 0.1, m) @ v[:m, :m]
    solution = solve(space, a, 3.0 * u[:, m], method)

    assert solution.is_converged
    assert solution.residual == pytest.approx(3.0, rel=100 * EPS)
    # A^T r0 is rounding; the coefficients are that, amplified by the condition.
    assert np.linalg.norm(solution.x_local) <= 1e-10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
def test_exactly_vanishing_gradient_needs_no_iteration(space: str, method: str, solve: Any) -> None:
    a, r0 = np.zeros((12, 4)), np.zeros(12)
    a[:6, :4] = np.random.default_rng(6).standard_normal((6, 4))
    r0[6:] = 1.0
    solution = solve(space, a, r0, method)

    assert solution.is_converged
    assert solution.iterations == 0
    assert solution.residual == pytest.approx(np.sqrt(6.0))
    assert not solution.x_local.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
def test_dependent_and_zero_columns_do_no_harm(
    space: str, method: str, solve: Any, with_spectrum: Any
) -> None:
    a, r0, _ = problem(with_spectrum, condition=10.0)
    a[:, 3] = a[:, 7]
    a[:, 11] = 0.0
    solution = solve(space, a, r0, method)

    assert solution.is_converged
    optimum = np.linalg.norm(r0 - a @ (np.linalg.pinv(a) @ r0))
    assert solution.residual == pytest.approx(optimum, rel=1e3 * EPS)
    assert np.all(np.isfinite(solution.x_local))
    assert solution.x_local[11] == 0.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
def test_values_that_are_not_finite_are_refused(
    space: str, method: str, solve: Any, with_spectrum: Any
) -> None:
    a, r0, _ = problem(with_spectrum)
    a[5, 5] = np.nan

    with pytest.raises(AccuracyError):
        solve(space, a, r0, method)


@pytest.mark.parametrize("method", METHODS)
def test_one_product_with_j_and_one_with_its_transpose_per_iteration(
    method: str, as_jacobian: Any, with_spectrum: Any
) -> None:
    a, r0, _ = problem(with_spectrum)
    jacobian = as_jacobian(a)
    solution = solve_full(jacobian, r0, method=method, tolerance=1e-12, max_iterations=500)

    # Beside the iterations: two power steps, a pair for the test every tenth, and one at start and end.
    extra = 8 + solution.iterations // 10
    assert solution.iterations <= jacobian.counter.jv_calls <= solution.iterations + extra
    assert solution.iterations <= jacobian.counter.jtu_calls <= solution.iterations + extra


@pytest.mark.parametrize("option", METHODS)
@pytest.mark.parametrize("method", METHODS)
def test_method_named_by_an_option_is_judged_by_our_test(
    method: str, option: str, solve: Any, with_spectrum: Any, petsc_option: Any
) -> None:
    petsc_option("lsr_ksp_type", option)
    a, r0, expected = problem(with_spectrum)
    solution = solve("full", a, r0, method)

    assert solution.is_converged
    assert np.linalg.norm(solution.x_local - expected) <= 1e-12 * 50**2 * np.linalg.norm(r0)
