"""Handwritten digits of 8 x 8 pixels by a small network whose outputs are linearised.

scikit-learn's digits (1,797 images of the UCI Optical Recognition data, its test part): the first 1,437 are
fitted or choose the rank, the last 360, written by other people, judge. The rows are the probabilities less
the labels, ten an image. Source of the experiment: arXiv:2601.13989, there on MNIST with an untrained network
of 119,530 parameters; an untrained start is possible here too, and its linear model in the tangent space
already classifies well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsr_hpc.errors import EnvironmentProblem
from lsr_hpc.models import Classifier
from lsr_hpc.problem import Evaluation, ModelSpec, Problem, ResidualBlock
from lsr_hpc.problems.arguments import ArgumentError, check_range, check_seed, trained
from lsr_hpc.problems.physics_informed import misfit
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask, draw_batch

__all__ = ["build", "training_task"]

_SIDE, _CLASSES, _N_FIT = 8, 10, 1437
# Grey values are whole numbers up to this one.
_WHITE = 16.0


def _images() -> tuple[Tensor, Tensor]:
    """Images (1797, 64) with values from 0 to 1, and labels (1797, 10), one-hot; float64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise EnvironmentProblem(
            "problem.function = 'digits' takes its images from scikit-learn, which is not installed: "
            "pip install scikit-learn"
        ) from error
    data = load_digits()
    labels = torch.nn.functional.one_hot(torch.from_numpy(data.target).long(), _CLASSES)
    return torch.from_numpy(data.data).double() / _WHITE, labels.double()


def _model_spec(channels: Sequence[int], hidden: Sequence[int]) -> ModelSpec:
    for name, widths in (("channels", channels), ("hidden", hidden)):
        for width in widths:
            if isinstance(width, bool) or not isinstance(width, int):
                raise ArgumentError(name, f"holds {width!r}: give whole numbers")
            check_range(name, width, 1, 10_000)
    arguments = {"side": _SIDE, "channels": list(channels), "hidden": list(hidden), "classes": _CLASSES}
    return ModelSpec(architecture="classifier", arguments=arguments)


def build(
    weights: dict[str, Tensor],
    *,
    channels: Sequence[int] = (16, 32),
    hidden: Sequence[int] = (),
    untrained: bool = False,
    seed: int = 0,
) -> Problem:
    """Build the problem from trained weights.

    Args:
        weights: State of the network.
        channels: Channels of the convolutions; none for linear layers alone.
        hidden: Widths of the hidden linear layers.
        untrained: Whether to start from random weights instead.
        seed: Seed of the random weights.

    Returns:
        The problem.

    Raises:
        ArgumentError: If an argument is out of range, or the weights do not fit the network.
        EnvironmentProblem: If scikit-learn is missing.
    """
    check_seed(seed)
    spec = _model_spec(channels, hidden)
    if untrained:
        torch.manual_seed(seed)
        model = Classifier(**spec.arguments)
    else:
        sizes = f"channels = {spec.arguments['channels']}, hidden = {spec.arguments['hidden']}"
        model = trained(lambda: Classifier(**spec.arguments), weights, sizes)
    x, labels = _images()
    return Problem(
        name="digits",
        model=model,
        model_spec=spec,
        blocks=[ResidualBlock(name="labels", residual=misfit, points=x[:_N_FIT], data=(labels[:_N_FIT],))],
        evaluation=Evaluation(inputs=(x[_N_FIT:],), reference=labels[_N_FIT:], one_hot=True),
    )


def training_task(
    settings: TrainingSettings,
    *,
    channels: Sequence[int] = (16, 32),
    hidden: Sequence[int] = (),
    held_out: float = 0.2,
) -> TrainingTask:
    """Training on the cross entropy, float32.

    Args:
        settings: Training settings; ``batch_size`` counts images.
        channels: Channels of the convolutions.
        hidden: Widths of the hidden linear layers.
        held_out: Share of the images that training never sees.

    Returns:
        The task.

    Raises:
        ArgumentError: If an argument is out of range.
        EnvironmentProblem: If scikit-learn is missing.
    """
    check_range("held_out", held_out, 0.0, 0.99)
    n_training = round(_N_FIT * (1 - held_out))
    torch.manual_seed(settings.seed)
    model = Classifier(**_model_spec(channels, hidden).arguments)
    images, labels = (t.float() for t in _images())

    def loss(generator: torch.Generator) -> Tensor:
        batch = draw_batch(n_training, settings, generator)
        likelihood: Tensor = (model(images[batch]) * labels[batch]).sum(dim=1)
        return -likelihood.log().mean()

    def error() -> float:
        with torch.no_grad():
            return float((model(images[_N_FIT:]) - labels[_N_FIT:]).norm() / labels[_N_FIT:].norm())

    return TrainingTask(model=model, loss=loss, error=error)
