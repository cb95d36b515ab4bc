"""Antiderivative operator h -> s with s' = h, s(0) = 0 on [0, 1], learned by a physics-informed DeepONet.

Source: arXiv:2601.13989 (operator experiments), after Wang, Wang, Perdikaris 2021. Each instance refines the
network for one unseen input function on 1,000 equispaced points of s'(y) - h(y), plus one row for s(0) = 0.
(The published runs pin one true value s(y) at a random y instead; ``anchor = "random"`` does that.)
"""

# Legend: h input function at m = 100 sensors, y query point, s output, i functions.

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lsr_hpc.autodiff import push_forward
from lsr_hpc.derivatives import along
from lsr_hpc.models import DeepONet
from lsr_hpc.problem import Evaluation, Field, Problem, ProblemFamily, ResidualBlock
from lsr_hpc.problems.arguments import ArgumentError, check_range
from lsr_hpc.problems.gaussian_process import PROCESSES, check_process
from lsr_hpc.problems.operator_learning import (
    FIRST_TEST_FUNCTION,
    check_operator,
    column,
    instance_problem,
    mean_error,
    operator_arguments,
    trained_operator,
    unseen_in_training,
)
from lsr_hpc.sampling import uniform_rows
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask, draw_batch

__all__ = ["build", "training_task"]

SENSORS = np.linspace(0.0, 1.0, 100)
_STREAM_ANCHOR = 31


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
    check_process(forcing)
    check_operator(width, depth, seed)
    check_range("rows", rows, 2, 10**6)
    # All forcings are evaluated at once: 800 MB at most.
    check_range("instances", instances, 1, 10**8 // rows)
    if anchor not in {"initial", "random"}:
        raise ArgumentError("anchor", f"= {anchor!r}: use 'initial' or 'random'")
    arguments = operator_arguments(len(SENSORS), 1, width, depth)
    operator = trained_operator(arguments, weights)
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
        return instance_problem(
            f"antiderivative {i}",
            operator,
            arguments,
            torch.from_numpy(at_sensors[i]),
            [
                ResidualBlock(
                    name="anchor",
                    residual=pin,
                    points=column(anchors[i : i + 1]),
                    data=(column(at_anchor[i : i + 1]),),
                    hold_out=False,
                ),
                ResidualBlock(name="ode", residual=ode, points=column(y), data=(column(forcing_at_y[i]),)),
            ],
            Evaluation(inputs=(column(y_eval),), reference=column(reference[i])),
        )

    return ProblemFamily(name="antiderivative", n_instances=instances, instance=instance)


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
    check_process(forcing)
    check_operator(width, depth, seed)
    check_range("functions", functions, 1, FIRST_TEST_FUNCTION // 2)
    check_range("test_functions", test_functions, 1, FIRST_TEST_FUNCTION // 2)
    check_range("batch_size", settings.batch_size or 1, 1, functions)
    torch.manual_seed(settings.seed)
    model = DeepONet(**operator_arguments(len(SENSORS), 1, width, depth))
    h = torch.from_numpy(PROCESSES[forcing](range(functions), seed).at(SENSORS)).float()
    unseen = PROCESSES[forcing](unseen_in_training(test_functions), seed)
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

    return TrainingTask(model=model, loss=loss, error=mean_error(model, h_test, y, s_test))
