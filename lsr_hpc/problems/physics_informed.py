"""Networks in two variables trained on a PDE and its side conditions alone: what such problems share.

A problem is a box, residual blocks on random points of the box and its sides, and a solution on a grid. The
network is a tanh MLP on z-scored inputs; points by round, checks and training are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lsr_hpc.models import MLP
from lsr_hpc.problem import Evaluation, Field, ModelSpec, Problem, ResidualBlock
from lsr_hpc.problems.arguments import check_range, check_seed, trained
from lsr_hpc.sampling import stream_of_round, uniform_rows
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask

__all__ = ["Box", "Draws", "PhysicsInformed", "initial_and_periodic", "misfit"]

# Points of alignment by points of the equation.
_DENSER = 2


@dataclass(frozen=True)
class Box:
    """The domain: a box in the d inputs of the network.

    Attributes:
        lower: Smallest values of the inputs.
        upper: Largest values.
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]

    def grid(self, *sizes: int) -> Tensor:
        """Equispaced points, the last input varying fastest.

        Args:
            *sizes: Number of values of each input, both ends included.

        Returns:
            Shape (product of the sizes, d), float64.
        """
        ends = zip(self.lower, self.upper, sizes, strict=True)
        return torch.cartesian_prod(*(torch.linspace(a, b, n, dtype=torch.float64) for a, b, n in ends))

    def network(self, width: int, depth: int, outputs: int = 1, stretch: float = 1.0) -> ModelSpec:
        """A tanh MLP on inputs scaled to mean 0 and standard deviation 1 over the box.

        Args:
            width: Width of the hidden layers.
            depth: Number of hidden layers.
            outputs: Number of outputs.
            stretch: Factor on the scaled inputs.

        Returns:
            Arguments of :class:`~lsr_hpc.models.MLP`.
        """
        lower, upper = np.array(self.lower), np.array(self.upper)
        arguments = {
            "widths": [len(lower)] + [width] * depth + [outputs],
            "input_mean": ((lower + upper) / 2).tolist(),
            "input_std": ((upper - lower) / np.sqrt(12) / stretch).tolist(),
        }
        return ModelSpec(architecture="mlp", arguments=arguments)

    def at_end(self, points: Tensor, axis: int, *, upper: bool) -> Tensor:
        """The points moved to one side.

        Args:
            points: Shape (n, d).
            axis: Which input is set.
            upper: Whether to its largest value, or the smallest.

        Returns:
            Shape (n, d).
        """
        moved = points.clone()
        moved[:, axis] = (self.upper if upper else self.lower)[axis]
        return moved


@dataclass(frozen=True)
class Draws:
    """Random points of one round, functions of (seed, round, global number) alone.

    Attributes:
        box: Where.
        seed: Seed of the points.
        stream: First of the problem's streams of random numbers.
        round_: Number of the round.
    """

    box: Box
    seed: int
    stream: int
    round_: int = 0

    def interior(self, n: int) -> Tensor:
        """Uniform points of the box, shape (n, d)."""
        return self._scaled(self._uniform(0, n, len(self.box.lower)))

    def side(self, number: int, axis: int, n: int) -> Tensor:
        """Uniform points of the side on which an input is smallest.

        Args:
            number: Number of this set of points, from 1 on; equal numbers draw equal points.
            axis: The input that is fixed.
            n: How many.

        Returns:
            Shape (n, d).
        """
        return self._on_side(self._uniform(number, n, len(self.box.lower) - 1), axis, upper=False)

    def boundary(self, number: int, n: int) -> Tensor:
        """Uniform points of all sides.

        Args:
            number: Number of this set of points, from 1 on.
            n: How many on each side.

        Returns:
            Shape (2 d n, d): the sides on which the first input is smallest, largest, then those of the next.
        """
        sides = 2 * len(self.box.lower)
        along = self._uniform(number, sides * n, sides // 2 - 1).reshape(sides, n, -1)
        return torch.cat([self._on_side(along[k], k // 2, upper=k % 2 == 1) for k in range(sides)])

    def _on_side(self, share: Tensor, axis: int, *, upper: bool) -> Tensor:
        """Points of one side by where they lie between its ends, 0 to 1, shape (n, d - 1)."""
        unit = torch.cat([share[:, :axis], torch.zeros_like(share[:, :1]), share[:, axis:]], dim=1)
        return self.box.at_end(self._scaled(unit), axis, upper=upper)

    def _scaled(self, unit: Tensor) -> Tensor:
        lower, upper = (torch.tensor(ends, dtype=torch.float64) for ends in (self.box.lower, self.box.upper))
        return lower + unit * (upper - lower)

    def _uniform(self, number: int, n: int, columns: int) -> Tensor:
        stream = stream_of_round(self.stream + number, self.round_)
        return torch.from_numpy(np.ascontiguousarray(uniform_rows(self.seed, stream, 0, n, columns)))


def misfit(u: Field, x: Tensor, value: Tensor) -> Tensor:
    """Residual of given values: u - value."""
    return u(x) - value


def initial_and_periodic(
    draws: Draws, n: int, weight: float, initial: Callable[[Tensor], Tensor]
) -> list[ResidualBlock]:
    """Side conditions in (x, t): values at the first time, and u equal at both ends of x.

    Args:
        draws: Source of points, of which it takes the sets 1 and 2.
        n: Points of each condition.
        weight: Weight of each.
        initial: Values at points of the first time, (n, 2) -> (n, 1).

    Returns:
        Blocks ``initial`` and ``periodic``; the latter has points at the upper end of x, those at the lower
        end as data.
    """
    start, left = draws.side(1, 1, n), draws.side(2, 0, n)
    right = draws.box.at_end(left, 0, upper=True)
    return [
        ResidualBlock(name="initial", residual=misfit, points=start, data=(initial(start),), weight=weight),
        ResidualBlock(name="periodic", residual=_jump, points=right, data=(left,), weight=weight),
    ]


def _jump(u: Field, right: Tensor, left: Tensor) -> Tensor:
    return u(right) - u(left)


@dataclass(frozen=True, kw_only=True)
class PhysicsInformed:
    """A PDE with side conditions on a box, solved by a tanh network.

    Attributes:
        name: Name of the problem.
        box: The domain.
        stream: First of its streams of random numbers: that of the equation's points. The sets of points on
            sides have the following ones, points of an alignment the two behind those.
        sides: Number of sets of points on sides.
        blocks: ``blocks(draws, points, side_points, weight)``: the residual on the points of a round, the
            equation first.
        solution: The solution at points (n, 2), shape (n, 1).
        grid: Values of each input on the grid where the error is taken.
    """

    name: str
    box: Box
    stream: int
    sides: int
    blocks: Callable[[Draws, int, int, float], Sequence[ResidualBlock]]
    solution: Callable[[Tensor], Tensor]
    grid: tuple[int, int]

    def build(
        self,
        weights: dict[str, Tensor],
        *,
        width: int = 128,
        depth: int = 6,
        stretch: float = 1.0,
        points: int = 20_000,
        side_points: int = 1000,
        weight: float = 1.0,
        seed: int = 0,
    ) -> Problem:
        """Build the problem from trained weights.

        Args:
            weights: State of the network.
            width: Width of the hidden layers.
            depth: Number of hidden layers.
            stretch: Factor on the z-scored inputs, for solutions of high frequency.
            points: Random points of the equation.
            side_points: Random points of each side condition.
            weight: Weight of each side condition in the loss; the equation has weight 1.
            seed: Seed of the points.

        Returns:
            The problem.

        Raises:
            ArgumentError: If an argument is out of range, or the weights do not fit the network.
        """
        _check(width, depth, stretch, points, side_points, weight, seed)
        spec = self.box.network(width, depth, stretch=stretch)
        model = trained(lambda: MLP(**spec.arguments), weights, f"width = {width}, depth = {depth}")
        return self._problem(model, spec, points, side_points, weight, seed)

    def training_task(
        self,
        settings: TrainingSettings,
        *,
        width: int = 128,
        depth: int = 6,
        stretch: float = 1.0,
        points: int = 20_000,
        side_points: int = 1000,
        weight: float = 1.0,
        seed: int = 0,
    ) -> TrainingTask:
        """Physics-informed training on the same loss, float64.

        Args:
            settings: Training settings; ``batch_size`` counts points of every block that has more.
            width: Width of the hidden layers.
            depth: Number of hidden layers.
            stretch: Factor on the z-scored inputs.
            points: Random points of the equation.
            side_points: Random points of each side condition.
            weight: Weight of each side condition in the loss.
            seed: Seed of the points.

        Returns:
            The task.

        Raises:
            ArgumentError: If an argument is out of range.
        """
        _check(width, depth, stretch, points, side_points, weight, seed)
        torch.manual_seed(settings.seed)
        spec = self.box.network(width, depth, stretch=stretch)
        problem = self._problem(MLP(**spec.arguments), spec, points, side_points, weight, seed)
        return TrainingTask.of(problem, settings)

    def _problem(
        self, model: MLP, spec: ModelSpec, points: int, side_points: int, weight: float, seed: int
    ) -> Problem:
        def resample(round_: int) -> Sequence[ResidualBlock]:
            return self.blocks(Draws(self.box, seed, self.stream, round_), points, side_points, weight)

        grid = self.box.grid(*self.grid)
        denser = Draws(self.box, seed, self.stream + self.sides + 1)
        return Problem(
            name=self.name,
            model=model,
            model_spec=spec,
            blocks=resample(0),
            evaluation=Evaluation(inputs=(grid,), reference=self.solution(grid)),
            alignment_points=torch.cat([denser.interior(_DENSER * points), denser.boundary(1, side_points)]),
            resample=resample,
        )


def _check(
    width: int, depth: int, stretch: float, points: int, side_points: int, weight: float, seed: int
) -> None:
    check_range("width", width, 1, 100_000)
    check_range("depth", depth, 1, 1000)
    check_range("stretch", stretch, 1e-6, 1e6)
    check_range("points", points, 1, 10**7)
    check_range("side_points", side_points, 1, 10**7)
    check_range("weight", weight, 0.0, 1e12)
    check_seed(seed)
