"""Burgers' equation in space and time: residuals of the exact solution, points, arguments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsr_hpc.models import MLP
from lsr_hpc.problem import Problem, ResidualBlock, as_tensor
from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.problems.burgers2d import VISCOSITY, advection, build, training_task
from lsr_hpc.problems.burgers_reference import burgers_wave
from lsr_hpc.settings import TrainingSettings


def small(**changes: Any) -> Problem:
    arguments = {"width": 6, "depth": 2, "points": 40, "side_points": 9} | changes
    width, depth = arguments["width"], arguments["depth"]
    scaling = {"input_mean": [0.0, 0.5], "input_std": [math.sqrt(1 / 3), math.sqrt(1 / 12)]}
    return build(MLP([2] + [width] * depth + [1], **scaling).state_dict(), **arguments)


def exact(x: Tensor) -> Tensor:
    """The Cole-Hopf solution in torch, to be differentiated."""
    z, w = (torch.from_numpy(a) for a in np.polynomial.hermite.hermgauss(120))
    y = torch.pi * (x[..., :1] - 2 * torch.sqrt(VISCOSITY * x[..., 1:]) * z)
    weights = w * torch.exp(-torch.cos(y) / (2 * torch.pi * VISCOSITY))
    return -(torch.sin(y) * weights).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)


def values(block: ResidualBlock, u: Any) -> Tensor:
    return block.residual(u, *block.take(np.arange(block.n_points)))


def test_exact_solution_has_no_residual() -> None:
    problem = small(points=400, side_points=50)
    pde, initial, periodic, slope = problem.blocks
    x = as_tensor(pde.points)
    # Near t = 0 the square root in the quadrature is too steep to be differentiated accurately.
    x = x[x[:, 1] > 0.05]

    # u_xx reaches 5e4 in the front, of which nu takes 150.
    assert advection(exact, x).abs().max() < 1e-8
    assert values(initial, exact).abs().max() < 1e-14
    assert values(periodic, exact).abs().max() < 1e-12
    late = as_tensor(slope.points)[:, 1] > 0.05
    assert values(slope, exact)[late].abs().max() < 1e-10


def test_residuals_see_each_term_of_the_equation() -> None:
    """A polynomial whose residual is known by hand: u = x^2 t + 1."""
    x = as_tensor(small().blocks[0].points)
    p, t = x[:, :1], x[:, 1:]
    by_hand = p**2 + (p**2 * t + 1) * 2 * p * t - 0.01 / math.pi * 2 * t

    residual = advection(lambda x: x[..., :1] ** 2 * x[..., 1:] + 1, x)
    np.testing.assert_allclose(residual.numpy(), by_hand.numpy(), rtol=1e-12)


def test_side_conditions_see_a_field_that_violates_them() -> None:
    _, initial, periodic, slope = small().blocks

    def tilted(x: Tensor) -> Tensor:
        return 2 * x[..., :1] + 3 * x[..., :1] ** 2 + x[..., 1:]

    x0 = as_tensor(initial.points)
    np.testing.assert_allclose(
        values(initial, tilted).numpy(),
        (2 * x0[:, :1] + 3 * x0[:, :1] ** 2 + torch.sin(torch.pi * x0[:, :1])).numpy(),
        rtol=1e-12,
    )
    assert values(periodic, tilted).flatten().tolist() == pytest.approx([4.0] * 9)
    assert values(slope, tilted).flatten().tolist() == pytest.approx([12.0] * 9)


def test_points_cover_the_domain_and_depend_on_the_seed_and_number_alone() -> None:
    problem, more = small(), small(points=20_000, side_points=20_000)
    for few, many in zip(problem.blocks, more.blocks, strict=True):
        assert bool((as_tensor(few.points) == as_tensor(many.points)[: few.n_points]).all())
    x = as_tensor(more.blocks[0].points)
    assert x.min(0).values.tolist() == pytest.approx([-1, 0], abs=1e-3)
    assert x.max(0).values.tolist() == pytest.approx([1, 1], abs=1e-3)
    scaled = (x - more.model.mean) / more.model.std
    assert scaled.mean(0).tolist() == pytest.approx([0, 0], abs=0.02)
    assert scaled.std(0).tolist() == pytest.approx([1, 1], abs=0.02)
    assert bool((as_tensor(more.blocks[1].points)[:, 1] == 0).all())
    assert bool((as_tensor(more.blocks[2].points)[:, 0] == 1).all())
    assert [b.weight for b in small(weight=7.0).blocks] == [1, 7, 7, 7]


def test_error_grid_holds_the_solution_at_the_published_points() -> None:
    evaluation = small().evaluation
    assert evaluation is not None
    (grid,), reference = evaluation.take(slice(None))

    assert (len(grid), reference.shape) == (257 * 101, (257 * 101, 1))
    assert [len(set(grid[:, axis].tolist())) for axis in (0, 1)] == [257, 101]
    at = 200 * 101 + 77
    x, t = -1 + 200 / 128, 0.77
    assert grid[at].tolist() == pytest.approx([x, t])
    expected = burgers_wave(np.array([x]), np.array([t]), 0.01 / np.pi)[0]
    assert reference[at].item() == pytest.approx(expected, rel=1e-12)


def test_sizes_are_those_of_the_publication() -> None:
    def parameters(**sizes: int) -> int:
        model = training_task(TrainingSettings(steps=1), points=1, side_points=1, **sizes).model
        return sum(p.numel() for p in model.parameters())

    assert (parameters(), parameters(width=32, depth=4)) == (83_073, 3_297)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("points", 0), ("side_points", 0), ("weight", -1.0), ("width", 0), ("depth", 0), ("seed", 2**64)],
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

    for block, first in zip(few.blocks, few.resample(0), strict=True):
        for mine, theirs in zip(block.take(np.arange(9)), first.take(np.arange(9)), strict=True):
            assert bool((mine == theirs).all())
    later = few.resample(7)
    for block, other in zip(few.blocks, later, strict=True):
        index = np.arange(block.n_points)
        (mine, *_), (theirs, *_) = block.take(index), other.take(index)
        varying = 0 if block.name in {"pde", "initial"} else 1
        assert not set(mine[:, varying].tolist()) & set(theirs[:, varying].tolist())
        assert block.weight == other.weight
    x = as_tensor(many.resample(7)[0].points)
    assert bool((x[:40] == as_tensor(later[0].points)).all())
    assert bool((x.mean(0) - torch.tensor([0.0, 0.5])).abs().max() < 0.02)
    _, initial, periodic, slope = later
    assert values(initial, exact).abs().max() < 1e-14
    for side in (periodic, slope):
        assert bool((as_tensor(side.points) == as_tensor(periodic.points)).all())
        right, left = side.take(np.arange(9))
        assert bool(((right[:, 0] == 1) & (left[:, 0] == -1) & (right[:, 1] == left[:, 1])).all())


def test_alignment_points_are_denser_and_reach_all_sides() -> None:
    points = as_tensor(small(points=40, side_points=9).alignment_points)

    assert points.shape == (2 * 40 + 4 * 9, 2)
    assert bool((points[:80].abs() < 1).all())
    assert points[80:98, 0].tolist() == [-1.0] * 9 + [1.0] * 9
    assert points[98:, 1].tolist() == [0.0] * 9 + [1.0] * 9
    assert not set(points[:80, 0].tolist()) & set(as_tensor(small().blocks[0].points)[:, 0].tolist())
