"""Operator u(., 0) -> u(., 1) of viscous Burgers, learned from solutions: DeepONet, MultiONet or FNO.

u_t + u u_x = (0.1 / pi) u_xx on [-1, 1], periodic, from random smooth odd initial functions. The residual is
the misfit at the data, without any equation. Source: arXiv:2601.13989 (data-driven operators), there with
networks of width 128; its distribution of initial functions is not documented, the one here is our own.

What counts is the error for functions that are new as a whole: those for tests, and those on which the rank
is chosen, have no row in fit or training. The reference (Fourier ETDRK4, 128 points, 200 steps) has a
relative error of 1e-7, measured against the Cole-Hopf formula.
"""

# Legend: i functions, m sensors and grid points, n rows; h initial function, s solution at time 1.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lsr_hpc.models import ARCHITECTURES, FNO, DeepONet, MultiONet
from lsr_hpc.problem import Evaluation, Field, ModelSpec, Problem, ResidualBlock
from lsr_hpc.problems.arguments import ArgumentError, check_range, check_seed, trained
from lsr_hpc.problems.burgers_reference import burgers_spectrum, sum_of_waves
from lsr_hpc.problems.gaussian_process import odd_periodic_draws
from lsr_hpc.problems.operator_learning import FIRST_TEST_FUNCTION
from lsr_hpc.sampling import uniform_rows
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask, draw_batch

__all__ = ["GRID", "build", "initial_values", "solutions", "training_task"]

Array = NDArray[np.float64]
VISCOSITY = 0.1 / np.pi
# Sensors of the initial function, and places of the solution.
GRID = np.linspace(-1.0, 1.0, 64, endpoint=False)
_AMPLITUDE = 0.4
_LENGTH = 1.5
_FIRST_HELD_OUT_FUNCTION = FIRST_TEST_FUNCTION // 2
_STREAM_PLACES = 131
_MODELS = ("deeponet", "multionet", "fno")


def initial_values(numbers: range, seed: int, x: Array) -> Array:
    """Initial functions: a mean-free periodic Gaussian process of standard deviation 0.4 on [-1, 1].

    Args:
        numbers: Global numbers of the functions; function i of a seed is the same everywhere.
        seed: Seed of the draws.
        x: Places, shape (n,).

    Returns:
        Values, shape (i, n).
    """
    return _AMPLITUDE * odd_periodic_draws(numbers, seed, x, period=2.0, length=_LENGTH)


def solutions(numbers: range, seed: int, n_grid: int = 128, steps: int = 200) -> Array:
    """Solutions at time 1 on the grid.

    Args:
        numbers: Global numbers of the functions.
        seed: Seed of the draws.
        n_grid: Points of the spectral method.
        steps: Its time steps.

    Returns:
        s, shape (i, m).
    """
    initial = initial_values(numbers, seed, 2 * np.arange(n_grid) / n_grid - 1)
    waves = burgers_spectrum(initial, viscosity=VISCOSITY, length=2.0, snapshots=2, steps=steps)
    return sum_of_waves(waves[:, 1], GRID + 1, 2.0)


@dataclass(frozen=True)
class _Functions:
    """Some functions at the sensors, (i, m), with their solutions on the grid, (i, m)."""

    h: Tensor
    s: Tensor

    @classmethod
    def of(cls, first: int, count: int, seed: int) -> _Functions:
        numbers = range(first, first + count)
        return cls(
            torch.from_numpy(initial_values(numbers, seed, GRID)),
            torch.from_numpy(solutions(numbers, seed)),
        )


def _places(functions: int, points: int, first: int, seed: int) -> Tensor:
    """Grid points of every function, evenly spaced but for a random shift; shape (functions, points)."""
    stride = len(GRID) // points
    shifts = uniform_rows(seed, _STREAM_PLACES, first, first + functions, 1) * stride
    return torch.from_numpy(shifts.astype(np.int64)) + stride * torch.arange(points)


def _misfit_at_places(u: Field, h: Tensor, y: Tensor, s: Tensor) -> Tensor:
    # The branch, and its part of J, once per function, not once per row.
    misfits: Tensor = u(h[:, None, :], y[..., None])[..., 0] - s
    return misfits


def _misfit_on_grid(u: Field, h: Tensor, s: Tensor) -> Tensor:
    return u(h) - s


def _block(name: str, functions: _Functions, points: int, first: int, seed: int, model: str) -> ResidualBlock:
    """Rows of some functions; each is one point of the block, and so in one set as a whole."""
    if model == "fno":
        return ResidualBlock(
            name=name, residual=_misfit_on_grid, points=functions.h, data=(functions.s,), hold_out=False
        )
    places = _places(len(functions.h), points, first, seed)
    return ResidualBlock(
        name=name,
        residual=_misfit_at_places,
        points=functions.h,
        data=(torch.from_numpy(GRID)[places], functions.s.gather(1, places)),
        hold_out=False,
    )


def _evaluation(functions: _Functions, model: str) -> Evaluation:
    count, m = functions.h.shape
    if model == "fno":
        return Evaluation(inputs=(functions.h,), reference=functions.s, groups=count)
    y = torch.from_numpy(GRID).repeat(count)
    inputs = (functions.h.repeat_interleave(m, dim=0), y[:, None])
    return Evaluation(inputs=inputs, reference=functions.s.reshape(-1, 1), groups=count)


def _spec(model: str, width: int, depth: int) -> ModelSpec:
    m = len(GRID)
    arguments: dict[str, dict[str, Any]] = {
        "deeponet": {"branch": [m] + [width] * depth, "trunk": [1] + [width] * depth},
        "multionet": {"sensors": m, "coordinates": 1, "width": width, "depth": depth},
        "fno": {"channels": width, "modes": m // 4, "layers": depth, "hidden": 2 * width},
    }
    return ModelSpec(architecture=model, arguments=arguments[model])


def _check(model: str, functions: int, width: int, depth: int, seed: int) -> None:
    if model not in _MODELS:
        raise ArgumentError("model", f"= {model!r}: use one of {', '.join(map(repr, _MODELS))}")
    check_range("functions", functions, 1, _FIRST_HELD_OUT_FUNCTION)
    check_range("width", width, 1, 100_000)
    check_range("depth", depth, 1, 1000)
    check_seed(seed)


def build(
    weights: dict[str, Tensor],
    *,
    model: str = "multionet",
    functions: int = 1000,
    points: int = 16,
    held_out_functions: int = 100,
    test_functions: int = 100,
    width: int = 64,
    depth: int = 3,
    seed: int = 7,
) -> Problem:
    """Build the problem from trained weights.

    Args:
        weights: State of the network.
        model: ``"multionet"``, ``"deeponet"`` or ``"fno"``.
        functions: Functions in the fit, the first of those that the start was trained on.
        points: Grid points of each, a divisor of 64; an FNO takes all 64.
        held_out_functions: Further functions, on which the rank is chosen.
        test_functions: Further functions, on all of whose 64 grid points errors are taken.
        width: Width of all layers; channels of an FNO.
        depth: Layers of branch and trunk, those joined in a MultiONet, spectral layers of an FNO.
        seed: Seed of the functions.

    Returns:
        The problem; its error is the mean over test functions of each one's relative L2 error.

    Raises:
        ArgumentError: If an argument is out of range, or the weights do not fit the network.
    """
    _check(model, functions, width, depth, seed)
    check_range("points", points, 1, len(GRID))
    if len(GRID) % points:
        raise ArgumentError("points", f"= {points}: use a divisor of {len(GRID)}")
    check_range("held_out_functions", held_out_functions, 1, 10_000)
    check_range("test_functions", test_functions, 1, 10_000)
    spec = _spec(model, width, depth)
    sizes = f"model = {model!r}, width = {width}, depth = {depth}"
    network = trained(lambda: ARCHITECTURES[model](**spec.arguments), weights, sizes)
    fit = _Functions.of(0, functions, seed)
    held_out = _Functions.of(_FIRST_HELD_OUT_FUNCTION, held_out_functions, seed)
    test = _Functions.of(FIRST_TEST_FUNCTION, test_functions, seed)
    return Problem(
        name="data_burgers",
        model=network,
        model_spec=spec,
        blocks=[_block("data", fit, points, 0, seed, model)],
        validation=[_block("held-out data", held_out, points, _FIRST_HELD_OUT_FUNCTION, seed, model)],
        evaluation=_evaluation(test, model),
    )


def training_task(
    settings: TrainingSettings,
    *,
    model: str = "multionet",
    functions: int = 1000,
    width: int = 64,
    depth: int = 3,
    seed: int = 7,
    test_functions: int = 100,
) -> TrainingTask:
    """Supervised training at all 64 grid points of every function, float32.

    Args:
        settings: Training settings; ``batch_size`` counts functions.
        model: As in :func:`build`.
        functions: Training functions.
        width: As in :func:`build`.
        depth: As in :func:`build`.
        seed: Seed of the functions.
        test_functions: Unseen functions for the reported error.

    Returns:
        The task.

    Raises:
        ArgumentError: If an argument is out of range.
    """
    _check(model, functions, width, depth, seed)
    check_range("test_functions", test_functions, 1, 10_000)
    check_range("batch_size", settings.batch_size or 1, 1, functions)
    torch.manual_seed(settings.seed)
    network = ARCHITECTURES[model](**_spec(model, width, depth).arguments)
    on_grid = _on_grid(network)
    training, test = (
        _Functions.of(0, functions, seed),
        _Functions.of(FIRST_TEST_FUNCTION, test_functions, seed),
    )
    h, s = training.h.float(), training.s.float()

    def loss(generator: torch.Generator) -> Tensor:
        batch = draw_batch(len(h), settings, generator)
        return (on_grid(h[batch]) - s[batch]).square().mean()

    def error() -> float:
        with torch.no_grad():
            misfits = on_grid(test.h.float()).double() - test.s
        return float((misfits.norm(dim=1) / test.s.norm(dim=1)).mean())

    return TrainingTask(model=network, loss=loss, error=error)


def _on_grid(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Functions at the sensors, (i, m), to solutions on the grid, (i, m)."""
    if isinstance(network, FNO):
        return network
    assert isinstance(network, DeepONet | MultiONet)
    y = torch.from_numpy(GRID).float()[:, None]
    return lambda h: network.on_grid(h, y)
