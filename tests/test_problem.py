"""What is refused before any work starts, in which words, and what the weights of a loss mean."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.models import MLP
from lsr_hpc.prepare import PreparedProblem, prepare
from lsr_hpc.problem import Evaluation, Field, Problem, ResidualBlock
from lsr_hpc.settings import HeldOutSettings, RefineSettings, SubspaceSettings

X = torch.linspace(-1, 1, 30).double()[:, None]
Y = torch.sin(3 * X)
SETTINGS = RefineSettings(subspace=SubspaceSettings(rank=4, oversampling=2))

Prepare = Callable[..., PreparedProblem]


def fit(u: Field, x: Tensor, y: Tensor) -> Tensor:
    return u(x) - y


def network() -> MLP:
    torch.manual_seed(0)
    return MLP([1, 6, 1])


def block(residual: Callable[..., Any] = fit, **changes: Any) -> ResidualBlock:
    return ResidualBlock(**({"name": "fit", "residual": residual, "points": X, "data": (Y,)} | changes))


@pytest.fixture
def prepared(comm_self: Any) -> Prepare:
    """Prepares a problem of one network and some blocks, serially."""

    def run(
        *blocks: ResidualBlock,
        model: nn.Module | None = None,
        settings: RefineSettings = SETTINGS,
        **more: Any,
    ) -> PreparedProblem:
        problem = Problem(name="mine", model=model or network(), blocks=list(blocks), **more)
        return prepare(problem, comm_self, settings)

    return run


def poisoned(parameter: str, value: float) -> nn.Module:
    model = network()
    with torch.no_grad():
        dict(model.named_parameters())[parameter].view(-1)[0] = value
    return model


def frozen() -> nn.Module:
    return network().requires_grad_(False)


class BatchNormalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


MODELS = {
    "NaN": (
        lambda: poisoned("layers.0.weight", float("nan")),
        [r"'layers\.0\.weight'", "NaN or Inf", "train again"],
    ),
    "Inf": (lambda: poisoned("layers.2.bias", float("inf")), [r"'layers\.2\.bias'", "NaN or Inf"]),
    "frozen": (frozen, ["no trainable parameter", "requires_grad"]),
    "batch norm in training": (BatchNormalised, ["'norm'", "BatchNorm1d", "training mode", r"eval\(\)"]),
    "dropout in training": (
        lambda: nn.Sequential(nn.Linear(1, 5), nn.Dropout(0.5), nn.Linear(5, 1)),
        ["'1'", "Dropout", "training mode", r"eval\(\)"],
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_model_that_is_no_trained_state_is_refused_by_name(kind: str, prepared: Prepare) -> None:
    make, words = MODELS[kind]

    with pytest.raises(JobError) as caught:
        prepared(block(), model=make())
    for word in words:
        assert caught.match(word)


@pytest.mark.parametrize("model", [BatchNormalised, lambda: nn.Sequential(nn.Linear(1, 9), nn.Dropout(0.5))])
def test_same_layers_are_taken_in_evaluation_mode(model: Callable[[], nn.Module], prepared: Prepare) -> None:
    prepared(block(data=(Y,)), model=model().eval())


BLOCKS = {
    "no points": ({"points": X[:0], "data": (Y[:0],)}, ["'fit'", "no points"]),
    "data too short": ({"data": (Y[:29],)}, ["'fit'", r"data\[0\] has 29 rows", "points has 30"]),
    "second data too long": ({"data": (Y, np.zeros((31, 1)))}, [r"data\[1\] has 31 rows"]),
    "negative weight": ({"weight": -1.0}, ["'fit'", r"weight -1\.0", ">= 0"]),
    "NaN weight": ({"weight": float("nan")}, ["weight nan"]),
    "infinite weight": ({"weight": float("inf")}, ["weight inf"]),
    "complex data": ({"data": (Y + 1j,)}, ["'fit'", r"data\[0\] is complex", "two columns"]),
    "complex points": ({"points": X + 0j}, ["points is complex"]),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_block_with_wrong_data_is_refused(kind: str, prepared: Prepare) -> None:
    changes, words = BLOCKS[kind]

    with pytest.raises(JobError) as caught:
        prepared(block(**changes))
    for word in words:
        assert caught.match(word)


def batch_mean(u: Field, x: Tensor, y: Tensor) -> Tensor:
    return u(x) - u(x).mean()


def with_autograd_grad(u: Field, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(u(x).sum(), x)[0]


def writes_into_data(u: Field, x: Tensor, y: Tensor) -> Tensor:
    y -= u(x)
    return y


def writes_into_points(u: Field, x: Tensor, y: Tensor) -> Tensor:
    x *= 2.0
    return u(x)


def writes_out(u: Field, x: Tensor, y: Tensor) -> Tensor:
    out = torch.empty_like(y)
    out[:] = u(x)
    return out


RESIDUALS = {
    "a number": (lambda u, x, y: 0.0, ["returned float", r"tensor of shape \(n,\)"]),
    "a tuple": (lambda u, x, y: (u(x), y), ["returned tuple"]),
    "numpy": (lambda u, x, y: (u(x) - y).numpy(), ["returned ndarray"]),
    "None": (lambda u, x, y: None, ["returned NoneType"]),
    "a sum": (lambda u, x, y: (u(x) - y).square().sum(), [r"returned shape \(\) for 4 points", r"\(4,\)"]),
    "a wrong number of rows": (lambda u, x, y: (u(x) - y)[1:], [r"returned shape \(3, 1\)"]),
    "three dimensions": (lambda u, x, y: (u(x) - y)[:, :, None], [r"returned shape \(4, 1, 1\)"]),
    "no columns": (lambda u, x, y: u(x)[:, :0], [r"returned shape \(4, 0\)"]),
    "broadcast by mistake": (
        lambda u, x, y: u(x)[:, 0] - y,
        [r"returned shape \(4, 4\) for 4 points and \(2, 2\) for 2", "broadcast"],
    ),
    "float32": (lambda u, x, y: (u(x) - y).float(), ["returned torch.float32", "do not cast"]),
    "integers": (lambda u, x, y: (u(x) > y).long(), ["returned torch.int64"]),
    "an error": (lambda u, x, y: u(x, y), ["failed on 4 points", "TypeError"]),
    "a wrong width": (lambda u, x, y: u(torch.cat([x, y], dim=1)), ["failed on 4 points", "takes 1 numbers"]),
    "points mixed": (batch_mean, ["changes with the other points", "row i may depend on point i alone"]),
    "points sorted": (lambda u, x, y: u(x).flip(0), ["changes with the other points"]),
    "autograd.grad": (with_autograd_grad, ["cannot be differentiated", "torch.func"]),
    "writes into data": (writes_into_data, ["writes into its points or data", "in-place"]),
    "writes into points": (writes_into_points, ["writes into its points or data", "in-place"]),
}


@pytest.mark.parametrize("kind", RESIDUALS)
def test_residual_that_breaks_the_contract_is_refused_by_name(kind: str, prepared: Prepare) -> None:
    residual, words = RESIDUALS[kind]

    with pytest.raises(JobError) as caught:
        prepared(block(residual))
    assert caught.match("'fit'")
    for word in words:
        assert caught.match(word)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_number_in_the_data_is_named_with_its_point(bad: float, prepared: Prepare) -> None:
    y = Y.clone()
    y[17] = bad
    problem = prepared(block(data=(y,)), settings=RefineSettings(held_out=HeldOutSettings(fraction=0.0),
                                                                 subspace=SETTINGS.subspace))  # fmt: skip

    with pytest.raises(JobError, match=r"'fit' is -?(nan|inf) at point \[0\.172") as caught:
        problem.fit.require_finite(problem.fit.residual(problem.model.field()), "is")
    assert "data" in str(caught.value)


def test_blocks_of_one_name_are_refused(prepared: Prepare) -> None:
    with pytest.raises(JobError, match="two residual blocks are called 'fit'"):
        prepared(block(), block())
    with pytest.raises(JobError, match="two residual blocks are called 'fit'"):
        prepared(block(), validation=[block()])


def test_problem_without_anything_to_do_is_refused(prepared: Prepare) -> None:
    with pytest.raises(JobError, match="'mine' has no residual block"):
        prepared()
    with pytest.raises(JobError, match="every residual block has weight 0"):
        prepared(block(weight=0.0))
    with pytest.raises(JobError, match="every validation block has weight 0"):
        prepared(block(), validation=[block(name="truth", weight=0.0)])


def test_block_of_weight_zero_is_checked_and_left_out(prepared: Prepare) -> None:
    idle = block(name="idle", weight=0.0)
    problem = prepared(block(), idle, validation=[block(name="truth"), block(name="shown", weight=0.0)])
    assert [b.name for b in problem.fit_rows.blocks] == ["fit"]
    assert [b.name for b in problem.held_rows.blocks] == ["truth"]
    with pytest.raises(JobError, match="'idle' failed on"):
        prepared(block(), block(lambda u, x: u(x) + 0, name="idle", weight=0.0))


EVALUATIONS = {
    "empty": ({"inputs": (X[:0],), "reference": Y[:0]}, r"inputs\[0\] is empty"),
    "mismatched": (
        {"inputs": (X, X[:5]), "reference": Y},
        r"inputs\[1\] has 5 rows, evaluation.reference has 30",
    ),
    "NaN": (
        {"inputs": (X,), "reference": Y / torch.where(Y == Y[3], 0.0, 1.0)},
        "reference holds NaN or Inf",
    ),
    "NaN inputs": ({"inputs": (X / 0.0,), "reference": Y}, r"inputs\[0\] holds NaN or Inf"),
    "list": ({"inputs": (X.tolist(),), "reference": Y}, r"inputs\[0\] is a list"),
    "wrong width": (
        {"inputs": (torch.hstack([X, X]),), "reference": Y},
        r"model failed on evaluation.inputs of shape \(4, 2\)",
    ),
    "wrong outputs": (
        {"inputs": (X,), "reference": torch.hstack([Y, Y])},
        r"to \(4, 1\), but evaluation.reference has shape \(4, 2\)",
    ),
    "flat": ({"inputs": (X,), "reference": Y[:, 0]}, r"evaluation.reference has shape \(4,\)"),
}


@pytest.mark.parametrize("kind", EVALUATIONS)
def test_wrong_evaluation_data_is_refused(kind: str, prepared: Prepare) -> None:
    arguments, words = EVALUATIONS[kind]

    with pytest.raises(JobError, match=words):
        prepared(block(), evaluation=Evaluation(**arguments))


def test_rank_beyond_the_problem_is_refused_with_what_would_fit(prepared: Prepare) -> None:
    # 24 rows are left to fit, and the network has 19 parameters.
    with pytest.raises(
        JobError,
        match=r"subspace.rank = 25.*24 fitted rows and 19 parameters that may change: use at most 19",
    ):
        prepared(block(), settings=RefineSettings(subspace=SubspaceSettings(rank=25)))
    with pytest.raises(JobError, match="use at most 15"):
        prepared(
            block(points=X[:15], data=(Y[:15],)), settings=RefineSettings(subspace=SubspaceSettings(rank=16))
        )


@pytest.mark.parametrize(("rank", "oversampling"), [(4, 10), (12, 7), (19, 0)])
def test_oversampling_is_lowered_to_what_the_problem_leaves(
    rank: int, oversampling: int, prepared: Prepare
) -> None:
    # 19 parameters.
    settings = prepared(block(), settings=RefineSettings(subspace=SubspaceSettings(rank=rank))).settings

    assert (settings.subspace.rank, settings.subspace.oversampling) == (rank, oversampling)


class WithIdleLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_parameters_that_no_residual_depends_on_are_named(
    prepared: Prepare, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="lsr_hpc"):
        prepared(
            block(),
            model=WithIdleLayer(),
            settings=RefineSettings(subspace=SubspaceSettings(rank=2, oversampling=0)),
        )

    (record,) = caplog.records
    message = record.getMessage()
    assert "idle.weight, idle.bias" in message
    assert "used" not in message


def test_residual_cut_off_from_the_network_is_warned_of(
    prepared: Prepare, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="lsr_hpc"):
        prepared(block(lambda u, x, y: u(x).detach() - y))

    assert "no residual depends on parameter layers.0.weight" in caplog.text


def test_no_warning_where_every_parameter_counts(prepared: Prepare, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lsr_hpc"):
        prepared(block())

    assert not caplog.records


def second_in_reverse(u: Field, x: Tensor, y: Tensor) -> Tensor:
    def value(point: Tensor) -> Tensor:
        return u(point.unsqueeze(0)).sum()

    return torch.func.vmap(torch.func.hessian(value))(x).reshape(-1, 1) - y


ACCEPTED = {
    "flat": lambda u, x, y: (u(x) - y)[:, 0],
    "wide": lambda u, x, y: torch.cat([u(x) - y, u(x) * y, x], dim=1),
    "unused data": lambda u, x, y: u(x),
    "writes into its own tensor": writes_out,
    "steps on its own values": lambda u, x, y: u(x).mul_(2.0).sub_(y),
    "abs at a kink": lambda u, x, y: (u(x) - y).abs(),
    "input derivative in reverse mode": lambda u, x, y: torch.func.grad(lambda z: u(z).sum())(x) - y,
    "second one in reverse mode": second_in_reverse,
    "where": lambda u, x, y: torch.where(x > 0, u(x) - y, u(x)),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_residual_within_the_contract_is_taken_and_leaves_the_data_alone(
    kind: str, prepared: Prepare
) -> None:
    x, y = X.clone(), Y.clone()
    problem = prepared(block(ACCEPTED[kind], points=x, data=(y,)))
    first = problem.fit.residual(problem.model.field())

    assert torch.equal(problem.fit.residual(problem.model.field()), first)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_accurate_network_of_any_scale_is_not_taken_for_one_that_mixes_points(
    scale: float, prepared: Prepare
) -> None:
    # u is right to seven digits, so the residual holds nine of sixteen, and products round by the batch size.
    torch.manual_seed(1)
    model = MLP([1, 200, 200, 1])
    with torch.no_grad():
        model.layers[-1].weight.mul_(scale)
    values = FunctionalModel(model).field()(X)
    prepared(block(data=(values * (1 + 1e-7 * torch.randn(30, 1)),)), model=model)


def test_blocks_of_a_single_point_are_taken(prepared: Prepare) -> None:
    problem = prepared(block(), block(name="anchor", points=X[:1], data=(Y[:1],)))

    assert problem.n_rows == 31


def composite_loss(model: nn.Module, blocks: list[ResidualBlock]) -> float:
    """The loss as anyone would write it down: weighted means of squares."""
    field = model.double()
    with torch.no_grad():
        return float(sum(b.weight * b.residual(field, b.points, *b.data).square().mean() for b in blocks))


@pytest.mark.parametrize("held_out", [0.0, 0.2, 0.5])
def test_squared_norm_of_all_rows_is_the_composite_loss(held_out: float, prepared: Prepare) -> None:
    blocks = [
        block(weight=0.7),
        block(lambda u, x, y: torch.cat([u(x), u(x) - y, x * u(x)], dim=1), name="three columns", weight=3.0),
        block(name="anchor", points=X[:1], data=(Y[:1],), weight=20.0),
        block(name="switched off", weight=0.0),
    ]
    model = network()
    settings = RefineSettings(subspace=SETTINGS.subspace, held_out=HeldOutSettings(fraction=held_out))
    problem = prepared(*blocks, model=model, settings=settings)
    field = problem.model.field()
    total = sum(float(rows.residual(field).square().sum()) for rows in (problem.fit, problem.held))

    # The same products in another order, in float64.
    assert total == pytest.approx(composite_loss(model, blocks), rel=1e-13)
    assert problem.n_rows == 30 + 90 + 1


def test_weight_of_a_block_does_not_depend_on_its_number_of_points(prepared: Prepare) -> None:
    # The same function sampled ten times as densely weighs the same, up to the sampling of an even grid.
    def squared_norm(n: int) -> float:
        x = (torch.arange(n).double()[:, None] + 0.5) / n
        problem = prepared(block(points=x, data=(torch.sin(3 * x),)), settings=RefineSettings(
            subspace=SETTINGS.subspace, held_out=HeldOutSettings(fraction=0.0)))  # fmt: skip
        return float(problem.fit.residual(problem.model.field()).square().sum())

    assert squared_norm(2000) == pytest.approx(squared_norm(200), rel=1e-3)


def test_validation_data_of_the_user_replace_the_held_out_fraction(prepared: Prepare) -> None:
    problem = prepared(block(), validation=[block(name="mine", points=X[:8], data=(Y[:8],), weight=2.0)])

    assert (problem.fit.n_rows, problem.held.n_rows) == (30, 8)
    assert problem.n_rows == 30
    expected = 2.0 * float((problem.model.field()(X[:8]) - Y[:8]).square().mean())
    assert float(problem.held.residual(problem.model.field()).square().sum()) == pytest.approx(
        expected, rel=1e-13
    )


def test_problem_leaves_model_and_data_as_they_were(prepared: Prepare) -> None:
    model = network()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    prepared(block(), model=model)

    assert all(t.dtype == torch.float32 and torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_functional_model_is_the_network_in_float64() -> None:
    model = network()
    functional = FunctionalModel(model)

    assert functional.theta0.dtype == torch.float64
    expected = model.double()(X)
    assert torch.equal(functional.field()(X), expected.detach())
    assert torch.equal(functional.field(functional.theta0)(X), expected.detach())


def test_error_is_the_mean_over_groups_of_the_outputs_with_a_reference() -> None:
    rng = np.random.default_rng(0)
    reference, values = rng.standard_normal((6, 2)), rng.standard_normal((6, 3))
    # A group whose reference is zero has an absolute error.
    reference[4:] = 0
    x = torch.zeros(6, 1, dtype=torch.float64)
    evaluation = Evaluation(inputs=(x,), reference=torch.from_numpy(reference), outputs=(2, 0), groups=3)
    norms = [np.linalg.norm(reference[i : i + 2]) or 1.0 for i in (0, 2, 4)]
    by_hand = [np.linalg.norm(values[i : i + 2, [2, 0]] - reference[i : i + 2]) for i in (0, 2, 4)]
    expected = np.mean(np.array(by_hand) / norms)
    assert evaluation.error(torch.from_numpy(values)) == pytest.approx(expected, rel=1e-14)
