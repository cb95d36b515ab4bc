"""What the network is aligned to, against dense Jacobians of the network's outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.iterative.align import align
from lsr_hpc.iterative.objective import alignment_problem
from lsr_hpc.models import MLP
from lsr_hpc.problem import Problem, ResidualBlock, as_tensor
from lsr_hpc.settings import IterateSettings
from lsr_hpc.snapshot import no_boundary
from tests.iterative.problems import X, bratu, field_at, fitted, misfit, refinement, start_of, wide

Array = NDArray[np.float64]


def aligned_to(problem: Problem, delta: Array, **settings: Any) -> Problem:
    return alignment_problem(problem, FunctionalModel(problem.model), delta, IterateSettings(**settings))


def step_for(problem: Problem) -> Array:
    return 0.1 * np.random.default_rng(0).standard_normal(len(start_of(problem)))


def target(problem: Problem, x: Tensor, delta: Array, share: float) -> Array:
    """u + share * J delta from all of J."""
    theta = torch.from_numpy(start_of(problem))
    jacobian = torch.func.jacrev(lambda t: field_at(problem, t)(x))(theta)
    with torch.no_grad():
        return np.asarray((problem.model(x) + share * jacobian @ torch.from_numpy(delta)).numpy())


def rows(block: ResidualBlock, u: Any) -> Array:
    values = block.residual(u, *block.take(np.arange(block.n_points)))
    return np.asarray(values.detach().numpy())


@pytest.mark.parametrize("build", [fitted, bratu, wide])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_targets_are_the_way_to_the_linearised_predictor(share: float, build: Any) -> None:
    problem = build()
    delta = step_for(problem)
    made = aligned_to(problem, delta, objective="targets", target_share=share)

    (block,) = made.blocks
    largest = problem.blocks[0]
    np.testing.assert_array_equal(as_tensor(block.points), as_tensor(largest.points))
    y = target(problem, as_tensor(largest.points), delta, share)
    np.testing.assert_allclose(block.take(np.arange(block.n_points))[1], y, rtol=0, atol=1e-14)
    zeros = rows(block, lambda x: torch.zeros(len(x), y.shape[1], dtype=torch.float64))
    np.testing.assert_allclose(zeros, -y, rtol=0, atol=1e-14)
    # Any rows, in any order.
    np.testing.assert_allclose(block.take(np.array([3, 0]))[1], y[[3, 0]], rtol=0, atol=1e-14)
    assert not block.hold_out
    assert made.evaluation is None
    assert made.model is problem.model


def test_targets_lie_at_the_alignment_points_if_there_are_any() -> None:
    problem = fitted()
    # More than are evaluated at once, and as an array.
    points = np.linspace(-1, 1, 5000)[:, None]
    for given in (points, torch.from_numpy(points)):
        dense = replace(problem, alignment_points=given)
        delta = step_for(problem)
        (block,) = aligned_to(dense, delta, objective="targets").blocks
        y = block.take(np.arange(5000))[1]
        some = np.array([0, 4095, 4096, 4999])
        np.testing.assert_allclose(
            y[some], target(problem, torch.from_numpy(points[some]), delta, 1.0), rtol=0, atol=1e-14
        )
        np.testing.assert_array_equal(as_tensor(block.points), points)


def test_pseudo_time_adds_the_distance_to_the_largest_block() -> None:
    problem = bratu()
    delta = step_for(problem)
    made = aligned_to(problem, delta, objective="pseudo_time", target_share=0.4, pseudo_time=0.05)
    other = MLP([1, 4, 1]).double()

    assert [b.name for b in made.blocks] == ["equation", "boundary"]
    largest = problem.blocks[0]
    x = as_tensor(largest.points)
    distance = other(x).detach().numpy() - target(problem, x, delta, 0.4)
    expected = rows(largest, other) + distance / 0.05
    np.testing.assert_allclose(rows(made.blocks[0], other), expected, rtol=1e-13, atol=1e-13)
    np.testing.assert_array_equal(rows(made.blocks[1], other), rows(problem.blocks[1], other))
    assert [b.weight for b in made.blocks] == [b.weight for b in problem.blocks]


def test_block_without_weight_is_not_the_one_to_add_the_distance_to() -> None:
    problem = bratu()
    silent = ResidualBlock(name="silent", residual=misfit, points=X, data=(X,), weight=0.0)
    problem = replace(problem, blocks=[silent, *problem.blocks])
    made = aligned_to(problem, step_for(problem), objective="pseudo_time")
    assert [len(b.data) for b in made.blocks] == [1, 2, 0]


def test_residual_objective_is_the_loss_without_validation() -> None:
    problem = bratu()
    own = ResidualBlock(name="own", residual=misfit, points=X, data=(X,))
    made = aligned_to(replace(problem, validation=[own]), step_for(problem), objective="residual")
    assert list(made.blocks) == list(problem.blocks)
    assert list(made.validation) == []


def test_alignment_to_a_predictor_reaches_it_where_a_network_can(comm_self: Any) -> None:
    """A linear network is its own linearisation: its weights become theta + share * delta."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1).double()
    block = ResidualBlock(name="fit", residual=misfit, points=X, data=(3 * X + 2,))
    problem = Problem(name="line", model=model, blocks=[block])
    delta = np.array([0.5, -0.25])
    settings = IterateSettings(objective="targets", target_share=0.5, steps=30)
    made = alignment_problem(problem, FunctionalModel(model), delta, settings)
    aligned = align(made, comm_self, refinement(1), settings, no_boundary)
    np.testing.assert_allclose(aligned.theta, start_of(problem) + 0.5 * delta, rtol=0, atol=1e-10)


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = MLP([1, 4, 1]).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, 0]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"alignment_points": torch.zeros(5, 2)},
            r"cannot be evaluated at the alignment points, shape \(2, ",
        ),
        ({"alignment_points": torch.tensor([[0.0], [float("nan")]])}, "alignment_points holds NaN or Inf"),
        ({"alignment_points": torch.tensor([[float("inf")]])}, "alignment_points holds NaN or Inf"),
        ({"model": Flat()}, r"maps 2 alignment points to shape \(2,\)"),
    ],
)
def test_points_that_are_no_inputs_are_refused(changes: dict[str, Any], complaint: str) -> None:
    problem = replace(fitted(), **changes)
    with pytest.raises(JobError, match=complaint):
        aligned_to(problem, step_for(problem), objective="targets")
    # The loss itself needs no such points.
    aligned_to(problem, step_for(problem), objective="residual")


def test_no_points_at_all_are_refused(comm_self: Any) -> None:
    problem = replace(fitted(), alignment_points=torch.zeros(0, 1))
    settings = IterateSettings(objective="targets")
    made = alignment_problem(problem, FunctionalModel(problem.model), step_for(problem), settings)
    with pytest.raises(JobError, match="'targets' has no points"):
        align(made, comm_self, refinement(), settings, no_boundary)
