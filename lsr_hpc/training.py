"""Pre-training of the shipped problems: Adam with a learning-rate schedule, L-BFGS, or both; deterministic.

The product refines networks that others trained; this small trainer only re-makes the committed starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lsr_hpc.errors import AccuracyError
from lsr_hpc.problem import Problem
from lsr_hpc.settings import TrainingSettings

__all__ = ["TrainingTask", "draw_batch", "train"]

# Iterations of L-BFGS between two looks at the clock, and the pairs of vectors that it remembers.
_ITERATIONS_PER_CALL = 20
_HISTORY = 100


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What a problem hands to the trainer.

    Attributes:
        model: Freshly initialised network, trained in place.
        loss: ``loss(generator) -> scalar`` on a batch drawn with the generator.
        error: Measures the relative L2 error of the network as it is.
    """

    model: nn.Module
    loss: Callable[[torch.Generator], Tensor]
    error: Callable[[], float]

    @classmethod
    def of(cls, problem: Problem, settings: TrainingSettings) -> TrainingTask:
        """Train on the loss behind a problem's own residual blocks, as physics-informed networks are.

        Args:
            problem: Problem with an untrained network, which is trained in place in float64.
            settings: Training settings; ``batch_size`` counts points of every block that has more.

        Returns:
            The task.
        """
        model, evaluation = problem.model.double(), problem.evaluation
        assert evaluation is not None
        blocks = [(block, block.take(np.arange(block.n_points))) for block in problem.blocks]
        inputs, _ = evaluation.take(slice(None))

        def loss(generator: torch.Generator) -> Tensor:
            total = torch.zeros((), dtype=torch.float64)
            for block, tensors in blocks:
                if settings.batch_size is not None and settings.batch_size < block.n_points:
                    batch = draw_batch(block.n_points, settings, generator)
                    tensors = tuple(t[batch] for t in tensors)
                total = total + block.weight * block.residual(model, *tensors).square().mean()
            return total

        def error() -> float:
            with torch.no_grad():
                return evaluation.error(model(*inputs))

        return cls(model=model, loss=loss, error=error)


def draw_batch(n: int, settings: TrainingSettings, generator: torch.Generator) -> Tensor:
    """Which of n training points or functions a step takes.

    Args:
        n: How many there are.
        settings: With ``batch_size``.
        generator: Source of random numbers; untouched if all are taken.

    Returns:
        Indices, drawn with replacement, or all of them once if there is no ``batch_size``.
    """
    if settings.batch_size is None:
        return torch.arange(n)
    return torch.randint(n, (settings.batch_size,), generator=generator)


def train(task: TrainingTask, settings: TrainingSettings, report: Callable[[str], None]) -> dict[str, float]:
    """Minimise the loss.

    Args:
        task: Network and loss.
        settings: Optimiser and schedule.
        report: Receives a progress line about every ten seconds.

    Returns:
        Final loss, error, steps and seconds.

    Raises:
        AccuracyError: If the loss becomes NaN or Inf.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    total = settings.steps + settings.lbfgs_steps
    started = last = time.monotonic()
    value = float("nan")
    for step, loss in _steps(task, settings, generator):
        if time.monotonic() - last > 10 or step == total:
            last, value = time.monotonic(), loss.item()
            if not value < float("inf"):
                raise AccuracyError(
                    f"training diverged at step {step} (loss {value}): lower train.learning_rate"
                )
            report(
                f"step {step:>6}/{total}  loss {value:.3e}  error {task.error():.3e}  {last - started:6.0f} s"
            )
    return {
        "loss": value,
        "error": task.error(),
        "steps": total,
        "seconds": round(last - started, 1),
    }


def _steps(
    task: TrainingTask, settings: TrainingSettings, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """Number of the step, and a loss next to it."""
    if settings.optimizer == "lbfgs":
        yield from _lbfgs(task, settings.steps, generator)
        return
    yield from _adam(task, settings, generator)
    for done, loss in _lbfgs(task, settings.lbfgs_steps, generator):
        yield settings.steps + done, loss


def _adam(
    task: TrainingTask, settings: TrainingSettings, generator: torch.Generator
) -> Iterator[tuple[int, Tensor]]:
    """Steps of Adam: number of the step, loss before it."""
    optimiser = torch.optim.Adam(task.model.parameters(), lr=settings.learning_rate)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if settings.schedule == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    else:
        factor = settings.decay ** (1.0 / settings.decay_every)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, factor)
    for step in range(1, settings.steps + 1):
        optimiser.zero_grad()
        loss = task.loss(generator)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        yield step, loss


def _lbfgs(task: TrainingTask, steps: int, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    """Iterations of L-BFGS, some at a time: number of those done, loss behind them."""
    optimiser = torch.optim.LBFGS(
        task.model.parameters(),
        history_size=_HISTORY,
        tolerance_grad=1e-10,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = task.loss(generator)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for done in range(0, steps, _ITERATIONS_PER_CALL):
        # Each call goes on from the curvature pairs of the calls before.
        iterations = min(_ITERATIONS_PER_CALL, steps - done)
        optimiser.param_groups[0]["max_iter"] = iterations
        optimiser.param_groups[0]["max_eval"] = 25 * iterations
        optimiser.step(closure)  # type: ignore[no-untyped-call]
        yield done + iterations, closure()
