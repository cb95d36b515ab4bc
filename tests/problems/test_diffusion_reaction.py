"""The diffusion-reaction operator: reference against another method, residuals, instances, training loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.sparse import diags
from torch import Tensor

from lsr_hpc.models import DeepONet
from lsr_hpc.problem import ProblemFamily, ResidualBlock, as_tensor
from lsr_hpc.problems import advection
from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.problems.diffusion_reaction import balance, build, reference, training_task
from lsr_hpc.problems.gaussian_process import PROCESSES, InputProcess
from lsr_hpc.sampling import uniform_rows
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask

UNSEEN = range(100_000, 100_003)
SENSORS = np.linspace(0, 1, 100)


def network() -> DeepONet:
    torch.manual_seed(0)
    return DeepONet([100, 6, 6, 6], [2, 6, 6, 6])


def small(**changes: object) -> ProblemFamily:
    arguments = {"instances": 2, "points": 30, "side_points": 8, "width": 6, "depth": 3} | changes
    return build(network().state_dict(), **arguments)  # type: ignore[arg-type]


def values(block: ResidualBlock, u: object) -> Tensor:
    return block.residual(u, *block.take(np.arange(block.n_points)))


@pytest.mark.parametrize("forcing", PROCESSES)
def test_reference_is_as_accurate_as_it_says(forcing: str) -> None:
    process = PROCESSES[forcing](UNSEEN, 7)
    u, fine = reference(process), reference(process, n_grid=4096, steps=400)

    assert u.shape == (3, 101, 101)
    for mine, finer in zip(u, fine, strict=True):
        assert np.linalg.norm(mine - finer) < 1e-10 * np.linalg.norm(finer)
    assert np.abs(u[:, :, [0, -1]]).max() < 1e-12


def finite_differences(process: InputProcess, n: int, times: list[float]) -> np.ndarray:
    """Method of lines with second differences, at tenths of x; Radau in time."""
    x = np.linspace(0, 1, n + 1)[1:-1]
    h = process.at(x)[0]
    laplacian = diags([n**2, -2 * n**2, n**2], [-1, 0, 1], shape=(n - 1, n - 1), format="csc")
    solved = solve_ivp(
        lambda t, u: 0.01 * (laplacian @ u) + 0.01 * u**2 + h,
        (0, 1),
        np.zeros(n - 1),
        method="Radau",
        t_eval=times,
        rtol=1e-9,
        atol=1e-11,
        jac=lambda t, u: 0.01 * laplacian + diags(0.02 * u, format="csc"),
    )
    return solved.y[n // 10 - 1 :: n // 10].T


def test_reference_agrees_with_finite_differences() -> None:
    """Extrapolated to step 0; with smooth functions, so that their error falls as the step squared."""
    process = PROCESSES["spectral"](range(100_001, 100_002), 7)
    times = [0.2, 0.5, 1.0]
    coarse, fine = (finite_differences(process, n, times) for n in (200, 400))
    u = reference(process)[0][[20, 50, 100]][:, 10:100:10]

    assert np.abs(fine - u).max() > 1e-7
    assert np.abs((4 * fine - coarse) / 3 - u).max() < 1e-7 * np.abs(u).max()


def test_residuals_see_each_term() -> None:
    """u = x^2 t + x: the residual by hand."""
    sides, pde = small().instance(1).blocks

    def u(y: Tensor) -> Tensor:
        return y[..., 1:] ** 2 * y[..., :1] + y[..., 1:]

    y, h = pde.take(np.arange(30))
    t, x = y[:, :1], y[:, 1:]
    by_hand = x**2 - 0.01 * 2 * t - 0.01 * (x**2 * t + x) ** 2 - h
    np.testing.assert_allclose(values(pde, u).numpy(), by_hand.numpy(), rtol=1e-12)
    np.testing.assert_allclose(values(sides, u).numpy(), u(as_tensor(sides.points)).numpy(), rtol=1e-14)


def test_instances_carry_their_own_function_points_and_solution() -> None:
    family = small()
    truth = reference(PROCESSES["interpolated"](UNSEEN, 7))
    for i in range(2):
        problem = family.instance(i)
        process = PROCESSES["interpolated"](UNSEEN[i : i + 1], 7)
        sides, pde = problem.blocks
        assert (sides.n_points, pde.n_points) == (24, 30)
        y, h = pde.take(np.arange(30))
        np.testing.assert_allclose(h[:, 0].numpy(), process.at(y[:, 1].numpy())[0], atol=1e-14)
        np.testing.assert_allclose(problem.model.h.numpy(), process.at(SENSORS)[0], atol=1e-14)  # type: ignore[union-attr, operator]
        on = as_tensor(sides.points)
        assert bool((on[:8, 0] == 0).all())
        assert bool((on[8:16, 1] == 0).all())
        assert bool((on[16:, 1] == 1).all())
        assert len(set(on[:8, 1].tolist()) | set(on[8:, 0].tolist())) == 24
        assert problem.evaluation is not None
        (grid,), u = problem.evaluation.take(slice(None))
        assert grid[30 * 101 + 62].tolist() == pytest.approx([0.30, 0.62])
        np.testing.assert_allclose(u.reshape(101, 101).numpy(), truth[i], atol=1e-13)
    both = [as_tensor(family.instance(i).blocks[1].points) for i in range(2)]
    assert not bool((both[0] == both[1]).any())


def test_training_minimises_the_loss_of_the_residual_blocks() -> None:
    settings = TrainingSettings(steps=1)
    sizes = {"points": 20, "side_points": 6, "width": 6, "depth": 3}
    task = training_task(settings, functions=5, test_functions=1, **sizes)
    task.model.load_state_dict(network().state_dict())
    loss = task.loss(torch.Generator()).item()

    operator = network().double()
    # Streams of points of their own: the training sees none of those that the refinement fits.

    y = torch.from_numpy(uniform_rows(7, 123, 0, 20, 2))
    share = torch.from_numpy(uniform_rows(7, 124, 0, 18, 1))[:, 0]
    sides = torch.zeros(18, 2, dtype=torch.float64)
    sides[:6, 1], sides[6:, 0] = share[:6], share[6:]
    sides[12:, 1] = 1
    expected = 0.0
    for i in range(5):
        process = PROCESSES["interpolated"](range(i, i + 1), 7)
        h = torch.from_numpy(process.at(SENSORS))

        def u(y: Tensor, h: Tensor = h) -> Tensor:
            return operator(h, y)

        source = torch.from_numpy(process.at(y[:, 1].numpy())[0])[:, None]
        squares = [balance(u, y, source).square().mean(), u(sides).square().mean()]
        expected += sum(s.item() for s in squares) / 5
    assert loss == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("instances", 0),
        ("points", 0),
        ("side_points", 0),
        ("width", 0),
        ("depth", 0),
        ("seed", -1),
    ],
)
def test_argument_that_cannot_be_is_refused_by_name(argument: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=argument):
        build({}, **{argument: value})  # type: ignore[arg-type]
    if argument != "instances":
        with pytest.raises(ArgumentError, match=argument):
            training_task(TrainingSettings(steps=1), **{argument: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [training_task, advection.training_task], ids=["plain", "modified"])
def test_stretched_trunks_are_those_of_stretched_points(make: Callable[..., TrainingTask]) -> None:
    """Weights times s behind points y are the unstretched weights behind s (y - 1/2)."""
    sizes = {"functions": 1, "test_functions": 1, "points": 2, "side_points": 2, "width": 6, "depth": 3}
    plain, stretched = (make(TrainingSettings(steps=1), **sizes, stretch=s).model for s in (1.0, 5.0))
    y = torch.rand(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(stretched.trunk(y), plain.trunk(5 * (y - 0.5)), rtol=0, atol=1e-13)
        torch.testing.assert_close(stretched.branch.state_dict(), plain.branch.state_dict(), rtol=0, atol=0)
