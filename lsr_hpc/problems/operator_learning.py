"""DeepONets trained on an equation alone and refined for unseen functions: what such problems share.

:class:`OperatorProblem` is one on (t, x) in the unit square: input functions, residual blocks, solutions.
Residuals are written for fields with one column per input function, so that the same ones serve a refinement,
which has one function, and the training, which takes all of its functions at the same points.
"""

# Legend: i functions, n points, q outputs of branch and trunk; y = (t, x) query points.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lsr_hpc.models import MLP, BoundDeepONet, DeepONet, ModifiedMLP
from lsr_hpc.problem import Evaluation, ModelSpec, Problem, ProblemFamily, ResidualBlock
from lsr_hpc.problems.arguments import ArgumentError, check_range, check_seed, trained
from lsr_hpc.sampling import uniform_rows
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask

__all__ = [
    "AXIS",
    "FIRST_TEST_FUNCTION",
    "InputFunctions",
    "OperatorProblem",
    "PointDraws",
    "check_operator",
    "column",
    "evaluation_grid",
    "instance_problem",
    "mean_error",
    "operator_arguments",
    "trained_operator",
    "unseen_in_training",
]

Array = NDArray[np.float64]
# Functions below this number are for training, those from here on for tests.
FIRST_TEST_FUNCTION = 100_000
# Times and places of the grid on which errors are taken.
AXIS = np.linspace(0.0, 1.0, 101)


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
    blocks: Sequence[ResidualBlock],
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


def column(values: Array) -> Tensor:
    """Numbers (n,) as a tensor (n, 1)."""
    return torch.from_numpy(np.ascontiguousarray(values))[:, None]


class InputFunctions(Protocol):
    """Input functions of an operator by number, with the solutions that belong to them."""

    def at(self, x: Array, /) -> Array:
        """Values at places (n,), shape (i, n)."""

    def solutions(self) -> Array:
        """Solutions at the times and places of :data:`AXIS`, shape (i, 101 times, 101 places)."""


@dataclass(frozen=True)
class PointDraws:
    """Random points of one instance, functions of (seed, global number) alone.

    Attributes:
        seed: Seed of the points.
        stream: Stream of the points of the equation; the sides have the next one.
        instance: Number of the instance.
        points: Points of the equation.
        side_points: Points of each side.
    """

    seed: int
    stream: int
    instance: int
    points: int
    side_points: int

    def interior(self) -> Tensor:
        """Points (t, x) of the equation, shape (points, 2)."""
        return self._uniform(self.stream, self.points, 2)

    def sides(self, count: int) -> Tensor:
        """One coordinate of points on several sides, shape (count, side_points, 1)."""
        return self._uniform(self.stream + 1, count * self.side_points, 1).reshape(count, -1, 1)

    def _uniform(self, stream: int, n: int, columns: int) -> Tensor:
        first = self.instance * n
        return torch.from_numpy(
            np.ascontiguousarray(uniform_rows(self.seed, stream, first, first + n, columns))
        )


@dataclass(frozen=True, kw_only=True)
class OperatorProblem:
    """A time-dependent equation on the unit square whose solution depends on an input function.

    Attributes:
        name: Name of the problem.
        sensors: Places where the branch sees the input function, shape (m,).
        modified: Whether branch and trunk are modified MLPs, plain ones otherwise.
        functions: ``functions(numbers, seed)``: the input functions with these global numbers.
        stream: First of four streams of random numbers: points of the equation and of sides, and those of the
            training.
        blocks: ``blocks(functions, draws)``: the residual of these functions, data (n, i), at points drawn.
    """

    name: str
    sensors: Array
    modified: bool
    functions: Callable[[range, int], InputFunctions]
    stream: int
    blocks: Callable[[Any, PointDraws], Sequence[ResidualBlock]]

    def build(
        self,
        weights: dict[str, Tensor],
        *,
        instances: int = 10,
        points: int = 2000,
        side_points: int = 100,
        width: int = 50,
        depth: int = 4,
        seed: int = 7,
    ) -> ProblemFamily:
        """One problem per unseen input function.

        Args:
            weights: State of the trained DeepONet.
            instances: Number of unseen functions.
            points: Random points of the equation, others for each function.
            side_points: Random points of each side condition, others for each function.
            width: Width of branch and trunk.
            depth: Layers of branch and trunk, at least 2.
            seed: Seed of functions and points.

        Returns:
            The family of instances.

        Raises:
            ArgumentError: If an argument is out of range, or the weights do not fit ``width`` and ``depth``.
        """
        _check_sizes(points, side_points, width, depth, seed)
        check_range("instances", instances, 1, 10_000)
        arguments = operator_arguments(len(self.sensors), 2, width, depth, self.modified)
        operator = trained_operator(arguments, weights)

        def instance(i: int) -> Problem:
            functions = self.functions(range(FIRST_TEST_FUNCTION + i, FIRST_TEST_FUNCTION + i + 1), seed)
            return instance_problem(
                f"{self.name} {i}",
                operator,
                arguments,
                torch.from_numpy(functions.at(self.sensors)[0]),
                self.blocks(functions, PointDraws(seed, self.stream, i, points, side_points)),
                Evaluation(inputs=(evaluation_grid(),), reference=column(functions.solutions().ravel())),
            )

        return ProblemFamily(name=self.name, n_instances=instances, instance=instance)

    def training_task(
        self,
        settings: TrainingSettings,
        *,
        functions: int = 300,
        points: int = 1000,
        side_points: int = 100,
        width: int = 50,
        depth: int = 4,
        stretch: float = 1.0,
        seed: int = 7,
        test_functions: int = 50,
    ) -> TrainingTask:
        """Physics-informed training on the same loss, no solution data; float64.

        All functions share one set of points, so that the trunk is evaluated once in each step.

        Args:
            settings: Training settings.
            functions: Number of training functions, all of them taken in every step.
            points: Random points of the equation.
            side_points: Random points of each side condition.
            width: Width of branch and trunk.
            depth: Layers of branch and trunk, at least 2.
            stretch: Factor on the initial weights that the trunk sees (t, x) through; above 1 they are taken
                from the middle of the square too. More makes the tangent space richer.
            seed: Seed of functions and points.
            test_functions: Unseen functions for the reported error.

        Returns:
            The task.

        Raises:
            ArgumentError: If an argument is out of range.
        """
        _check_sizes(points, side_points, width, depth, seed)
        check_range("functions", functions, 1, FIRST_TEST_FUNCTION // 2)
        check_range("test_functions", test_functions, 1, 10_000)
        check_range("stretch", stretch, 1.0, 1e3)
        if settings.batch_size is not None:
            raise ArgumentError(
                "batch_size", f"= {settings.batch_size}: leave it out, all functions are taken"
            )
        torch.manual_seed(settings.seed)
        model = DeepONet(**operator_arguments(len(self.sensors), 2, width, depth, self.modified)).double()
        _stretch(model.trunk, stretch)
        known = self.functions(range(functions), seed)
        at_sensors = torch.from_numpy(known.at(self.sensors))
        blocks = [
            (block, block.take(np.arange(block.n_points)))
            for block in self.blocks(known, PointDraws(seed, self.stream + 2, 0, points, side_points))
        ]

        def loss(generator: torch.Generator) -> Tensor:
            coefficients = model.branch(at_sensors)

            def fields(y: Tensor) -> Tensor:
                """All functions at points (n, 2), shape (n, i)."""
                values: Tensor = model.trunk(y) @ coefficients.T
                return values

            total = torch.zeros((), dtype=torch.float64)
            for block, tensors in blocks:
                total = total + block.weight * block.residual(fields, *tensors).square().mean()
            return total

        unseen = self.functions(unseen_in_training(test_functions), seed)
        h_test, u_test = (torch.from_numpy(v) for v in (unseen.at(self.sensors), unseen.solutions()))
        return TrainingTask(
            model=model, loss=loss, error=mean_error(model, h_test, evaluation_grid(), u_test.flatten(1))
        )


def evaluation_grid() -> Tensor:
    """The 101 x 101 points (t, x) of the solutions, time by time, shape (10201, 2)."""
    axis = torch.from_numpy(AXIS)
    return torch.cartesian_prod(axis, axis)


def _check_sizes(points: int, side_points: int, width: int, depth: int, seed: int) -> None:
    check_operator(width, depth, seed, least_depth=2)
    check_range("points", points, 1, 10**7)
    check_range("side_points", side_points, 1, 10**7)


def _stretch(trunk: MLP | ModifiedMLP, stretch: float) -> None:
    """Scale the initial weights behind the query points, their planes around the middle of the square."""
    if stretch == 1.0:
        return
    first = [trunk.layers[0], *(trunk.encoders if isinstance(trunk, ModifiedMLP) else [])]
    with torch.no_grad():
        for layer in first:
            assert isinstance(layer, nn.Linear)
            layer.weight *= stretch
            # Before, all of them pass through the corner (0, 0).
            layer.bias.sub_(layer.weight.sum(dim=1) / 2)
