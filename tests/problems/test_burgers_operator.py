"""The Burgers operator: initial functions, reference, residuals, instances, training loss, arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lsr_hpc.derivatives import along
from lsr_hpc.models import DeepONet
from lsr_hpc.problem import Problem, ProblemFamily, ResidualBlock, as_tensor
from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.problems.burgers_operator import (
    INITIAL_WEIGHT,
    VISCOSITY,
    advection,
    build,
    initial_values,
    reference,
    training_task,
)
from lsr_hpc.problems.burgers_reference import burgers_spectrum
from lsr_hpc.sampling import uniform_rows
from lsr_hpc.settings import TrainingSettings

UNSEEN = range(100_000, 100_004)


def network() -> DeepONet:
    torch.manual_seed(0)
    return DeepONet([101, 6, 6, 6], [2, 6, 6, 6], modified=True)


def small(**changes: int) -> ProblemFamily:
    arguments = {"instances": 2, "points": 30, "side_points": 8, "width": 6, "depth": 3} | changes
    return build(network().state_dict(), **arguments)


def values(block: ResidualBlock, u: object) -> Tensor:
    return block.residual(u, *block.take(np.arange(block.n_points)))


def test_initial_functions_have_the_covariance_of_the_published_process() -> None:
    x = np.array([0.0, 0.1, 0.35, 0.5, 1.0])
    a = initial_values(range(20_000), 3, x)
    # Mercer sum of 2 s_j^2 / 2 cos(2 pi j d).
    j = 2 * np.pi * np.arange(1, 200)
    d = x[:, None] - x[None, :]
    expected = np.tensordot(2 * (25 / (j**2 + 25)) ** 4, np.cos(j[:, None, None] * d), axes=1)

    assert np.abs(a.T @ a / len(a) - expected).max() < 4 * expected[0, 0] * np.sqrt(2 / len(a))
    assert np.sqrt(expected[0, 0]) == pytest.approx(0.2143, abs=1e-4)
    np.testing.assert_allclose(a[:, 0], a[:, -1], atol=1e-13)


def test_function_of_a_number_is_the_same_in_any_range() -> None:
    x = np.linspace(0, 1, 7)
    some, all_of_them = initial_values(range(5, 9), 7, x), initial_values(range(9), 7, x)
    np.testing.assert_allclose(some, all_of_them[5:], atol=1e-15)
    assert not np.allclose(initial_values(range(1), 7, x), initial_values(range(1), 8, x), atol=1e-2)


def test_reference_is_as_accurate_as_it_says() -> None:
    fine = reference(UNSEEN, 7, n_grid=512, steps=2000)
    difference = reference(UNSEEN, 7) - fine

    assert fine.shape == (4, 101, 101)
    assert np.linalg.norm(difference) < 5e-10 * np.linalg.norm(fine)


def solution(number: int, y: Tensor) -> Tensor:
    """The wave sum of one solution on a time slice, differentiable in x; t only picks the slice."""
    initial = initial_values(range(number, number + 1), 7, np.arange(256) / 256)
    waves = burgers_spectrum(initial, viscosity=VISCOSITY, length=1.0, snapshots=1001, steps=4000)[0]
    slices = torch.from_numpy(waves)[torch.round(1000 * y[:, 0]).long()][:, :-1]
    k = 2 * torch.pi * torch.arange(128, dtype=torch.float64)
    phase = y[:, 1:] * k
    weights = torch.where(k == 0, 1.0, 2.0)
    return (weights * (slices.real * torch.cos(phase) - slices.imag * torch.sin(phase))).sum(1, keepdim=True)


def test_reference_solution_satisfies_the_equation() -> None:
    """With u_t by central differences of sixth order between time slices."""
    number = 100_001
    y = torch.rand(60, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y[:, 0] = torch.round(1000 * (0.05 + 0.9 * y[:, 0])) / 1000

    def at(shift: int) -> Tensor:
        return solution(number, y + torch.tensor([shift / 1000, 0.0]))

    u_t = 1000 * (45 * (at(1) - at(-1)) - 9 * (at(2) - at(-2)) + (at(3) - at(-3))) / 60
    steady = advection(lambda y: solution(number, y), y)
    assert steady.abs().max() > 1e-2
    assert (u_t + steady).abs().max() < 1e-11


def test_instances_carry_their_own_function_points_and_solution() -> None:
    family = small()
    problems = [family.instance(i) for i in range(2)]
    grid = np.linspace(0, 1, 101)
    a = initial_values(UNSEEN, 7, grid)
    truth = reference(UNSEEN, 7)

    for i, problem in enumerate(problems):
        initial, periodic, slope, _ = problem.blocks
        assert [b.weight for b in problem.blocks] == [INITIAL_WEIGHT, 1, 1, 1]
        assert [b.n_points for b in problem.blocks] == [101, 8, 8, 30]
        np.testing.assert_array_equal(as_tensor(initial.points).numpy(), np.stack([0 * grid, grid], axis=1))
        np.testing.assert_allclose(as_tensor(initial.data[0])[:, 0].numpy(), a[i], atol=1e-14)
        assert problem.evaluation is not None
        (y,), u = problem.evaluation.take(slice(None))
        at = 30 * 101 + 62
        assert y[at].tolist() == pytest.approx([0.30, 0.62])
        assert u[at].item() == pytest.approx(truth[i, 30, 62], abs=1e-14)
        # At t = 0 the reference is the initial function, and the residual of the initial values sees that.
        np.testing.assert_allclose(u[:101, 0].numpy(), a[i], atol=1e-10)
        assert values(initial, lambda y: torch.zeros(len(y), 1)).flatten().numpy() == pytest.approx(-a[i])
        for block in (periodic, slope):
            right, left = block.take(np.arange(8))
            assert bool((right[:, 0] == left[:, 0]).all())
            assert right[:, 1].tolist() == [1.0] * 8
            assert left[:, 1].tolist() == [0.0] * 8
    both = [as_tensor(p.blocks[3].points) for p in problems]
    assert not bool((both[0] == both[1]).any())


def test_residuals_see_each_term() -> None:
    """u = x^2 t + x: the residual by hand; u and u_x jump by t + 1 and 2 t."""
    _, periodic, slope, pde = small().instance(0).blocks

    def u(y: Tensor) -> Tensor:
        return y[..., 1:] ** 2 * y[..., :1] + y[..., 1:]

    y = as_tensor(pde.points)
    t, x = y[:, :1], y[:, 1:]
    by_hand = x**2 + (x**2 * t + x) * (2 * x * t + 1) - 0.01 * 2 * t
    np.testing.assert_allclose(values(pde, u).numpy(), by_hand.numpy(), rtol=1e-12)
    times = as_tensor(periodic.points)[:, :1]
    np.testing.assert_allclose(values(periodic, u).numpy(), (times + 1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(values(slope, u).numpy(), (2 * times).numpy(), rtol=1e-12)


def test_training_minimises_the_loss_of_the_residual_blocks() -> None:
    """The batched loss of one step against residual blocks evaluated function by function."""
    settings = TrainingSettings(steps=1)
    sizes = {"points": 20, "side_points": 6, "width": 6, "depth": 3}
    task = training_task(settings, functions=5, test_functions=1, **sizes)
    task.model.load_state_dict(network().state_dict())
    loss = task.loss(torch.Generator()).item()

    # Streams of points of their own: the training sees none of those that the refinement fits.
    y, t = (torch.from_numpy(uniform_rows(7, 64 + k, 0, n, 2 - k)) for k, n in enumerate((20, 6)))
    sensors = np.linspace(0, 1, 101)
    a = torch.from_numpy(initial_values(range(5), 7, sensors))
    operator = network().double()
    right, left = (torch.cat([t, torch.full_like(t, side)], dim=1) for side in (1.0, 0.0))
    start = torch.from_numpy(np.stack([0 * sensors, sensors], axis=1))
    expected = 0.0
    for h in a:

        def u(y: Tensor, h: Tensor = h) -> Tensor:
            return operator(h[None], y)

        squares = [
            20 * (u(start)[:, 0] - h).square().mean(),
            advection(u, y).square().mean(),
            (u(right) - u(left)).square().mean(),
            (along(u, right, 1) - along(u, left, 1)).square().mean(),
        ]
        expected += sum(s.item() for s in squares) / 5
    assert loss == pytest.approx(expected, rel=1e-12)


def test_reported_error_is_the_mean_over_unseen_functions() -> None:
    task = training_task(TrainingSettings(steps=1), functions=2, width=6, depth=3, test_functions=3)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.zero_()
    assert task.error() == pytest.approx(1.0)


def test_size_is_that_of_the_small_published_networks() -> None:
    model = training_task(TrainingSettings(steps=1), functions=1, test_functions=1).model
    assert isinstance(model, DeepONet)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.branch, model.trunk)]
    assert counts == [22_950, 8_100]


@pytest.mark.parametrize(
    ("argument", "value"),
    [("instances", 0), ("points", 0), ("side_points", 0), ("width", 0), ("depth", 1), ("seed", -1)],
)
def test_argument_that_cannot_be_is_refused_by_name(argument: str, value: int) -> None:
    with pytest.raises(ArgumentError, match=argument):
        build({}, **{argument: value})
    if argument != "instances":
        with pytest.raises(ArgumentError, match=argument):
            training_task(TrainingSettings(steps=1), **{argument: value})


def test_weights_of_another_size_and_too_large_batches_are_refused() -> None:
    with pytest.raises(ArgumentError, match="do not fit width = 7, depth = 3"):
        small(width=7)
    with pytest.raises(ArgumentError, match="batch_size"):
        training_task(TrainingSettings(steps=1, batch_size=6), functions=5)


def test_instance_is_a_problem_of_the_bound_network() -> None:
    problem = small().instance(1)
    assert isinstance(problem, Problem)
    y = torch.rand(4, 2)
    h = torch.from_numpy(initial_values(range(100_001, 100_002), 7, np.linspace(0, 1, 101))).float()
    np.testing.assert_allclose(
        problem.model.float()(y).detach().numpy(), network()(h, y).detach().numpy(), atol=1e-6
    )
