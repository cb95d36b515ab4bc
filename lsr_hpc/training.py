"""Pre-training of the shipped problems: Adam with a learning-rate schedule, deterministic from its seed.

The product refines networks that others trained; this small trainer only re-makes the committed starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lsr_hpc.errors import AccuracyError
from lsr_hpc.settings import TrainingSettings

__all__ = ["TrainingTask", "train"]


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


def train(task: TrainingTask, settings: TrainingSettings, report: Callable[[str], None]) -> dict[str, float]:
    """Minimise the loss with Adam.

    Args:
        task: Network and loss.
        settings: Schedule.
        report: Receives a progress line about every ten seconds.

    Returns:
        Final loss, error, steps and seconds.

    Raises:
        AccuracyError: If the loss becomes NaN or Inf.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    optimiser = torch.optim.Adam(task.model.parameters(), lr=settings.learning_rate)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if settings.schedule == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    else:
        factor = settings.decay ** (1.0 / settings.decay_every)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, factor)
    started = last = time.monotonic()
    value = float("nan")
    for step in range(1, settings.steps + 1):
        optimiser.zero_grad()
        loss = task.loss(generator)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if time.monotonic() - last > 10 or step == settings.steps:
            last, value = time.monotonic(), loss.item()
            if not value < float("inf"):
                raise AccuracyError(
                    f"training diverged at step {step} (loss {value}): lower train.learning_rate"
                )
            report(
                f"step {step:>6}/{settings.steps}  loss {value:.3e}  error {task.error():.3e}  "
                f"{last - started:6.0f} s"
            )
    return {
        "loss": value,
        "error": task.error(),
        "steps": settings.steps,
        "seconds": round(last - started, 1),
    }
