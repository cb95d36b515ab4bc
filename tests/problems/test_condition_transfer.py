"""Families of conditions of one network: shared points, own functions, training at the source."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lsr_hpc.models import MLP
from lsr_hpc.problem import Problem, as_tensor
from lsr_hpc.problems import PROBLEMS
from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.problems.burgers_operator import Starts
from lsr_hpc.problems.diffusion_reaction import Sources
from lsr_hpc.problems.gaussian_process import InterpolatedProcess
from lsr_hpc.settings import TrainingSettings

NAMES = ["transfer_burgers", "transfer_diffusion_reaction", "transfer_ode"]
SIZES = {"points": 40, "side_points": 8, "width": 6, "depth": 2}


def network(name: str) -> MLP:
    torch.manual_seed(0)
    inputs = 1 if name == "transfer_ode" else 2
    return MLP([inputs, 6, 6, 1], input_mean=[0.5] * inputs, input_std=[0.3] * inputs)


def family(name: str, **changes: Any) -> Any:
    arguments = {"targets": 3, **SIZES, "source": 4} | changes
    return PROBLEMS[name].build(network(name).state_dict(), **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_conditions_share_network_and_points_and_differ_in_data(name: str) -> None:
    made = family(name)
    source, first, second = (made.instance(i) for i in range(3))
    assert made.n_instances == 4
    differs = False
    for a, b, c in zip(source.blocks, first.blocks, second.blocks, strict=True):
        assert torch.equal(as_tensor(a.points), as_tensor(b.points))
        assert torch.equal(as_tensor(a.points), as_tensor(c.points))
        differs |= any(
            not torch.equal(as_tensor(x), as_tensor(y)) for x, y in zip(b.data, c.data, strict=True)
        )
    assert differs
    for one, other in zip(
        source.model.state_dict().values(), second.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("instance", "number"), [(0, 4), (1, 100_000), (3, 100_002)])
def test_instances_carry_the_function_and_solution_of_their_number(instance: int, number: int) -> None:
    numbers = range(number, number + 1)

    def reference(name: str) -> np.ndarray[Any, Any]:
        problem: Problem = family(name).instance(instance)
        assert problem.evaluation is not None
        inputs, values = problem.evaluation.take(slice(None))
        assert len(inputs[0]) == len(values)
        return values[:, 0].numpy()

    np.testing.assert_array_equal(reference("transfer_burgers"), Starts(numbers, 7).solutions().ravel())
    np.testing.assert_array_equal(
        reference("transfer_diffusion_reaction"), Sources(numbers, 7).solutions().ravel()
    )
    y = np.linspace(0, 1, 501)
    np.testing.assert_allclose(reference("transfer_ode"), InterpolatedProcess(numbers, 7).primitive(y)[0])


def test_residuals_of_the_ode_vanish_at_its_solution() -> None:
    """s = x^2 / 2 solves s' = x: what is left is x - h, and s(0)."""
    start, ode = family("transfer_ode").instance(2).blocks

    def u(x: torch.Tensor) -> torch.Tensor:
        return x**2 / 2

    x, h = ode.take(np.arange(40))
    np.testing.assert_allclose(ode.residual(u, x, h), x - h)
    assert start.residual(u, *start.take(np.arange(1))).tolist() == [[0.0]]


@pytest.mark.parametrize("name", NAMES)
def test_training_is_at_the_source(name: str) -> None:
    task = PROBLEMS[name].training_task(TrainingSettings(steps=1), **SIZES, source=4)
    source = family(name).instance(0)
    task.model.load_state_dict(source.model.state_dict())
    assert source.evaluation is not None
    (inputs,), values = source.evaluation.take(slice(None))
    with torch.no_grad():
        expected = float((task.model(inputs) - values).norm() / values.norm())
    assert task.error() == pytest.approx(expected, rel=1e-12)
    assert 0 < task.loss(torch.Generator()).item() < np.inf


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("targets", 0),
        ("points", 1),
        ("side_points", 0),
        ("width", 0),
        ("depth", 0),
        ("stretch", 0.0),
        ("source", 100_000),
        ("seed", -1),
    ],
)
def test_argument_that_cannot_be_is_refused_by_name(argument: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=argument):
        PROBLEMS["transfer_ode"].build({}, **{argument: value})
    if argument != "targets":
        with pytest.raises(ArgumentError, match=argument):
            PROBLEMS["transfer_ode"].training_task(TrainingSettings(steps=1), **{argument: value})
