"""Problems in two variables on a box: exact solutions have no residual, points, sizes, arguments."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsr_hpc.models import MLP
from lsr_hpc.problem import Problem, ResidualBlock, as_tensor
from lsr_hpc.problems import convection, helmholtz, reaction, wave
from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.problems.physics_informed import Box, Draws
from lsr_hpc.settings import TrainingSettings

PROBLEMS = [convection, helmholtz, reaction, wave]
every_problem = pytest.mark.parametrize("module", PROBLEMS, ids=lambda m: m.__name__.rpartition(".")[2])


def small(module: ModuleType, **changes: Any) -> Problem:
    arguments = {"width": 6, "depth": 2, "points": 40, "side_points": 9} | changes
    widths = [2] + [arguments["width"]] * arguments["depth"] + [1]
    # The scaling is a buffer, and with it part of the state: that of the problem's own untrained network.
    sizes = {k: v for k, v in arguments.items() if k in {"width", "depth", "stretch"}}
    task = module.training_task(TrainingSettings(steps=1), points=1, side_points=1, **sizes)
    assert MLP(widths).state_dict().keys() == task.model.state_dict().keys()
    return module.build(task.model.state_dict(), **arguments)


def values(block: ResidualBlock, u: Any) -> Tensor:
    return block.residual(u, *block.take(np.arange(block.n_points)))


@every_problem
def test_exact_solution_has_no_residual(module: ModuleType) -> None:
    for block in small(module, points=400, side_points=50).blocks:
        # Second derivatives reach 500.
        assert values(block, module.exact).abs().max() < 2e-12, block.name


@every_problem
def test_every_block_sees_a_field_that_is_no_solution(module: ModuleType) -> None:
    def tilted(x: Tensor) -> Tensor:
        return module.exact(x) + 0.1 * x[..., :1] ** 2 + 0.3 * x[..., :1] + 0.2 * x[..., 1:] + 0.4

    for block in small(module).blocks:
        assert values(block, tilted).abs().median() > 0.05, block.name


def polynomial(x: Tensor) -> Tensor:
    """u = x^2 t + x t^2, for residuals by hand."""
    return x[..., :1] ** 2 * x[..., 1:] + x[..., :1] * x[..., 1:] ** 2


@pytest.mark.parametrize(
    ("residual", "by_hand"),
    [
        (convection.transport, lambda x, t: x**2 + 2 * x * t + 40 * (2 * x * t + t**2)),
        (
            reaction.growth,
            lambda x, t: x**2 + 2 * x * t - 5 * (x**2 * t + x * t**2) * (1 - x**2 * t - x * t**2),
        ),
        (wave.wave, lambda x, t: 2 * x - 4 * 2 * t),
        (
            lambda u, x: helmholtz.helmholtz(u, x, x[:, :1]),
            lambda x, y: 2 * x + 2 * y + x**2 * y + x * y**2 - x,
        ),
    ],
    ids=["convection", "reaction", "wave", "helmholtz"],
)
def test_residual_has_the_coefficients_of_the_publication(residual: Any, by_hand: Any) -> None:
    x = torch.rand(30, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = by_hand(x[:, :1], x[:, 1:])
    np.testing.assert_allclose(residual(polynomial, x).numpy(), expected.numpy(), atol=1e-12)


def test_solutions_start_as_published() -> None:
    x = torch.linspace(0, 1, 11, dtype=torch.float64)[:, None]
    start = torch.cat([x, torch.zeros_like(x)], dim=1)
    stretched = torch.cat([2 * math.pi * x, torch.zeros_like(x)], dim=1)
    p = 2 * math.pi * x
    np.testing.assert_allclose(convection.exact(stretched), torch.sin(p), atol=1e-14)
    np.testing.assert_allclose(
        reaction.exact(stretched), torch.exp(-((p - math.pi) ** 2) / (2 * (math.pi / 4) ** 2)), atol=1e-14
    )
    expected = torch.sin(math.pi * x) + 0.5 * torch.sin(5 * math.pi * x)
    np.testing.assert_allclose(wave.exact(start), expected, atol=1e-14)
    middle = torch.tensor([[0.5, 0.125]], dtype=torch.float64)
    assert helmholtz.exact(middle).item() == pytest.approx(1)


@every_problem
def test_error_grid_covers_the_domain_and_holds_the_solution(module: ModuleType) -> None:
    problem = small(module)
    assert problem.evaluation is not None
    (grid,), reference = problem.evaluation.take(slice(None))

    first, second = (257, 257) if module is helmholtz else (129, 101)
    assert (len(grid), reference.shape) == (first * second, (first * second, 1))
    assert [len(set(grid[:, axis].tolist())) for axis in (0, 1)] == [first, second]
    np.testing.assert_allclose(reference, module.exact(grid), atol=1e-15)
    inside = as_tensor(small(module, points=20_000).blocks[0].points)
    assert inside.min(0).values.tolist() == pytest.approx(grid.min(0).values.tolist(), abs=2e-3)
    assert inside.max(0).values.tolist() == pytest.approx(grid.max(0).values.tolist(), abs=2e-3)


@every_problem
def test_inputs_are_z_scored_and_stretched(module: ModuleType) -> None:
    problem = small(module, points=20_000, stretch=3.0)
    x = as_tensor(problem.blocks[0].points)
    scaled = (x - problem.model.mean) / problem.model.std
    assert scaled.mean(0).tolist() == pytest.approx([0, 0], abs=0.05)
    assert scaled.std(0).tolist() == pytest.approx([3, 3], abs=0.05)


@every_problem
def test_every_round_has_points_of_its_own_by_seed_round_and_global_number_alone(module: ModuleType) -> None:
    few, many = small(module, points=40), small(module, points=5000)
    assert few.resample is not None
    assert many.resample is not None
    for block, first in zip(few.blocks, few.resample(0), strict=True):
        assert bool((as_tensor(block.points) == as_tensor(first.points)).all())
    assert bool((as_tensor(many.resample(3)[0].points)[:40] == as_tensor(few.resample(3)[0].points)).all())
    for block, later in zip(few.blocks, few.resample(3), strict=True):
        for axis in (0, 1):
            mine, theirs = (set(as_tensor(b.points)[:, axis].tolist()) for b in (block, later))
            assert len(mine & theirs) <= 2
        assert values(later, module.exact).abs().max() < 2e-12
    points = as_tensor(few.alignment_points)
    assert points.shape == (2 * 40 + 4 * 9, 2)
    assert not set(points[:80, 0].tolist()) & set(as_tensor(few.blocks[0].points)[:, 0].tolist())


def test_boundary_points_lie_on_the_four_sides_in_order() -> None:
    x = Draws(Box((-1.0, 2.0), (3.0, 5.0)), seed=4, stream=999).boundary(1, 6)

    assert x[:6, 0].tolist() == [-1.0] * 6
    assert x[6:12, 0].tolist() == [3.0] * 6
    assert x[12:18, 1].tolist() == [2.0] * 6
    assert x[18:, 1].tolist() == [5.0] * 6
    assert len(set(x[:12, 1].tolist()) | set(x[12:, 0].tolist())) == 24
    assert bool(((x[:12, 1] > 2) & (x[:12, 1] < 5)).all())
    assert bool(((x[12:, 0] > -1) & (x[12:, 0] < 3)).all())


def test_network_has_the_size_of_the_publication() -> None:
    sizes = {"width": 200, "depth": 3, "points": 1, "side_points": 1}
    model = wave.training_task(TrainingSettings(steps=1), **sizes).model
    assert sum(p.numel() for p in model.parameters()) == 81_201


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("points", 0),
        ("side_points", 0),
        ("weight", -1.0),
        ("width", 0),
        ("depth", 0),
        ("stretch", 0.0),
        ("seed", 2**64),
    ],
)
def test_argument_that_cannot_be_is_refused_by_name(argument: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=argument):
        wave.build({}, **{argument: value})
    with pytest.raises(ArgumentError, match=argument):
        wave.training_task(TrainingSettings(steps=1), **{argument: value})
