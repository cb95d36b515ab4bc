"""The inverse heat problem: its source, its noisy measurements, what is validated and judged, arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsr_hpc.derivatives import along
from lsr_hpc.models import MLP
from lsr_hpc.problem import Problem, ResidualBlock, as_tensor
from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.problems.heat_inverse import build, conduction, exact, source, training_task
from lsr_hpc.settings import TrainingSettings


def small(**changes: Any) -> Problem:
    arguments = {"width": 6, "depth": 2, "points": 40, "side_points": 5, "measurements": 50} | changes
    widths = [3] + [arguments["width"]] * arguments["depth"] + [2]
    return build(MLP(widths).state_dict(), **arguments)


def values(block: ResidualBlock, u: Any) -> Tensor:
    return block.residual(u, *block.take(np.arange(block.n_points)))


def random_points(n: int) -> Tensor:
    unit = torch.rand(n, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return unit * torch.tensor([2.0, 2.0, 1.0]) - torch.tensor([1.0, 1.0, 0.0])


def test_source_is_what_the_equation_leaves_of_the_solution() -> None:
    """div(a grad u) by differentiating the fluxes, not by the product rule that the residual uses."""
    x = random_points(200)

    def flux(axis: int, z: Tensor) -> Tensor:
        return exact(z)[:, 1:] * along(exact, z, axis)[:, :1]

    divergence = sum(along(lambda z, axis=axis: flux(axis, z), x, axis) for axis in (0, 1))  # type: ignore[misc]
    expected = along(exact, x, 2)[:, :1] - divergence
    np.testing.assert_allclose(source(x).numpy(), expected.numpy(), atol=2e-13)
    assert conduction(exact, x, source(x)).abs().max() < 2e-13
    wrong = conduction(lambda z: exact(z) * torch.tensor([1.0, 1.1]), x, source(x))
    assert wrong.abs().max() > 1


def test_solution_has_the_published_fields() -> None:
    x = torch.tensor([[0.5, 0.5, 0.0], [-0.5, 0.5, 1.0], [1.0, 0.3, 0.2]], dtype=torch.float64)
    u, a = exact(x).T
    assert u.tolist() == pytest.approx([1, -np.exp(-1), 0], abs=1e-15)
    assert a.tolist() == pytest.approx([3, 1, 2])


def test_measurements_have_the_noise_asked_for_and_a_fifth_is_for_validation() -> None:
    quiet, noisy = small(measurements=5000), small(measurements=5000, noise=0.3)
    for problem, deviation in ((quiet, 0.0), (noisy, 0.3)):
        _, fit, faces = problem.blocks
        [held] = problem.validation
        assert (fit.n_points, held.n_points) == (4000, 1000)
        errors = torch.cat([-values(fit, exact), -values(held, exact)])
        assert errors.std().item() == pytest.approx(deviation, rel=0.03, abs=1e-14)
        assert errors.mean().item() == pytest.approx(0, abs=4 * deviation / np.sqrt(5000) + 1e-14)
        assert values(faces, exact).abs().max() < 1e-14
        assert values(problem.blocks[0], exact).abs().max() < 2e-13
    assert bool((as_tensor(quiet.blocks[1].points) == as_tensor(noisy.blocks[1].points)).all())


def test_data_blocks_look_at_their_own_output() -> None:
    _, fit, faces = small().blocks

    def field(x: Tensor) -> Tensor:
        return exact(x) + torch.tensor([10.0, 100.0])

    assert values(fit, field).flatten().tolist() == pytest.approx([10.0] * 40)
    assert values(faces, field).flatten().tolist() == pytest.approx([100.0] * 20)


def test_points_lie_where_they_should() -> None:
    pde, _, faces = small(points=40, side_points=5).blocks
    x, on = as_tensor(pde.points), as_tensor(faces.points)

    assert (len(x), len(on)) == (40 + 20 + 20, 20)
    assert bool((x[40:60] == on).all())
    assert bool((x[60:, 2] == 0).all())
    assert on[:, 0].tolist()[:5] + on[:, 0].tolist()[10:15] == [-1.0] * 5 + [1.0] * 5
    assert on[:, 1].tolist()[5:10] + on[:, 1].tolist()[15:] == [-1.0] * 5 + [1.0] * 5
    assert bool((x[:, :2].abs() <= 1).all())
    assert bool(((x[:, 2] >= 0) & (x[:, 2] <= 1)).all())


def test_error_is_that_of_the_conductivity_alone() -> None:
    evaluation = small().evaluation
    assert evaluation is not None
    (x,), a = evaluation.take(slice(None))

    assert a.shape == (8192, 1)
    np.testing.assert_allclose(a.numpy(), 2 + np.sin(np.pi * x[:, :2].numpy()).prod(1, keepdims=True))
    field = torch.cat([torch.full_like(a, 7), a + 1], dim=1)
    assert bool(((evaluation.judged(field) - a - 1).abs() < 1e-14).all())


def test_size_is_that_of_the_publication() -> None:
    model = training_task(TrainingSettings(steps=1), points=1, side_points=1).model
    assert sum(p.numel() for p in model.parameters()) == 41_002


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("points", 0),
        ("side_points", 0),
        ("measurements", 5),
        ("noise", -0.1),
        ("data_weight", -1.0),
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
