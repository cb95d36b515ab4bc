"""The data-driven Burgers operator: reference against Cole-Hopf, functions held out whole, training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lsr_hpc.jacobian.examine import NotFactored
from lsr_hpc.models import FNO, DeepONet, MultiONet
from lsr_hpc.precision import module_in_precision
from lsr_hpc.prepare import prepare
from lsr_hpc.problem import Problem
from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.problems.data_burgers import GRID, VISCOSITY, build, initial_values, solutions, training_task
from lsr_hpc.settings import RefineSettings, SubspaceSettings, TrainingSettings
from lsr_hpc.training import train

UNSEEN = range(100_000, 100_003)
SIZES: dict[str, Any] = {
    "functions": 5,
    "points": 4,
    "held_out_functions": 3,
    "test_functions": 2,
    "width": 6,
    "depth": 2,
}
NETWORKS = {
    "deeponet": lambda: DeepONet([64, 6, 6], [1, 6, 6]),
    "multionet": lambda: MultiONet(64, 1, 6, 2),
    "fno": lambda: FNO(6, 16, 2, 12),
}


def small(model: str = "multionet", **changes: Any) -> Problem:
    torch.manual_seed(0)
    return build(NETWORKS[model]().state_dict(), model=model, **(SIZES | changes))


def cole_hopf(initial: NDArray[np.float64], t: float, n: int = 2048) -> NDArray[np.float64]:
    """u from the heat equation for exp(-potential / (2 nu)), each wave of which decays on its own."""
    # The potential of mean-free initial values is periodic; as waves it is exact.
    k = np.pi * np.arange(n // 2 + 1)
    waves = np.fft.rfft(initial)
    waves[1:] /= 1j * k[1:]
    waves[0] = 0
    potential = np.fft.irfft(waves, n)
    heat = np.fft.rfft(np.exp(-potential / (2 * VISCOSITY))) * np.exp(-VISCOSITY * k**2 * t)
    u: NDArray[np.float64] = -2 * VISCOSITY * np.fft.irfft(1j * k * heat, n) / np.fft.irfft(heat, n)
    return u


def test_reference_is_as_accurate_as_it_says() -> None:
    fine = np.linspace(-1, 1, 2048, endpoint=False)
    for number, s in zip(UNSEEN, solutions(UNSEEN, 7), strict=True):
        exact = cole_hopf(initial_values(range(number, number + 1), 7, fine)[0], 1.0)[::32]
        assert np.linalg.norm(s - exact) < 1e-7 * np.linalg.norm(exact)


def test_initial_functions_are_odd_periodic_and_of_the_variance_told() -> None:
    h = initial_values(range(2000), 7, GRID)

    np.testing.assert_allclose(h[:, 1:], -h[:, :0:-1], atol=1e-13)
    np.testing.assert_allclose(h[:, 0], 0, atol=1e-13)
    # The mean square of 2,000 functions scatters by a few percent.
    assert np.mean(h**2) == pytest.approx(0.4**2, rel=0.1)
    np.testing.assert_array_equal(initial_values(range(5, 7), 7, GRID), h[5:7])


@pytest.mark.parametrize("model", NETWORKS)
def test_rows_are_the_solutions_and_no_function_is_in_two_sets(model: str) -> None:
    problem = small(model)
    points = 64 if model == "fno" else 4
    sets = [(problem.blocks[0], range(5), 5), (problem.validation[0], range(50_000, 50_003), 3)]
    for block, numbers, count in sets:
        h, *y, s = block.take(np.arange(block.n_points))
        np.testing.assert_allclose(h.numpy(), initial_values(numbers, 7, GRID), atol=1e-14)
        places = y[0].numpy() if y else np.tile(GRID, (count, 1))
        at = np.searchsorted(GRID, places - 1e-9)
        expected = np.take_along_axis(solutions(numbers, 7), at, axis=1)
        np.testing.assert_allclose(s.numpy(), expected, atol=1e-14)
        # Every function has points everywhere, and not all have the same.
        assert places.shape == (count, points)
        assert np.diff(places, axis=1) == pytest.approx(2 / points)
        assert model == "fno" or len(set(places[:, 0])) > 1
        # The residual is the misfit, function by function.
        u = module_in_precision(problem.model, torch.float64)
        values = block.residual(u, h, *y, s)
        for row in range(count):
            one = u(h[row : row + 1]) if not y else u(h[row].expand(points, -1), y[0][row][:, None])
            torch.testing.assert_close(values[row], one.reshape(-1) - s[row], atol=1e-13, rtol=0)
    assert problem.evaluation is not None
    inputs, reference = problem.evaluation.take(slice(None))
    np.testing.assert_allclose(reference.numpy().reshape(2, 64), solutions(UNSEEN[:2], 7), atol=1e-14)
    assert len({tuple(row.tolist()) for row in inputs[0]}) == 2


@pytest.mark.parametrize("model", NETWORKS)
def test_deeponets_have_a_factored_jacobian(model: str, comm_self: Any) -> None:
    settings = RefineSettings(subspace=SubspaceSettings(rank=4))
    prepared = prepare(small(model), comm_self, settings)

    assert prepared.fit_rows.n_rows == (5 * 64 if model == "fno" else 5 * 4)
    assert prepared.held_rows.n_rows == (3 * 64 if model == "fno" else 3 * 4)
    assert isinstance(prepared.structures, NotFactored) == (model == "fno")


@pytest.mark.parametrize("model", NETWORKS)
def test_training_lowers_the_error_and_fits_the_problem(model: str) -> None:
    settings = TrainingSettings(steps=30, batch_size=8, learning_rate=3e-3)
    task = training_task(settings, model=model, functions=16, width=6, depth=2, test_functions=4)
    before = task.error()
    after = train(task, settings, lambda line: None)["error"]

    assert after < before
    build(task.model.state_dict(), model=model, **SIZES)


def test_training_error_is_the_mean_over_functions() -> None:
    task = training_task(TrainingSettings(steps=1), functions=2, width=6, depth=2, test_functions=3)
    assert isinstance(task.model, MultiONet)
    model = task.model.double()
    h, s = (torch.from_numpy(a) for a in (initial_values(UNSEEN, 7, GRID), solutions(UNSEEN, 7)))
    y = torch.from_numpy(GRID)[:, None]
    with torch.no_grad():
        misfits = torch.stack([model(row.expand(64, -1), y)[:, 0] for row in h]) - s
    expected = float((misfits.norm(dim=1) / s.norm(dim=1)).mean())

    model.float()
    assert task.error() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("model", "mlp"),
        ("points", 5),
        ("points", 0),
        ("functions", 60_000),
        ("test_functions", 0),
        ("width", 0),
    ],
)
def test_impossible_arguments_are_refused(argument: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=argument):
        build({}, **(SIZES | {argument: value}))
