"""A network trained at one condition and others to be solved in its tangent space: what such problems share.

A condition is an input function: a forcing or an initial value. Instance 0 of the family is the one that the
network was trained at, all others are unseen. They share network and points, so that the response modes of
the network are computed once; see :mod:`lsr_hpc.transfer`.
"""

# Legend: i input functions, n points.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.models import MLP
from lsr_hpc.problem import Evaluation, ModelSpec, Problem, ProblemFamily, ResidualBlock
from lsr_hpc.problems.arguments import check_range, check_seed, trained
from lsr_hpc.problems.operator_learning import FIRST_TEST_FUNCTION, InputFunctions, PointDraws
from lsr_hpc.problems.physics_informed import Box
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask

__all__ = ["ConditionTransfer"]

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ConditionTransfer:
    """An equation on the unit interval or square whose solution depends on an input function.

    Attributes:
        name: Name of the problem.
        dimensions: Inputs of the network, each from 0 to 1.
        functions: ``functions(numbers, seed)``: the input functions with these global numbers.
        blocks: ``blocks(functions, draws)``: residual of one function at points drawn.
        evaluation_points: Where errors are taken, shape (n, d).
        stream: First of two streams of random points; the training takes its own two behind.
    """

    name: str
    dimensions: int
    functions: Callable[[range, int], InputFunctions]
    blocks: Callable[[Any, PointDraws], Sequence[ResidualBlock]]
    evaluation_points: Callable[[], Tensor]
    stream: int

    def build(
        self,
        weights: dict[str, Tensor],
        *,
        targets: int = 100,
        points: int = 10_000,
        side_points: int = 1000,
        width: int = 20,
        depth: int = 4,
        stretch: float = 1.0,
        source: int = 0,
        seed: int = 7,
    ) -> ProblemFamily:
        """The condition of the training and unseen ones, all on the same points.

        Args:
            weights: State of the network trained at one condition.
            targets: Number of unseen conditions, instances 1 and up.
            points: Points of the equation.
            side_points: Points of each side condition, where these are random.
            width: Width of the hidden layers.
            depth: Number of hidden layers.
            stretch: Factor on the z-scored inputs; more makes the tangent space richer.
            source: Number of the input function that the network was trained at, instance 0.
            seed: Seed of functions and points.

        Returns:
            The family of instances.

        Raises:
            ArgumentError: If an argument is out of range, or the weights do not fit ``width`` and ``depth``.
        """
        _check(points, side_points, width, depth, stretch, source, seed)
        check_range("targets", targets, 1, 10_000)
        spec = self._network(width, depth, stretch)
        model = trained(lambda: MLP(**spec.arguments), weights, f"width = {width}, depth = {depth}")
        draws = PointDraws(seed, self.stream, 0, points, side_points)

        def instance(i: int) -> Problem:
            number = source if i == 0 else FIRST_TEST_FUNCTION + i - 1
            return self._problem(f"{self.name} {i}", model, spec, number, draws)

        return ProblemFamily(name=self.name, n_instances=1 + targets, instance=instance)

    def training_task(
        self,
        settings: TrainingSettings,
        *,
        points: int = 2000,
        side_points: int = 200,
        width: int = 20,
        depth: int = 4,
        stretch: float = 1.0,
        source: int = 0,
        seed: int = 7,
    ) -> TrainingTask:
        """Physics-informed training at one condition, float64.

        Args:
            settings: Training settings.
            points: Points of the equation.
            side_points: Points of each side condition, where these are random.
            width: Width of the hidden layers.
            depth: Number of hidden layers.
            stretch: Factor on the z-scored inputs; more makes the tangent space richer.
            source: Number of the input function.
            seed: Seed of functions and points.

        Returns:
            The task.

        Raises:
            ArgumentError: If an argument is out of range.
        """
        _check(points, side_points, width, depth, stretch, source, seed)
        torch.manual_seed(settings.seed)
        spec = self._network(width, depth, stretch)
        draws = PointDraws(seed, self.stream + 2, 0, points, side_points)
        problem = self._problem(self.name, MLP(**spec.arguments), spec, source, draws)
        return TrainingTask.of(problem, settings)

    def _network(self, width: int, depth: int, stretch: float) -> ModelSpec:
        return Box((0.0,) * self.dimensions, (1.0,) * self.dimensions).network(width, depth, stretch=stretch)

    def _problem(self, name: str, model: MLP, spec: ModelSpec, number: int, draws: PointDraws) -> Problem:
        functions = self.functions(range(number, number + 1), draws.seed)
        return Problem(
            name=name,
            model=model,
            model_spec=spec,
            blocks=self.blocks(functions, draws),
            evaluation=Evaluation(
                inputs=(self.evaluation_points(),),
                reference=torch.from_numpy(functions.solutions().reshape(-1, 1)),
            ),
        )


def _check(
    points: int, side_points: int, width: int, depth: int, stretch: float, source: int, seed: int
) -> None:
    check_range("points", points, 2, 10**7)
    check_range("side_points", side_points, 1, 10**7)
    check_range("width", width, 1, 100_000)
    check_range("depth", depth, 1, 1000)
    check_range("stretch", stretch, 1e-6, 1e6)
    check_range("source", source, 0, FIRST_TEST_FUNCTION - 1)
    check_seed(seed)
