"""The Poisson problem: its source against automatic differentiation, its points, its arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lsr_hpc.models import MLP
from lsr_hpc.problem import Problem, as_tensor
from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.problems.poisson import build, exact, laplacian, source, training_task
from lsr_hpc.settings import TrainingSettings


def small(**changes: Any) -> Problem:
    arguments = {"width": 6, "depth": 2, "points": 40, "boundary_points": 5} | changes
    width, depth = arguments["width"], arguments["depth"]
    scaling = {"input_mean": [0.5] * 2, "input_std": [math.sqrt(1 / 12)] * 2}
    return build(MLP([2] + [width] * depth + [1], **scaling).state_dict(), **arguments)


def test_source_is_the_laplacian_of_the_exact_solution() -> None:
    x = torch.rand(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    # The Laplacian reaches 650, so this is rounding.
    assert laplacian(exact, x, source(x)).abs().max() < 1e-11
    # One value by hand: x = y = 1/2 has phase pi, cos -1, sin 0, so u_xx + u_yy = -8 pi.
    middle = torch.full((1, 2), 0.5, dtype=torch.float64)
    assert source(middle).item() == pytest.approx(-8 * math.pi, rel=1e-14)


def test_boundary_points_lie_on_all_four_sides_where_the_solution_vanishes() -> None:
    x = as_tensor(small(boundary_points=5).blocks[1].points)

    assert x.shape == (20, 2)
    for side in range(4):
        on_side = x[5 * side : 5 * side + 5]
        assert bool((on_side[:, side // 2] == side % 2).all())
        along = on_side[:, 1 - side // 2]
        assert len(set(along.tolist())) == 5
        assert bool(((along > 0) & (along < 1)).all())
    assert exact(x).abs().max() < 1e-14


def test_points_depend_on_seed_and_global_number_alone() -> None:
    few, many = small(points=40), small(points=5000)
    x_few, x_many = as_tensor(few.blocks[0].points), as_tensor(many.blocks[0].points)

    assert bool((x_few == x_many[:40]).all())
    assert not bool((x_few == as_tensor(small(seed=1).blocks[0].points)).any())
    assert bool((x_many.mean(0) - 0.5).abs().max() < 0.02)


def test_inputs_are_z_scored_and_the_error_grid_holds_the_solution() -> None:
    problem = small()
    points = as_tensor(small(points=20_000).blocks[0].points)
    scaled = (points - problem.model.mean) / problem.model.std
    assert scaled.mean(0).tolist() == pytest.approx([0, 0], abs=0.02)
    assert scaled.std(0).tolist() == pytest.approx([1, 1], abs=0.02)

    assert problem.evaluation is not None
    (grid,), reference = problem.evaluation.take(slice(None))
    assert (len(grid), reference.shape) == (257**2, (257**2, 1))
    x, y = grid.numpy().T
    np.testing.assert_allclose(
        reference[:, 0].numpy(), np.sin(np.pi * (2 * x) ** 2) * np.sin(np.pi * y), atol=1e-14
    )


def test_sizes_are_those_of_the_publication() -> None:
    settings = TrainingSettings(steps=1, optimizer="lbfgs")

    def parameters(**sizes: int) -> int:
        model = training_task(settings, points=1, boundary_points=1, **sizes).model
        return sum(p.numel() for p in model.parameters())

    assert (parameters(), parameters(width=32, depth=4)) == (83_073, 3_297)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("points", 0),
        ("boundary_points", 0),
        ("weight", -1.0),
        ("weight", float("nan")),
        ("width", 0),
        ("depth", 0),
        ("seed", -1),
    ],
)
def test_argument_that_cannot_be_is_refused_by_name(argument: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=argument):
        build({}, **{argument: value})
    with pytest.raises(ArgumentError, match=argument):
        training_task(TrainingSettings(steps=1), **{argument: value})


def test_every_round_has_points_of_its_own_by_seed_round_and_global_number_alone() -> None:
    few, many = small(points=40), small(points=5000)
    assert few.resample is not None
    assert many.resample is not None
    rounds = [few.resample(round_) for round_ in range(3)]

    for block, first in zip(few.blocks, rounds[0], strict=True):
        assert bool((as_tensor(first.points) == as_tensor(block.points)).all())
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not set(as_tensor(rounds[a][0].points)[:, 0].tolist()) & set(
            as_tensor(rounds[b][0].points)[:, 0].tolist()
        )
    for again, block in zip(small(points=40).resample(2), rounds[2], strict=True):  # type: ignore[misc]
        for mine, theirs in zip(again.take(np.arange(20)), block.take(np.arange(20)), strict=True):
            assert bool((mine == theirs).all())
    x = as_tensor(many.resample(2)[0].points)
    assert bool((x[:40] == as_tensor(rounds[2][0].points)).all())
    assert x[:, 0].unique().numel() == 5000
    assert bool((x.mean(0) - 0.5).abs().max() < 0.02)
    pde, boundary = rounds[2]
    assert laplacian(exact, *pde.take(np.arange(40))).abs().max() < 1e-11
    assert exact(as_tensor(boundary.points)).abs().max() < 1e-14
    assert [b.weight for b in rounds[2]] == [b.weight for b in few.blocks]


def test_alignment_points_are_denser_and_reach_the_boundary() -> None:
    problem = small(points=40, boundary_points=5)
    points = as_tensor(problem.alignment_points)

    assert points.shape == (2 * 40 + 20, 2)
    assert bool(((points >= 0) & (points <= 1)).all())
    of_residual = set(as_tensor(problem.blocks[0].points)[:, 0].tolist())
    assert not of_residual & set(points[:80, 0].tolist())
    assert exact(points[80:]).abs().max() < 1e-14
