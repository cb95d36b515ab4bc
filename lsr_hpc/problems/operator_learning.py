"""DeepONets trained on an equation alone and refined for unseen functions: what such problems share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.models import BoundDeepONet, DeepONet
from lsr_hpc.problem import Evaluation, ModelSpec, Problem, ResidualBlock
from lsr_hpc.problems.arguments import check_range, check_seed, trained
from lsr_hpc.sampling import uniform_rows

__all__ = [
    "FIRST_TEST_FUNCTION",
    "check_operator",
    "column",
    "instance_problem",
    "mean_error",
    "operator_arguments",
    "trained_operator",
    "uniform_points",
    "unseen_in_training",
]

Array = NDArray[np.float64]
# Functions below this number are for training, those from here on for tests.
FIRST_TEST_FUNCTION = 100_000


def operator_arguments(
    sensors: int, coordinates: int, width: int, depth: int, modified: bool = False
) -> dict[str, Any]:
    """Arguments of a DeepONet whose branch and trunk are alike.

    Args:
        sensors: Places where the branch sees the input function.
        coordinates: Coordinates of a query point.
        width: Width of all layers.
        depth: Number of layers.
        modified: Whether branch and trunk are modified MLPs.

    Returns:
        JSON-compatible arguments.
    """
    arguments: dict[str, Any] = {
        "branch": [sensors] + [width] * depth,
        "trunk": [coordinates] + [width] * depth,
    }
    return arguments | ({"modified": True} if modified else {})


def check_operator(width: int, depth: int, seed: int, least_depth: int = 1) -> None:
    """Refuse sizes that cannot be.

    Args:
        width: Width of branch and trunk.
        depth: Layers of branch and trunk.
        seed: Seed of functions and points.
        least_depth: Smallest depth allowed.

    Raises:
        ArgumentError: Naming the argument.
    """
    check_range("width", width, 1, 100_000)
    check_range("depth", depth, least_depth, 1000)
    check_seed(seed)


def trained_operator(arguments: dict[str, Any], weights: dict[str, Tensor]) -> DeepONet:
    """The DeepONet with its trained state.

    Args:
        arguments: As of :func:`operator_arguments`.
        weights: Its state.

    Returns:
        The network.

    Raises:
        ArgumentError: If the weights belong to a network of other sizes.
    """
    sizes = f"width = {arguments['trunk'][-1]}, depth = {len(arguments['trunk']) - 1}"
    return trained(lambda: DeepONet(**arguments), weights, sizes)


def instance_problem(
    name: str,
    operator: DeepONet,
    arguments: dict[str, Any],
    at_sensors: Tensor,
    blocks: list[ResidualBlock],
    evaluation: Evaluation,
) -> Problem:
    """The problem of one input function.

    Args:
        name: Name of the instance.
        operator: The trained network.
        arguments: Its arguments.
        at_sensors: The input function at the sensors, shape (m,).
        blocks: Residual of the instance.
        evaluation: Its solution.

    Returns:
        The problem.
    """
    return Problem(
        name=name,
        model=BoundDeepONet(operator, at_sensors),
        model_spec=ModelSpec(architecture="bound_deeponet", arguments={"operator": arguments}),
        blocks=blocks,
        evaluation=evaluation,
    )


def unseen_in_training(test_functions: int) -> range:
    """Numbers of the functions on which a training reports its error; a job refines none of them.

    Args:
        test_functions: How many.

    Returns:
        The numbers.
    """
    first = FIRST_TEST_FUNCTION // 2
    return range(first, first + test_functions)


def mean_error(model: DeepONet, h: Tensor, y: Tensor, solutions: Tensor) -> Callable[[], float]:
    """Measure of a network in training.

    Args:
        model: The network.
        h: Functions at the sensors, (i, m).
        y: Query points, (n, d).
        solutions: Solutions there, (i, n).

    Returns:
        A function without arguments: the mean of the relative L2 errors.
    """

    def error() -> float:
        with torch.no_grad():
            difference = model.on_grid(h, y) - solutions
            return float((difference.norm(dim=1) / solutions.norm(dim=1)).mean())

    return error


def uniform_points(seed: int, stream: int, first: int, n: int, columns: int) -> Tensor:
    """Uniform points of the unit cube by global number.

    Args:
        seed: Seed.
        stream: Number of the use of the seed.
        first: Global number of the first point.
        n: How many.
        columns: Coordinates.

    Returns:
        Shape (n, columns), float64.
    """
    return torch.from_numpy(np.ascontiguousarray(uniform_rows(seed, stream, first, first + n, columns)))


def column(values: Array) -> Tensor:
    """Numbers (n,) as a tensor (n, 1)."""
    return torch.from_numpy(np.ascontiguousarray(values))[:, None]
