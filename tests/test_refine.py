"""One-shot LSR end to end in one process: unwelcome outcomes, and what the figures mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsr_hpc import (
    ComputeSettings,
    Evaluation,
    HeldOutSettings,
    Problem,
    RefinedPredictor,
    RefineResult,
    RefineSettings,
    ResidualBlock,
    SolverSettings,
    SubspaceSettings,
    refine,
)
from lsr_hpc.errors import JobError
from lsr_hpc.models import MLP
from lsr_hpc.result import Outcome

X = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
Y = torch.sin(3 * X)


def misfit(u: Any, x: Tensor, y: Tensor) -> Tensor:
    return u(x) - y


def problem(residual: Any = misfit, model: nn.Module | None = None, **changes: Any) -> Problem:
    torch.manual_seed(0)
    block = ResidualBlock(**({"name": "fit", "residual": residual, "points": X, "data": (Y,)} | changes))
    return Problem(
        name="sine",
        model=model or MLP([1, 12, 12, 1]),
        blocks=[block],
        evaluation=Evaluation(inputs=(X,), reference=Y),
    )


def settings(rank: int = 30, fraction: float = 0.2, **solver: Any) -> RefineSettings:
    return RefineSettings(
        subspace=SubspaceSettings(rank=rank),
        held_out=HeldOutSettings(fraction=fraction),
        solver=SolverSettings(**solver),
        compute=ComputeSettings(device="cpu"),
    )


def loss_root(field: Any, points: Tensor = X, target: Tensor = Y) -> float:
    return float((field(points) - target).detach().square().mean().sqrt())


def assert_kept_the_start(result: RefineResult) -> None:
    assert result.outcome is Outcome.REFUSED
    assert result.rank == 0
    assert not result.delta.any()
    assert result.error_after == result.error_before
    assert result.residual_true == result.residual_linear == result.residual_before


def test_regression_is_refined_and_every_figure_is_that_of_the_predictor() -> None:
    made = problem()
    result = refine(made, settings=settings())

    assert result.outcome is Outcome.REFINED
    assert not result.advice
    predictor = RefinedPredictor(made.model, torch.from_numpy(result.delta))
    assert result.residual_before == pytest.approx(loss_root(made.model.double()), rel=1e-12)
    assert result.residual_true == pytest.approx(loss_root(predictor), rel=1e-9)
    assert result.residual_linear == pytest.approx(result.residual_true, rel=1e-6)
    assert result.error_after == pytest.approx(loss_root(predictor) / loss_root(torch.zeros_like), rel=1e-9)
    assert result.error_after < 1e-4 * result.error_before


def test_step_out_of_the_domain_of_the_residual_is_refused() -> None:
    # log u at points where the linear step passes zero.
    def logarithm(u: Any, x: Tensor) -> Tensor:
        return torch.log(u(x) + 0.5) + 12 * (1 + x.abs())

    result = refine(problem(logarithm, data=()), settings=settings(resolve=False))

    assert_kept_the_start(result)
    assert any("is NaN or Inf, so the start is kept" in sentence for sentence in result.advice)


def test_step_that_raises_the_true_residual_is_refused() -> None:
    def steep(u: Any, x: Tensor) -> Tensor:
        return torch.exp(-8 * u(x)) - 4 - 3 * x

    result = refine(problem(steep, data=()), settings=settings(resolve=False))

    assert_kept_the_start(result)
    assert any("that of the refined field grows to" in sentence for sentence in result.advice)


def test_zero_residual_leaves_nothing_to_refine() -> None:
    for solver in ({}, {"type": "lsqr", "space": "full"}):
        result = refine(problem(lambda u, x, y: u(x) - u(x).detach()), settings=settings(**solver))
        assert_kept_the_start(result)
        assert result.advice == ["the residual is zero on every row already: nothing is left to refine"]


def test_residual_whose_square_overflows_is_refused_in_words() -> None:
    with pytest.raises(JobError, match="overflows float64"):
        refine(problem(lambda u, x, y: 1e200 * (u(x) - y)), settings=settings())


@pytest.mark.parametrize("solver", [{}, {"type": "lsqr", "space": "full", "max_iterations": 20}])
def test_rank_that_no_row_judged_is_said(solver: dict[str, Any]) -> None:
    result = refine(problem(), settings=settings(fraction=0.0, **solver))
    assert any("no row was held out" in sentence for sentence in result.advice)


def test_damping_that_is_asked_for_is_no_inexact_solve() -> None:
    result = refine(problem(), settings=settings(mu=1e-2))

    assert result.outcome is Outcome.REFINED
    assert not result.advice
    assert result.checks["reduced_gradient"] < 1e-10


@pytest.mark.parametrize(
    "solver", [{"refit": False}, {"type": "lsqr", "space": "full", "max_iterations": 30}]
)
def test_figures_of_a_fit_to_a_part_of_the_rows_are_on_the_scale_of_the_loss(solver: dict[str, Any]) -> None:
    # A residual of one everywhere: the root of its mean square is one over any part of the points.
    block = ResidualBlock(name="one", residual=lambda u, x: u(x) - u(x).detach() + 1, points=X)
    result = refine(replace(problem(), blocks=[block]), settings=settings(fraction=0.5, **solver))

    assert result.residual_before == pytest.approx(1.0, rel=1e-12)


class Moody(nn.Module):
    """A layer of the user's own that behaves differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLP([1, 12, 12, 1])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x) * (3.0 if self.training else 1.0)
        return out


def test_fit_and_predictor_are_one_function_whatever_mode_the_model_is_in() -> None:
    made = problem(model=Moody().train())
    result = refine(made, settings=settings())

    assert made.model.training
    predictor = RefinedPredictor(made.model, torch.from_numpy(result.delta))
    assert result.residual_true == pytest.approx(loss_root(predictor), rel=1e-9)


def test_points_that_require_gradients_and_numpy_data_are_taken() -> None:
    plain = refine(problem(), settings=settings())
    other = problem(points=X.clone().requires_grad_(), data=(Y.numpy(),))
    other = replace(other, evaluation=Evaluation(inputs=(X.numpy(),), reference=Y.numpy()))

    result = refine(other, settings=settings())

    np.testing.assert_array_equal(result.delta, plain.delta)
    assert result.error_after == plain.error_after


def test_parameter_subset_is_the_network_with_the_others_frozen() -> None:
    chosen = replace(settings(), subspace=SubspaceSettings(rank=30, parameters=("layers.2.*",)))
    result = refine(problem(), settings=chosen)

    frozen = problem()
    for name, parameter in frozen.model.named_parameters():
        parameter.requires_grad_(name.startswith("layers.2."))
    expected = refine(frozen, settings=settings())
    # 12 + 12 numbers of the first layer come before, 13 of the last behind.
    np.testing.assert_allclose(result.delta[24:-13], expected.delta, atol=1e-9)
    assert not result.delta[:24].any()
    assert not result.delta[-13:].any()
    assert result.error_after is not None
    assert result.error_after == pytest.approx(expected.error_after, rel=1e-6)


def test_random_share_of_the_parameters_still_refines() -> None:
    chosen = replace(settings(), subspace=SubspaceSettings(rank=30, parameter_fraction=0.5))
    result = refine(problem(), settings=chosen)

    assert 0.3 < np.count_nonzero(result.delta) / len(result.delta) < 0.7
    assert result.error_before is not None
    assert result.error_after is not None
    assert result.error_after < 1e-3 * result.error_before


def test_adaptive_growth_ends_on_noise_and_keeps_the_result() -> None:
    noise = 1e-1 * torch.randn(2000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = 2 * torch.rand(2000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 1
    y = torch.sin(3 * x).prod(dim=1, keepdim=True)
    torch.manual_seed(0)
    made = problem(model=MLP([2, 24, 24, 1]), points=x, data=(y + noise,))
    made = replace(made, evaluation=Evaluation(inputs=(x,), reference=y))
    grown, whole = (
        refine(
            made,
            settings=replace(settings(), subspace=SubspaceSettings(rank=200, width=8, adaptive=adaptive)),
        )
        for adaptive in (True, False)
    )

    assert grown.rank_max < whole.rank_max
    assert grown.error_after is not None
    assert whole.error_after is not None
    assert grown.error_after < 1.5 * whole.error_after
    assert grown.counts["jv_columns"] < whole.counts["jv_columns"]


def test_subspace_that_cannot_reach_the_residual_is_said() -> None:
    chosen = replace(settings(), subspace=SubspaceSettings(rank=2, basis="random"))
    high = problem(data=(torch.sin(40 * X),))
    result = refine(high, settings=chosen)

    reach = result.checks["explained_share"] ** 0.5
    assert reach < 0.3
    assert any(f"reaches only {reach:.2g} of the residual" in sentence for sentence in result.advice)


@pytest.mark.parametrize("cut", [None, 1e-4])
def test_cut_leaves_out_directions_of_small_singular_values(cut: float | None) -> None:
    subspace = SubspaceSettings(rank=100, basis="random")
    result = refine(problem(), settings=replace(settings(cut=cut), subspace=subspace))
    threshold = 100 * np.finfo(float).eps if cut is None else cut

    relative = np.array(result.singular_values) / result.singular_values[0]
    left_out = int(np.sum(relative <= threshold))
    assert 0 < left_out < result.rank_max
    assert result.checks["directions_cut"] == left_out
    assert result.scan[-1]["rank"] == result.rank_max - left_out
    assert f"{left_out} of {result.rank_max} directions left out" in result.detail["solve"]
    assert result.checks["condition"] == pytest.approx(1 / relative[result.rank - 1], rel=1e-12)


def test_error_of_groups_is_the_mean_of_theirs_and_the_worst_is_told() -> None:
    made = problem()
    assert made.evaluation is not None
    grouped = replace(made, evaluation=replace(made.evaluation, groups=4))
    result = refine(grouped, settings=settings())
    (x,), y = made.evaluation.take(slice(None))
    predictor = RefinedPredictor(made.model, torch.from_numpy(result.delta))

    for field, mean, worst in (
        (
            RefinedPredictor(made.model, torch.zeros(len(result.delta))),
            result.error_before,
            "worst_error_before",
        ),
        (predictor, result.error_after, "worst_error"),
    ):
        quarters = zip((field(x) - y).chunk(4), y.chunk(4), strict=True)
        errors = [float(misfit.norm() / part.norm()) for misfit, part in quarters]
        assert mean == pytest.approx(np.mean(errors), rel=1e-9)
        assert result.checks[worst] == pytest.approx(max(errors), rel=1e-9)
    assert "worst_error" not in refine(made, settings=settings()).checks


def test_residual_components_are_those_along_the_left_singular_vectors_of_the_jacobian() -> None:
    model = MLP([1, 6, 1])
    made = problem(model=model)
    whole = sum(p.numel() for p in model.parameters())
    result = refine(made, settings=settings(rank=whole, fraction=0.0, cut=1e-9))

    # J entry by entry; the subspace is all of parameter space, so U is that of J itself.
    module = model.double()
    rows = []
    for x in X:
        module.zero_grad()
        module(x[None]).sum().backward()
        rows.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    u, s, _ = np.linalg.svd(torch.stack(rows).numpy(), full_matrices=False)
    r0 = (module(X) - Y).detach().numpy()[:, 0]
    n = len(result.residual_components)
    assert n >= 8
    # Singular vectors of the smallest values are known the least well: eps over the relative cut.
    np.testing.assert_allclose(
        result.residual_components, abs(u[:, :n].T @ r0) / np.linalg.norm(r0), atol=1e-6
    )
    np.testing.assert_allclose(np.array(result.singular_values[:n]) * np.sqrt(len(X)), s[:n], rtol=1e-6)


def test_true_residual_at_the_chosen_rank_is_on_the_scale_of_the_scan() -> None:
    made = problem()
    result = refine(made, settings=settings(refit=False))
    (chosen,) = [entry for entry in result.scan if entry["true"] is not None]

    assert chosen["rank"] == result.rank
    # The residual is linear in u, so that the true residual on the fitted rows is what the scan says.
    assert chosen["true"] == pytest.approx(chosen["train"], rel=1e-6)
