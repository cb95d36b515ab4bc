"""The advection operator: characteristics against an ODE solver, residuals, instances, training loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from lsr_hpc.models import DeepONet
from lsr_hpc.problem import ProblemFamily, ResidualBlock, as_tensor
from lsr_hpc.problems.advection import Speeds, build, training_task, transport
from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.sampling import uniform_rows
from lsr_hpc.settings import TrainingSettings

UNSEEN = range(100_000, 100_003)
SENSORS = np.linspace(0, 1, 100)


def network() -> DeepONet:
    torch.manual_seed(0)
    return DeepONet([100, 6, 6, 6], [2, 6, 6, 6], modified=True)


def small(**changes: int) -> ProblemFamily:
    arguments = {"instances": 2, "points": 30, "side_points": 8, "width": 6, "depth": 3} | changes
    return build(network().state_dict(), **arguments)


def values(block: ResidualBlock, u: object) -> Tensor:
    return block.residual(u, *block.take(np.arange(block.n_points)))


def test_speeds_start_at_one() -> None:
    speeds = Speeds(UNSEEN, 7)
    a = speeds.at(np.linspace(0, 1, 5111))

    assert a.min(axis=1).tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    assert speeds.values.min(axis=1).tolist() == [1.0, 1.0, 1.0]
    assert (a.max(axis=1) > 1.5).all()


def test_solution_agrees_with_characteristics_followed_backwards_by_an_ode_solver() -> None:
    speeds = Speeds(UNSEEN, 7)
    draw = np.random.default_rng(0)
    t, x = draw.random(6), draw.random(6)
    u = speeds.solution(t, x)

    def leaves(_: float, state: np.ndarray) -> float:
        return float(state[0])

    leaves.terminal = True  # type: ignore[attr-defined]
    from_sides = set()
    for row in range(3):

        def speed(_: float, state: np.ndarray, row: int = row) -> np.ndarray:
            # A path may overshoot the side by a step.
            return -np.interp(state, speeds.grid, speeds.values[row])

        for j in range(6):
            path = solve_ivp(
                speed, (0, t[j]), [x[j]], events=leaves, rtol=1e-10, atol=1e-12, max_step=1 / 256
            )
            is_left = len(path.t_events[0]) > 0
            from_sides.add(is_left)
            start = np.sin(np.pi * path.y[0, -1])
            expected = np.sin(np.pi * (t[j] - path.t_events[0][0]) / 2) if is_left else start
            # The kinks of the speed cost the solver, which steps over them, its last digits.
            assert u[row, j] == pytest.approx(expected, abs=1e-6)
    assert from_sides == {True, False}


def test_solution_takes_the_given_values_and_satisfies_the_equation() -> None:
    speeds = Speeds(UNSEEN, 7)
    s = np.linspace(0, 1, 301)
    np.testing.assert_allclose(speeds.solution(0 * s, s), np.tile(np.sin(np.pi * s), (3, 1)), atol=1e-13)
    np.testing.assert_allclose(speeds.solution(s, 0 * s), np.tile(np.sin(np.pi * s / 2), (3, 1)), atol=1e-13)

    # Central differences, away from the kink and inside of one piece of the speed.
    t, x, h = np.array([0.2, 0.8]), np.array([0.9, 0.3]), 1e-5
    cell = np.floor(x * 511)
    x = (cell + 0.5) / 511
    u_t = (speeds.solution(t + h, x) - speeds.solution(t - h, x)) / (2 * h)
    u_x = (speeds.solution(t, x + h) - speeds.solution(t, x - h)) / (2 * h)
    assert np.abs(u_t).max() > 0.1
    assert np.abs(u_t + speeds.at(x) * u_x).max() < 1e-5


def test_residuals_see_each_term() -> None:
    """u = x^2 t + x: the residual by hand."""
    sides, pde = small().instance(1).blocks

    def u(y: Tensor) -> Tensor:
        return y[..., 1:] ** 2 * y[..., :1] + y[..., 1:]

    y, a = pde.take(np.arange(30))
    t, x = y[:, :1], y[:, 1:]
    np.testing.assert_allclose(values(pde, u).numpy(), (x**2 + a * (2 * x * t + 1)).numpy(), rtol=1e-12)
    on, given = sides.take(np.arange(16))
    np.testing.assert_allclose(values(sides, u).numpy(), (u(on) - given).numpy(), rtol=1e-12)
    assert bool((on[:8, 0] == 0).all())
    assert bool((on[8:, 1] == 0).all())
    np.testing.assert_allclose(given[:8], torch.sin(torch.pi * on[:8, 1:]), atol=1e-15)
    np.testing.assert_allclose(given[8:], torch.sin(torch.pi * on[8:, :1] / 2), atol=1e-15)


def test_instances_carry_their_own_speed_points_and_solution() -> None:
    family, speeds = small(), Speeds(UNSEEN, 7)
    for i in range(2):
        problem = family.instance(i)
        sides, pde = problem.blocks
        assert (sides.weight, pde.weight) == (100, 1)
        y, a = pde.take(np.arange(30))
        np.testing.assert_allclose(a[:, 0].numpy(), speeds.at(y[:, 1].numpy())[i], atol=1e-14)
        np.testing.assert_allclose(problem.model.h.numpy(), speeds.at(SENSORS)[i], atol=1e-14)  # type: ignore[union-attr, operator]
        assert problem.evaluation is not None
        (grid,), u = problem.evaluation.take(slice(None))
        at = 30 * 101 + 62
        assert grid[at].tolist() == pytest.approx([0.30, 0.62])
        assert u[at].item() == pytest.approx(speeds.solution(np.array([0.30]), np.array([0.62]))[i, 0])
    both = [as_tensor(family.instance(i).blocks[1].points) for i in range(2)]
    assert not bool((both[0] == both[1]).any())


def test_training_minimises_the_loss_of_the_residual_blocks() -> None:
    settings = TrainingSettings(steps=1)
    sizes = {"points": 20, "side_points": 6, "width": 6, "depth": 3}
    task = training_task(settings, functions=5, test_functions=1, **sizes)
    task.model.load_state_dict(network().state_dict())
    loss = task.loss(torch.Generator()).item()

    operator, speeds = network().double(), Speeds(range(5), 7)
    # Streams of points of their own: the training sees none of those that the refinement fits.
    y = torch.from_numpy(uniform_rows(7, 153, 0, 20, 2))
    share = torch.from_numpy(uniform_rows(7, 154, 0, 12, 1))
    start = torch.cat([torch.zeros(6, 1), share[:6]], dim=1)
    inflow = torch.cat([share[6:], torch.zeros(6, 1)], dim=1)
    expected = 0.0
    for i in range(5):
        h = torch.from_numpy(speeds.at(SENSORS)[i : i + 1])

        def u(y: Tensor, h: Tensor = h) -> Tensor:
            return operator(h, y)

        a = torch.from_numpy(speeds.at(y[:, 1].numpy())[i])[:, None]
        jumps = torch.cat([
            u(start) - torch.sin(torch.pi * start[:, 1:]),
            u(inflow) - torch.sin(torch.pi * inflow[:, :1] / 2),
        ])
        expected += (transport(u, y, a).square().mean() + 100 * jumps.square().mean()).item() / 5
    assert loss == pytest.approx(expected, rel=1e-12)


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
