"""Tangent steps against the same step from a dense Jacobian, and what they leave alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lsr_hpc.errors import AccuracyError
from lsr_hpc.iterative.align import align
from lsr_hpc.iterative.tangent import TangentAlignment
from lsr_hpc.prepare import PreparedProblem, prepare
from lsr_hpc.problem import Problem, ResidualBlock
from lsr_hpc.settings import IterateSettings
from lsr_hpc.snapshot import MemoryState, Snapshot, no_boundary
from tests.iterative.problems import (
    X,
    bratu,
    cubic,
    fitted,
    fitted_in_the_plane,
    loss,
    misfit,
    refinement,
    stacked,
    start_of,
)

Array = NDArray[np.float64]


class DenseSteps:
    """The steps of the module's formulas with all of J, each from the stacked system [J; sqrt(mu) I]."""

    def __init__(self, problem: Problem, theta: Array, momentum: float, is_bent: bool) -> None:
        self.problem, self.theta = problem, theta
        self.momentum, self.is_bent = momentum, is_bent
        self.last = np.zeros_like(theta)
        self.mu: float | None = None
        self.rejected = 0

    def f(self, theta: Array) -> Array:
        return np.asarray(stacked(self.problem, torch.from_numpy(theta)).detach().numpy())

    def step(self) -> None:
        f = self.f(self.theta)
        j = torch.func.jacrev(lambda t: stacked(self.problem, t))(torch.from_numpy(self.theta)).numpy()
        v = self.momentum * self.last
        if self.mu is None:
            self.mu = 1e-4 * float(np.linalg.norm(j, 2)) ** 2

        def damped(rhs: Array) -> Array:
            assert self.mu is not None
            p = len(self.theta)
            matrix = np.vstack([j, np.sqrt(self.mu) * np.eye(p)])
            return np.asarray(np.linalg.lstsq(matrix, np.concatenate([-rhs, np.zeros(p)]), rcond=None)[0])

        for _ in range(12):
            d = v + damped(f + j @ v)
            moved, is_usable = d, True
            if self.is_bent:
                curvature = 2 / 0.1 * ((self.f(self.theta + 0.1 * d) - f) / 0.1 - j @ d)
                a = damped(curvature / 2)
                is_usable = 2 * np.linalg.norm(a) <= 0.75 * np.linalg.norm(d)
                moved = d + a
            new = self.theta + moved
            fallen = f @ f - np.sum(self.f(new) ** 2)
            if is_usable and fallen > 0:
                ratio = fallen / (f @ f - np.sum((f + j @ d) ** 2))
                self.mu *= 1 / 3 if ratio > 0.6 else 2 if ratio < 0.2 else 1
                self.theta, self.last = new, moved
                return
            self.rejected += 1
            self.mu *= 3
        raise AssertionError("no step was found")


def prepared_for(problem: Problem, comm: Any, **changes: Any) -> PreparedProblem:
    return prepare(problem, comm, refinement(10_000, 0.0, **changes), may_lower_rank=True)


def tangent(**changes: Any) -> IterateSettings:
    return IterateSettings(**({"optimizer": "tangent", "tangent_rank": 1000} | changes))


@pytest.mark.parametrize("is_bent", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("build", [fitted, cubic])
def test_steps_are_those_of_a_dense_jacobian(
    build: Any, momentum: float, is_bent: bool, comm_self: Any
) -> None:
    problem = build()
    start = start_of(problem)
    # More directions than J has: the Krylov space is all of its row space.
    settings = tangent(momentum=momentum, acceleration=is_bent)
    mine = TangentAlignment(prepared_for(problem, comm_self), settings, None, start)
    dense = DenseSteps(problem, start, momentum, is_bent)

    assert mine.loss == pytest.approx(loss(problem, start), rel=1e-13)
    for n in range(1, 6):
        before = mine.theta
        assert mine.step()
        dense.step()
        # Of a length of the step; where it may end, rounding is multiplied by up to sigma^2 / mu.
        assert np.linalg.norm(mine.theta - dense.theta) <= 1e-6 * np.linalg.norm(mine.theta - before)
        assert mine.loss == pytest.approx(loss(problem, mine.theta), rel=1e-10)
        assert mine.steps == n
    kept = mine.carried().values["tangent"]
    assert kept["damping"] == pytest.approx(dense.mu, rel=1e-6)


def carried(last_step: Array, damping: float) -> MemoryState:
    return MemoryState(
        Snapshot({"tangent.last_step": last_step}, {"tangent": {"damping": damping, "rank": 1000}})
    )


def test_step_that_bends_too_much_takes_a_larger_damping(comm_self: Any) -> None:
    problem = fitted(by=2.0)
    start = start_of(problem)
    # Nearly no damping, so that the first trials are plain Gauss-Newton steps from far away.
    handed = carried(np.zeros_like(start), 1e-4)
    mine = TangentAlignment(prepared_for(problem, comm_self), tangent(), handed, start)
    dense = DenseSteps(problem, start, 0.0, True)
    dense.mu = 1e-4

    assert mine.step()
    dense.step()
    assert dense.rejected > 0
    assert np.linalg.norm(mine.theta - dense.theta) <= 1e-6 * np.linalg.norm(dense.last)


def test_steps_in_a_small_krylov_space_fall(comm_self: Any) -> None:
    problem = bratu()
    settings = tangent(tangent_rank=20)
    mine = TangentAlignment(prepared_for(problem, comm_self), settings, None, start_of(problem))
    losses = [mine.loss]
    for _ in range(4):
        assert mine.step()
        losses.append(mine.loss)
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < 1e-2 * losses[0]


def test_network_next_to_the_solution_is_found_to_rounding(comm_self: Any) -> None:
    problem = fitted_in_the_plane()
    aligned = align(problem, comm_self, refinement(), tangent(steps=40), no_boundary)

    assert aligned.loss_before == pytest.approx(loss(problem, start_of(problem)), rel=1e-12)
    assert aligned.loss == pytest.approx(loss(problem, aligned.theta), rel=1e-6)
    # The loss is a square: its root is the residual.
    assert aligned.loss**0.5 < 1e-10


def trap(u: Any, x: Tensor, u0: Tensor) -> Tensor:
    """Looks as if it fell along u, and rises whichever way u goes."""
    value = u(x)
    return 1 + value - value.detach() + 100 * (value.detach() - u0).abs()


def trapped() -> Problem:
    problem = fitted()
    with torch.no_grad():
        u0 = problem.model(X)
    block = ResidualBlock(name="trap", residual=trap, points=X, data=(u0,))
    return replace(problem, blocks=[block], evaluation=None)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_step_that_never_helps_leaves_network_and_snapshots_as_they_were(
    momentum: float, comm_self: Any
) -> None:
    problem = trapped()
    start = start_of(problem)
    before = 1e-3 * np.random.default_rng(0).standard_normal(len(start))
    prepared = prepared_for(problem, comm_self, jacobian="matrix_free")
    mine = TangentAlignment(prepared, tangent(momentum=momentum), carried(before, 1e-6), start)
    kept = mine.snapshot()

    before_step = mine.loss
    # A root of a mean of squares: a rounding or two away.
    assert before_step == pytest.approx(1.0, rel=1e-15)
    assert not mine.step()
    np.testing.assert_array_equal(mine.theta, start)
    np.testing.assert_array_equal(start, start_of(problem))
    assert (mine.loss, mine.steps) == (before_step, 0)
    np.testing.assert_array_equal(kept.arrays["tangent.last_step"], before)
    # The direction that may have spoilt the step is forgotten, where it was used.
    assert mine.carried().arrays["tangent.last_step"].any() == (momentum == 0.0)


def test_alignment_that_never_helps_returns_the_start(comm_self: Any) -> None:
    problem = trapped()
    aligned = align(problem, comm_self, refinement(jacobian="matrix_free"), tangent(), no_boundary)
    np.testing.assert_array_equal(aligned.theta, start_of(problem))
    assert (aligned.loss, aligned.steps) == (aligned.loss_before, 0)
    assert aligned.loss == pytest.approx(1.0, rel=1e-15)


def test_zero_residual_ends_at_once(comm_self: Any) -> None:
    problem = fitted(by=0.0)
    aligned = align(problem, comm_self, refinement(), tangent(), no_boundary)
    assert (aligned.loss, aligned.loss_before, aligned.steps) == (0.0, 0.0, 0)
    np.testing.assert_array_equal(aligned.theta, start_of(problem))


def test_stationary_network_ends_at_once(comm_self: Any) -> None:
    """J^T f = 0 to the last bit, with f far from zero: values of opposite sign at every point."""
    problem = fitted(by=0.0)
    x = X.repeat_interleave(2, dim=0)
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(len(X))[:, None]
    with torch.no_grad():
        y = problem.model(x) + sign
    block = ResidualBlock(name="fit", residual=lambda u, x, y: u(x) - y, points=x, data=(y,))
    problem = replace(problem, blocks=[block], evaluation=None)
    aligned = align(problem, comm_self, refinement(), tangent(), no_boundary)
    assert aligned.loss == pytest.approx(1.0, rel=1e-12)
    assert aligned.loss <= aligned.loss_before
    assert np.abs(aligned.theta - start_of(problem)).max() < 1e-6


@pytest.mark.parametrize("seed", range(8))
def test_least_squares_solution_that_leaves_a_residual_is_found_and_kept(seed: int, comm_self: Any) -> None:
    """A straight line: at its end the linearisation promises less than rounding shows."""
    torch.manual_seed(seed)
    y = torch.sin(5 * X + seed)
    block = ResidualBlock(name="line", residual=misfit, points=X, data=(y,))
    problem = Problem(name="line", model=nn.Linear(1, 1).double(), blocks=[block])
    aligned = align(problem, comm_self, refinement(), tangent(steps=100), no_boundary)

    line = np.hstack([X.numpy(), np.ones((200, 1))])
    slope, height = np.linalg.lstsq(line, y.numpy()[:, 0], rcond=None)[0]
    assert aligned.steps < 20
    np.testing.assert_allclose(aligned.theta, [slope, height], rtol=0, atol=1e-7)


@pytest.mark.parametrize("chosen", [{"parameters": ("layers.2.*",)}, {"parameter_fraction": 0.3}])
def test_frozen_parameters_keep_every_digit(chosen: dict[str, Any], comm_self: Any) -> None:
    problem = fitted()
    start = start_of(problem)
    aligned = align(problem, comm_self, refinement(**chosen), tangent(steps=5), no_boundary)

    moved = aligned.theta != start
    if "parameters" in chosen:
        # Layer 0 has 12 numbers, layer 2 has 42, layer 4 has 7.
        np.testing.assert_array_equal(np.flatnonzero(moved), np.arange(12, 54))
    else:
        # Drawn one by one: 18 of 61, give or take three standard deviations.
        assert 8 <= moved.sum() <= 28
    assert aligned.loss < 0.5 * aligned.loss_before


def test_directions_are_no_more_than_rows_and_parameters(comm_self: Any) -> None:
    problem = fitted()
    block = problem.blocks[0]
    x, y = block.take(np.arange(0, 200, 10))
    few = replace(problem, blocks=[replace(block, points=x, data=(y,))])
    for made in (few, problem):
        aligned = align(made, comm_self, refinement(), tangent(steps=3, tangent_rank=400), no_boundary)
        assert aligned.steps == 3
        assert aligned.loss < 0.1 * aligned.loss_before


def test_settings_of_the_refinements_solver_have_no_say(comm_self: Any) -> None:
    problem = fitted()
    one, other = (
        align(problem, comm_self, refinement(solver=solver), tangent(steps=2), no_boundary)
        for solver in ({}, {"space": "full", "type": "lsqr"})
    )
    np.testing.assert_array_equal(one.theta, other.theta)


def test_start_that_has_no_residual_is_refused(comm_self: Any) -> None:
    problem = fitted()
    block = replace(problem.blocks[0], residual=lambda u, x, y: torch.log(u(x) - y - 10))
    with pytest.raises(AccuracyError, match="NaN or Inf at its start"):
        TangentAlignment(
            prepared_for(replace(problem, blocks=[block]), comm_self), tangent(), None, start_of(problem)
        )
