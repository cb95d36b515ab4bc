"""Antiderivative operator h -> s with s' = h, s(0) = 0 on [0, 1], learned by a physics-informed DeepONet.

Source: arXiv:2601.13989 (operator experiments), after Wang, Wang, Perdikaris 2021. Each instance refines the
network for one unseen input function on 1,000 equispaced points of s'(y) - h(y), plus one row for s(0) = 0.
(The published runs pin one true value s(y) at a random y instead; ``anchor = "random"`` does that.)
"""

# Legend: h input function at m = 100 sensors, y query point, s output, i functions.

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.autodiff import push_forward
from lsr_hpc.derivatives import along
from lsr_hpc.models import BoundDeepONet, DeepONet
from lsr_hpc.problem import Evaluation, Field, ModelSpec, Problem, ProblemFamily, ResidualBlock
from lsr_hpc.problems.arguments import ArgumentError, check_range, check_seed, trained
from lsr_hpc.problems.gaussian_process import InterpolatedProcess, SpectralProcess
from lsr_hpc.sampling import uniform_rows
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask, draw_batch

__all__ = ["build", "training_task"]

SENSORS = np.linspace(0.0, 1.0, 100)
PROCESSES = {"interpolated": InterpolatedProcess, "spectral": SpectralProcess}
# Functions below this number are for training, those from here on for tests.
FIRST_TEST_FUNCTION = 100_000
_STREAM_ANCHOR = 31


def _check_common(forcing: str, width: int, depth: int, seed: int) -> None:
    if forcing not in PROCESSES:
        raise ArgumentError("forcing", f"= {forcing!r}: use one of {', '.join(map(repr, PROCESSES))}")
    check_range("width", width, 1, 100_000)
    check_range("depth", depth, 1, 1000)
    check_seed(seed)


def _operator_arguments(width: int, depth: int) -> dict[str, Any]:
    return {"branch": [len(SENSORS)] + [width] * depth, "trunk": [1] + [width] * depth}


def build(
    weights: dict[str, Tensor],
    *,
    instances: int = 30,
    rows: int = 1000,
    anchor: str = "initial",
    forcing: str = "interpolated",
    width: int = 50,
    depth: int = 5,
    seed: int = 7,
) -> ProblemFamily:
    """One problem per unseen input function.

    Args:
        weights: State of the trained DeepONet.
        instances: Number of unseen functions.
        rows: Equispaced points of the ODE residual.
        anchor: ``"initial"`` pins s(0) = 0, ``"random"`` the true s at one random y.
        forcing: ``"interpolated"`` (published: piecewise linear on 512 points) or ``"spectral"`` (smooth).
        width: Width of branch and trunk.
        depth: Layers of branch and trunk.
        seed: Seed of the functions.

    Returns:
        The family of instances.

    Raises:
        ArgumentError: If an argument is out of range, or the weights do not fit ``width`` and ``depth``.
    """
    _check_common(forcing, width, depth, seed)
    check_range("rows", rows, 2, 10**6)
    # All forcings are evaluated at once: 800 MB at most.
    check_range("instances", instances, 1, 10**8 // rows)
    if anchor not in {"initial", "random"}:
        raise ArgumentError("anchor", f"= {anchor!r}: use 'initial' or 'random'")
    arguments = _operator_arguments(width, depth)
    operator = trained(lambda: DeepONet(**arguments), weights, f"width = {width}, depth = {depth}")
    process = PROCESSES[forcing](range(FIRST_TEST_FUNCTION, FIRST_TEST_FUNCTION + instances), seed)
    y = np.linspace(0.0, 1.0, rows)
    y_eval = np.linspace(0.0, 1.0, 100)
    anchors = (
        np.zeros(instances)
        if anchor == "initial"
        else uniform_rows(seed, _STREAM_ANCHOR, 0, instances, 1)[:, 0]
    )
    at_sensors, forcing_at_y, reference = process.at(SENSORS), process.at(y), process.primitive(y_eval)
    at_anchor = np.array([process.primitive(anchors[i : i + 1])[i, 0] for i in range(instances)])

    def ode(u: Field, y: Tensor, h: Tensor) -> Tensor:
        return along(u, y) - h

    def pin(u: Field, y: Tensor, s: Tensor) -> Tensor:
        return u(y) - s

    def instance(i: int) -> Problem:
        return Problem(
            name=f"antiderivative {i}",
            model=BoundDeepONet(operator, torch.from_numpy(at_sensors[i])),
            model_spec=ModelSpec(architecture="bound_deeponet", arguments={"operator": arguments}),
            blocks=[
                ResidualBlock(
                    name="anchor",
                    residual=pin,
                    points=_column(anchors[i : i + 1]),
                    data=(_column(at_anchor[i : i + 1]),),
                    hold_out=False,
                ),
                ResidualBlock(name="ode", residual=ode, points=_column(y), data=(_column(forcing_at_y[i]),)),
            ],
            evaluation=Evaluation(inputs=(_column(y_eval),), reference=_column(reference[i])),
        )

    return ProblemFamily(name="antiderivative", n_instances=instances, instance=instance)


def _column(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))[:, None]


def training_task(
    settings: TrainingSettings,
    *,
    functions: int = 5000,
    width: int = 50,
    depth: int = 5,
    forcing: str = "interpolated",
    seed: int = 7,
    test_functions: int = 100,
) -> TrainingTask:
    """Physics-informed training: s' = h at the sensors and s(0) = 0, no solution data; float32.

    Args:
        settings: Training settings; ``batch_size`` counts functions, each taken at all 100 sensors.
        functions: Number of training functions.
        width: Width of branch and trunk.
        depth: Layers of branch and trunk.
        forcing: As in :func:`build`.
        seed: Seed of the functions.
        test_functions: Unseen functions for the reported error.

    Returns:
        The task.

    Raises:
        ArgumentError: If an argument is out of range.
    """
    _check_common(forcing, width, depth, seed)
    check_range("functions", functions, 1, FIRST_TEST_FUNCTION // 2)
    check_range("test_functions", test_functions, 1, FIRST_TEST_FUNCTION // 2)
    check_range("batch_size", settings.batch_size or 1, 1, functions)
    torch.manual_seed(settings.seed)
    model = DeepONet(**_operator_arguments(width, depth))
    h = torch.from_numpy(PROCESSES[forcing](range(functions), seed).at(SENSORS)).float()
    # Test functions of another number range than those that the job refines.
    unseen = PROCESSES[forcing](
        range(FIRST_TEST_FUNCTION // 2, FIRST_TEST_FUNCTION // 2 + test_functions), seed
    )
    h_test = torch.from_numpy(unseen.at(SENSORS)).float()
    s_test = torch.from_numpy(unseen.primitive(SENSORS)).float()
    y = torch.from_numpy(SENSORS).float()[:, None]

    def loss(generator: torch.Generator) -> Tensor:
        batch = h[draw_batch(len(h), settings, generator)]
        coefficients = model.branch(batch)
        trunk, trunk_y = push_forward(model.trunk, y, torch.ones_like(y))
        equation: Tensor = coefficients @ trunk_y.T - batch
        start: Tensor = coefficients @ trunk[0]
        return equation.square().mean() + start.square().mean()

    def error() -> float:
        with torch.no_grad():
            difference = model.on_grid(h_test, y) - s_test
            return float((difference.norm(dim=1) / s_test.norm(dim=1)).mean())

    return TrainingTask(model=model, loss=loss, error=error)
