"""L-BFGS and Adam over the ranks against torch's own optimisers on the full batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.checkpoint.store import CheckpointStore
from lsr_hpc.errors import AccuracyError, StopRequested
from lsr_hpc.iterative.align import Aligned, align
from lsr_hpc.iterative.gradient import GradientAlignment
from lsr_hpc.prepare import PreparedProblem, prepare
from lsr_hpc.problem import Problem
from lsr_hpc.settings import IterateSettings
from lsr_hpc.snapshot import MemoryState, SavedState, Snapshot, no_boundary
from tests.iterative.problems import bratu, cubic, fitted, loss, refinement, stacked, start_of

Array = NDArray[np.float64]
LBFGS = IterateSettings(optimizer="lbfgs", steps=25, history=7)
ADAM = IterateSettings(optimizer="adam", steps=120, learning_rate=3e-3)
TANGENT = IterateSettings(optimizer="tangent", steps=5)


def prepared_for(problem: Problem, comm: Any, **changes: Any) -> PreparedProblem:
    return prepare(problem, comm, refinement(1, 0.0, **changes))


def by_torch(
    problem: Problem,
    make: Callable[[Tensor], torch.optim.Optimizer],
    calls: int,
    free: slice = slice(None),
) -> Array:
    """Parameters after some calls of an optimiser with the loss of the full batch."""
    theta = torch.from_numpy(start_of(problem)).requires_grad_()
    optimiser = make(theta)

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = stacked(problem, theta).square().sum()
        value.backward()
        assert theta.grad is not None
        is_free = torch.zeros(len(theta), dtype=torch.bool)
        is_free[free] = True
        theta.grad[~is_free] = 0.0
        return value

    for _ in range(calls):
        optimiser.step(closure)
    return np.asarray(theta.detach().numpy())


@pytest.mark.parametrize("build", [fitted, bratu])
def test_loss_and_gradient_are_those_of_the_full_batch(build: Any, comm_self: Any) -> None:
    problem = build()
    mine = GradientAlignment(prepared_for(problem, comm_self), ADAM, None, start_of(problem))
    # Not where the network was prepared.
    theta = start_of(problem) + 0.05
    value, gradient = mine._sums(theta)

    at = torch.from_numpy(theta).requires_grad_()
    reference = stacked(problem, at).square().sum()
    reference.backward()
    assert value == pytest.approx(reference.item(), rel=1e-13)
    assert at.grad is not None
    np.testing.assert_allclose(gradient, at.grad.numpy(), rtol=0, atol=1e-13 * float(at.grad.norm()))


@pytest.mark.parametrize("build", [fitted, cubic])
def test_lbfgs_in_pieces_is_that_of_torch_in_the_same_pieces(build: Any, comm_self: Any) -> None:
    problem = build()
    aligned = align(problem, comm_self, refinement(), LBFGS, no_boundary)

    def optimiser(theta: Tensor) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(
            [theta],
            max_iter=5,
            max_eval=100,
            history_size=7,
            tolerance_grad=1e-14,
            tolerance_change=1e-16,
            line_search_fn="strong_wolfe",
        )

    start = start_of(problem)
    # 25 steps are pieces of 10, 10 and 5; a piece more or less changes nothing but the evaluations.
    theta = by_torch(problem, optimiser, 5)
    assert aligned.steps == 25
    assert np.linalg.norm(aligned.theta - theta) <= 1e-7 * np.linalg.norm(theta - start)
    assert aligned.loss == pytest.approx(loss(problem, aligned.theta), rel=1e-12)
    assert aligned.loss < 0.1 * aligned.loss_before


def test_adam_is_that_of_torch(comm_self: Any) -> None:
    problem = cubic()
    aligned = align(problem, comm_self, refinement(), ADAM, no_boundary)
    theta = by_torch(problem, lambda theta: torch.optim.Adam([theta], lr=3e-3), 120)

    assert aligned.steps == 120
    np.testing.assert_allclose(aligned.theta, theta, rtol=0, atol=1e-9)
    assert aligned.loss == pytest.approx(loss(problem, theta), rel=1e-7)


@pytest.mark.parametrize("settings", [LBFGS, ADAM], ids=["lbfgs", "adam"])
def test_single_precision_moves_single_numbers_and_measures_in_double(
    settings: IterateSettings, comm_self: Any
) -> None:
    problem = fitted()
    single = replace(settings, precision="float32")
    aligned = align(problem, comm_self, refinement(), single, no_boundary)
    exact = align(problem, comm_self, refinement(), settings, no_boundary)

    np.testing.assert_array_equal(aligned.theta, aligned.theta.astype(np.float32))
    assert not np.array_equal(exact.theta, exact.theta.astype(np.float32))
    assert aligned.loss == pytest.approx(loss(problem, aligned.theta), rel=1e-12)
    # L-BFGS amplifies rounding from step to step, Adam hardly.
    factor = 1.01 if settings is ADAM else 3.0
    assert exact.loss / factor < aligned.loss < factor * exact.loss


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("settings", [LBFGS, ADAM], ids=["lbfgs", "adam"])
def test_frozen_parameters_keep_every_digit(
    settings: IterateSettings, precision: str, comm_self: Any
) -> None:
    problem = fitted()
    chosen = refinement(parameters=("layers.2.*",))
    aligned = align(problem, comm_self, chosen, replace(settings, precision=precision), no_boundary)

    # Layer 0 has 12 numbers, layer 2 has 42, layer 4 has 7.
    moved = np.flatnonzero(aligned.theta != start_of(problem))
    np.testing.assert_array_equal(moved, np.arange(12, 54))
    assert aligned.loss < aligned.loss_before


def test_adam_of_some_parameters_is_that_of_torch(comm_self: Any) -> None:
    problem = fitted()
    aligned = align(problem, comm_self, refinement(parameters=("layers.2.*",)), ADAM, no_boundary)
    theta = by_torch(problem, lambda theta: torch.optim.Adam([theta], lr=3e-3), 120, slice(12, 54))
    np.testing.assert_allclose(aligned.theta, theta, rtol=0, atol=1e-9)


def test_lbfgs_ends_where_it_gains_no_more(comm_self: Any) -> None:
    problem = fitted(by=0.0)
    aligned = align(problem, comm_self, refinement(), LBFGS, no_boundary)
    np.testing.assert_array_equal(aligned.theta, start_of(problem))
    assert (aligned.loss, aligned.loss_before) == (0.0, 0.0)


def test_alignment_that_ends_higher_returns_the_start(comm_self: Any) -> None:
    problem = fitted(by=0.001)
    aligned = align(problem, comm_self, refinement(), replace(ADAM, learning_rate=3.0), no_boundary)
    np.testing.assert_array_equal(aligned.theta, start_of(problem))
    assert aligned.loss == aligned.loss_before == pytest.approx(loss(problem, start_of(problem)))
    assert aligned.steps == 120


@pytest.mark.parametrize("settings", [LBFGS, ADAM], ids=["lbfgs", "adam"])
def test_start_and_snapshots_are_not_written_into(settings: IterateSettings, comm_self: Any) -> None:
    problem = fitted()
    start = start_of(problem)
    prepared = prepared_for(problem, comm_self)
    mine = GradientAlignment(prepared, settings, None, start)
    kept = []
    for _ in range(2):
        mine.step()
        arrays = mine.snapshot().arrays
        kept.append((arrays, {n: np.array(getattr(a, "local", a)) for n, a in arrays.items()}))
    mine.step()

    np.testing.assert_array_equal(start, start_of(problem))
    np.testing.assert_array_equal(prepared.model.theta0, start)
    for arrays, then in kept:
        for name, array in arrays.items():
            np.testing.assert_array_equal(getattr(array, "local", array), then[name])


def test_divergence_is_an_error_with_advice(comm_self: Any) -> None:
    with pytest.raises(
        AccuracyError, match=r"diverged after 50 steps: lower iterate\.learning_rate"
    ) as error:
        align(cubic(), comm_self, refinement(), replace(ADAM, learning_rate=1e200), no_boundary)
    assert error.value.on_every_rank


class Interrupting:
    """A boundary that keeps the state and stops at its nth call."""

    def __init__(self, n: int, keep: Callable[[Snapshot], SavedState]) -> None:
        self.left, self.keep = n, keep
        self.kept: SavedState | None = None

    def __call__(self, snapshot: Callable[[], Snapshot]) -> None:
        self.left -= 1
        if self.left == 0:
            self.kept = self.keep(snapshot())
            raise StopRequested("now")


def same(one: Aligned, other: Aligned) -> None:
    np.testing.assert_array_equal(one.theta, other.theta)
    assert (one.loss, one.loss_before, one.steps) == (other.loss, other.loss_before, other.steps)
    assert one.carried.values == other.carried.values
    assert one.carried.arrays.keys() == other.carried.arrays.keys()
    for name, array in one.carried.arrays.items():
        np.testing.assert_array_equal(array, other.carried.arrays[name])


@pytest.mark.parametrize("is_on_disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize(
    ("settings", "boundaries"),
    [(LBFGS, 3), (replace(LBFGS, precision="float32"), 3), (ADAM, 3), (TANGENT, 5)],
    ids=["lbfgs", "lbfgs32", "adam", "tangent"],
)
def test_interrupted_alignment_goes_on_as_if_it_had_not_been(
    settings: IterateSettings, boundaries: int, is_on_disk: bool, comm_self: Any, tmp_path: Path
) -> None:
    problem = fitted() if is_on_disk else cubic()
    store = CheckpointStore(tmp_path / "store", "0" * 64)

    def keep(snapshot: Snapshot) -> SavedState:
        if not is_on_disk:
            return MemoryState(snapshot)
        return store.load(
            comm_self, store.save(comm_self, "here-part", snapshot, progress=(0, 1), score=None)
        )

    whole = align(problem, comm_self, refinement(), settings, no_boundary)
    n_calls = 0
    saved: SavedState | None = None
    while True:
        # Interrupted after every single step, and gone on with from there.
        boundary = Interrupting(1, keep)
        try:
            pieced = align(problem, comm_self, refinement(), settings, boundary, saved=saved)
            break
        except StopRequested:
            saved, n_calls = boundary.kept, n_calls + 1
    assert n_calls == boundaries
    same(pieced, whole)
