"""Digits: the network, the split, accuracies against the predictor itself, arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lsr_hpc import (
    ComputeSettings,
    HeldOutSettings,
    RefinedPredictor,
    RefineSettings,
    SubspaceSettings,
    refine,
)
from lsr_hpc.errors import EnvironmentProblem, JobError
from lsr_hpc.models import Classifier
from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.problems.digits import build, training_task
from lsr_hpc.settings import TrainingSettings
from tests.extras import require_modules

SIZES: dict[str, Any] = {"channels": [2, 3], "hidden": [7]}


@pytest.fixture
def images() -> None:
    require_modules("sklearn")


def test_classifier_is_its_formula() -> None:
    torch.manual_seed(0)
    model = Classifier(side=8, channels=[2], hidden=[5], classes=3).double()
    images = torch.randn(4, 64, dtype=torch.float64)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    padded = np.zeros((4, 10, 10))
    padded[:, 1:9, 1:9] = images.numpy().reshape(4, 8, 8)
    convolved = np.zeros((4, 2, 4, 4))
    for row in range(4):
        for column in range(4):
            window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            convolved[:, :, row, column] = np.einsum("nij,cij->nc", window, state["layers.0.weight"][:, 0])
    hidden = np.tanh(convolved + state["layers.0.bias"][:, None, None]).reshape(4, 32)
    hidden = np.tanh(hidden @ state["layers.3.weight"].T + state["layers.3.bias"])
    powers = np.exp(hidden @ state["layers.5.weight"].T + state["layers.5.bias"])
    with torch.no_grad():
        found = model(images).numpy()
    np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), atol=1e-14)
    # Without convolutions the images go to the linear layers as they are.
    plain = Classifier(side=8, channels=[], hidden=[], classes=3).double()
    assert plain(torch.zeros_like(images)).tolist() == [[1 / 3] * 3] * 4
    with pytest.raises(JobError, match=r"images of 8 x 8 pixels, shape \(n, 64\)"):
        model(images[:, :63])


@pytest.mark.usefixtures("images")
def test_images_that_judge_are_the_last_and_are_not_fitted() -> None:
    problem = build({}, untrained=True, **SIZES)
    (block,) = problem.blocks
    evaluation = problem.evaluation
    assert evaluation is not None
    (judging,), labels = evaluation.take(slice(None))
    fitted, fitted_labels = block.take(np.arange(block.n_points))
    assert (len(fitted), len(judging)) == (1437, 360)
    assert (fitted.min(), fitted.max()) == (0, 1)
    for one_hot, fewest in ((fitted_labels, 130), (labels, 30)):
        assert one_hot.sum(dim=1).eq(1).all()
        # All ten digits are there, about equally often.
        assert one_hot.sum(dim=0).min() > fewest
    repeated = (torch.cdist(judging, fitted) == 0).any(dim=1)
    assert not repeated.any()


@pytest.mark.usefixtures("images")
def test_accuracies_are_those_of_network_and_predictor(comm_self: Any) -> None:
    problem = build({}, untrained=True, **SIZES)
    result = refine(
        problem,
        comm_self,
        settings=RefineSettings(
            subspace=SubspaceSettings(rank=100),
            held_out=HeldOutSettings(fraction=0.2),
            compute=ComputeSettings(device="cpu"),
        ),
    )
    assert problem.evaluation is not None
    (x,), labels = problem.evaluation.take(slice(None))
    predictor = RefinedPredictor(problem.model.double(), torch.from_numpy(result.delta))
    for name, field in (("accuracy_before", problem.model), ("accuracy_after", predictor)):
        with torch.no_grad():
            right = field(x).argmax(dim=1) == labels.argmax(dim=1)
        assert result.checks[name] == right.double().mean().item()
    # Random weights guess; their linearisation does not.
    assert result.checks["accuracy_before"] < 0.3
    assert result.checks["accuracy_after"] > 0.6


@pytest.mark.usefixtures("images")
def test_random_weights_are_those_of_the_seed() -> None:
    first, again, other = (build({}, untrained=True, seed=s, **SIZES).model.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


@pytest.mark.usefixtures("images")
def test_training_lowers_the_cross_entropy() -> None:
    task = training_task(TrainingSettings(steps=1), **SIZES)
    generator = torch.Generator().manual_seed(0)
    before = task.loss(generator)
    # Of ten classes, knowing nothing.
    assert before.item() == pytest.approx(np.log(10), abs=0.4)
    before.backward()
    with torch.no_grad():
        for parameter in task.model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    assert task.loss(generator) < before
    assert build({n: t.double() for n, t in task.model.state_dict().items()}, **SIZES).name == "digits"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"channels": [0]}, "channels = 0: must be from 1 to 10000"),
        ({"hidden": [2.5]}, "hidden holds 2.5: give whole numbers"),
        ({"seed": -1}, "seed = -1"),
        ({"channels": [4]}, "do not fit channels = \\[4\\], hidden = \\[7\\]"),
    ],
)
@pytest.mark.usefixtures("images")
def test_arguments_that_cannot_be_are_named(arguments: dict[str, Any], complaint: str) -> None:
    weights = Classifier(side=8, classes=10, **SIZES).state_dict()
    with pytest.raises(ArgumentError, match=complaint):
        build(weights, **(SIZES | arguments))


def test_missing_scikit_learn_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(EnvironmentProblem, match="pip install scikit-learn"):
        build({}, untrained=True)
