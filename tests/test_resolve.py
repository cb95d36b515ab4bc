"""Re-solve on the true residual, against Gauss-Newton on a dense float64 problem written out here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import jacrev

from lsr_hpc import (
    ComputeSettings,
    Evaluation,
    HeldOutSettings,
    Problem,
    RefineResult,
    RefineSettings,
    ResidualBlock,
    SolverSettings,
    SubspaceSettings,
    refine,
)
from lsr_hpc.channels import find_channels
from lsr_hpc.derivatives import along, second_along, value_and_along, value_and_two_along
from lsr_hpc.errors import JobError, LsrError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.probe import probe_block
from lsr_hpc.models import MLP
from lsr_hpc.result import Outcome
from lsr_hpc.rows import Segment

Array = NDArray[np.float64]
T = torch.linspace(0, 2, 150, dtype=torch.float64)[:, None]


def riccati(u: Any, t: Tensor) -> Tensor:
    """u' + u^2 = 1, whose solution from u(0) = 0 is tanh t."""
    value, slope = value_and_along(u, t)
    return slope + value**2 - 1


def linear(u: Any, t: Tensor) -> Tensor:
    return along(u, t) + u(t) - 1


def ode(residual: Any = riccati, points: Tensor = T, solution: Any = torch.tanh) -> Problem:
    torch.manual_seed(2)
    return Problem(
        name="ode",
        model=MLP([1, 10, 10, 1]),
        blocks=[
            ResidualBlock(name="equation", residual=residual, points=points),
            ResidualBlock(name="start", residual=lambda u, t: u(t), points=points[:1], weight=5.0),
        ],
        evaluation=Evaluation(inputs=(points,), reference=solution(points)),
    )


def settings(rank: int = 24, fraction: float = 0.2, basis: str = "svd", **solver: Any) -> RefineSettings:
    return RefineSettings(
        subspace=SubspaceSettings(rank=rank, basis=basis, iterations=4),
        held_out=HeldOutSettings(fraction=fraction),
        solver=SolverSettings(**solver),
        compute=ComputeSettings(device="cpu", memory_per_rank="2GiB"),
    )


def dense_field(model: MLP, t: Tensor) -> tuple[Array, Array, Array, Array]:
    """u, u', and their Jacobians with respect to the parameters at the start, by reverse mode alone."""
    model = model.double()
    names = [name for name, _ in model.named_parameters()]
    start = {name: p.detach() for name, p in model.named_parameters()}

    def value(tensors: dict[str, Tensor], at: Tensor) -> Tensor:
        return torch.func.functional_call(model, tensors, (at[:, None],))[:, 0]

    def slope(tensors: dict[str, Tensor]) -> Tensor:
        return torch.func.grad(lambda at: value(tensors, at).sum())(t[:, 0])

    def flat(gradients: dict[str, Tensor]) -> Array:
        return np.asarray(torch.cat([gradients[n].flatten(1) for n in names], 1).numpy())

    return (
        value(start, t[:, 0]).numpy(),
        slope(start).detach().numpy(),
        flat(jacrev(lambda p: value(p, t[:, 0]))(start)),
        flat(jacrev(slope)(start)),
    )


class DenseRiccati:
    """The problem ``ode()`` as a dense nonlinear least-squares problem in delta."""

    def __init__(self) -> None:
        self.u, self.du, self.g, self.dg = dense_field(ode().model, T)

    def residual(self, delta: Array) -> Array:
        u, du = self.u + self.g @ delta, self.du + self.dg @ delta
        return np.concatenate([(du + u**2 - 1) / np.sqrt(len(u)), np.sqrt(5) * u[:1]])

    def jacobian(self, delta: Array) -> Array:
        u = self.u + self.g @ delta
        return np.vstack([(self.dg + 2 * u[:, None] * self.g) / np.sqrt(len(u)), np.sqrt(5) * self.g[:1]])


def gauss_newton(dense: DenseRiccati, v: Array) -> Array:
    """Undamped, to stagnation, in the columns of v."""
    c = np.zeros(v.shape[1])
    for _ in range(30):
        c += np.linalg.lstsq(dense.jacobian(v @ c) @ v, -dense.residual(v @ c), rcond=None)[0]
    return v @ c


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps until nothing falls any more, to compare with a solution that is exact to rounding."""
    monkeypatch.setattr("lsr_hpc.gauss_newton._SMALL_FALL", 0.0)
    monkeypatch.setattr("lsr_hpc.resolve._SMALL_EXCESS", 0.0)
    monkeypatch.setattr("lsr_hpc.resolve._SHARES", (1.0,))


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("cached", [True, False])
def test_solution_is_that_of_a_dense_gauss_newton(cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cached:
        monkeypatch.setattr("lsr_hpc.response._AGREEMENT", -1.0)
    dense = DenseRiccati()
    rank = 8
    result = refine(ode(), settings=settings(rank, fraction=0.0, resolve_steps=40))
    v = np.linalg.svd(dense.jacobian(np.zeros(dense.g.shape[1])))[2][:rank].T
    expected = gauss_newton(dense, v)

    one_shot = refine(ode(), settings=settings(rank, fraction=0.0, resolve=False))
    assert ("cached" in result.detail["solve"]) == cached
    assert result.rank == rank
    scale = np.linalg.norm(dense.g @ expected)
    assert np.linalg.norm(dense.g @ (result.delta - expected)) <= 1e-9 * scale
    # The comparison means something: the one-shot solution is far from it.
    assert np.linalg.norm(dense.g @ (one_shot.delta - expected)) > 1e-2 * scale


@pytest.mark.usefixtures("whole")
def test_tikhonov_damping_is_that_of_the_whole_step() -> None:
    dense, mu = DenseRiccati(), 0.05
    rank = 8
    result = refine(ode(), settings=settings(rank, fraction=0.0, mu=mu, resolve_steps=40))
    v = np.linalg.svd(dense.jacobian(np.zeros(dense.g.shape[1])))[2][:rank].T
    c = v.T @ result.delta
    gradient = (dense.jacobian(v @ c) @ v).T @ dense.residual(v @ c) + mu**2 * c

    np.testing.assert_allclose(v @ c, result.delta, atol=1e-9 * np.linalg.norm(result.delta))
    assert np.linalg.norm(gradient) <= 1e-7 * np.linalg.norm(mu**2 * c)


def test_it_gains_what_one_shot_cannot() -> None:
    one_shot = refine(ode(), settings=settings(resolve=False, basis="krylov"))
    result = refine(ode(), settings=settings(basis="krylov"))

    assert result.outcome is Outcome.REFINED
    assert result.checks["resolve_steps"] >= 2
    assert result.seconds["resolve"] > 0
    assert one_shot.error_after is not None
    assert result.error_after is not None
    assert result.error_after < 1e-2 * one_shot.error_after
    assert result.residual_true < 1e-2 * one_shot.residual_true
    assert result.residual_linear == one_shot.residual_linear
    assert any("set solver.resolve" in advice for advice in one_shot.advice)
    assert not result.advice
    train = [entry["train"] for entry in result.scan]
    assert train == sorted(train, reverse=True)
    assert result.rank in [entry["rank"] for entry in result.scan]


@pytest.mark.parametrize("solver", [{}, {"resolve": "auto"}])
def test_linear_residual_is_left_alone(solver: dict[str, Any]) -> None:
    made = ode(linear, solution=lambda t: 1 - torch.exp(-t))
    expected = refine(made, settings=settings(resolve=False))
    result = refine(made, settings=settings(**solver))

    np.testing.assert_array_equal(result.delta, expected.delta)
    assert result.checks["resolve_steps"] == 0
    assert result.scan == expected.scan


def test_forced_on_a_linear_residual_it_changes_nothing_that_counts() -> None:
    made = ode(linear, solution=lambda t: 1 - torch.exp(-t))
    expected = refine(made, settings=settings(resolve=False, rank=8))
    result = refine(made, settings=settings(resolve=True, rank=8))

    assert 1 <= result.checks["resolve_steps"] <= 8
    assert result.residual_true <= 1.01 * expected.residual_true


def test_start_that_one_shot_cannot_leave_is_left_by_damped_steps() -> None:
    def steep(u: Any, t: Tensor) -> Tensor:
        return torch.exp(-8 * u(t)) - 4 - 3 * t

    made = replace(ode(), blocks=[ResidualBlock(name="steep", residual=steep, points=T)], evaluation=None)
    refused = refine(made, settings=settings(resolve=False))
    result = refine(made, settings=settings(resolve_steps=30))

    assert refused.outcome is Outcome.REFUSED
    assert result.outcome is Outcome.REFINED
    assert result.residual_true < 1e-2 * result.residual_before


@pytest.mark.usefixtures("whole")
def test_too_few_steps_are_said() -> None:
    result = refine(ode(), settings=settings(8, fraction=0.0, resolve_steps=1))

    assert any("raise solver.resolve_steps" in advice for advice in result.advice)


def test_held_out_rows_refuse_where_rows_hardly_exceed_the_rank() -> None:
    """Few points with noise in the equation: many directions fit it, and the held-out rows see that."""
    generator = torch.Generator().manual_seed(0)
    points = T[::3]
    noise = 3.0 * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    block = ResidualBlock(
        name="noisy", residual=lambda u, t, e: riccati(u, t) + e, points=points, data=(noise,)
    )
    result = refine(replace(ode(), blocks=[block]), settings=settings(20, 0.5, resolve=True))

    assert result.rank < 16
    held = {entry["rank"]: entry["held_out"] for entry in result.scan}
    assert held[result.rank] <= 1.2 * min(held.values())


def test_full_space_has_no_resolve() -> None:
    with pytest.raises(JobError, match=r"solver\.resolve = true needs"):
        SolverSettings(type="lsqr", space="full", resolve=True)
    with pytest.raises(JobError, match=r"solver\.resolve = 'always'"):
        SolverSettings(resolve="always")
    result = refine(ode(), settings=settings(type="lsqr", space="full", max_iterations=20))
    assert result.checks["resolve_steps"] == 0


def test_memory_without_room_for_the_modes_takes_the_differentiated_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plenty = refine(ode(), settings=settings(basis="krylov"))
    monkeypatch.setattr("lsr_hpc.response.room_for_modes", lambda prepared: 1000)
    result = refine(ode(), settings=settings(basis="krylov"))

    assert "automatic differentiation" in result.detail["solve"]
    assert "cached" in plenty.detail["solve"]
    assert result.error_after == pytest.approx(plenty.error_after, rel=1e-3)


@pytest.mark.parametrize("share", [{"parameters": ("layers.2.*",)}, {"parameter_fraction": 0.5}])
@pytest.mark.parametrize("cached", [True, False])
def test_frozen_parameters_stay(share: dict[str, Any], cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cached:
        monkeypatch.setattr("lsr_hpc.response._AGREEMENT", -1.0)
    chosen = settings(16, basis="krylov")
    chosen = replace(chosen, subspace=replace(chosen.subspace, **share))
    one_shot = refine(ode(), settings=replace(chosen, solver=SolverSettings(resolve=False)))
    result = refine(ode(), settings=chosen)

    assert result.checks["resolve_steps"] > 0
    assert not result.delta[one_shot.delta == 0].any()
    assert result.residual_true < 0.5 * one_shot.residual_true


def derivative_by_gradient(u: Any, t: Tensor) -> Tensor:
    return torch.func.grad(lambda at: u(at).sum())(t) + u(t) ** 2 - 1


def shifted(u: Any, t: Tensor) -> Tensor:
    """Evaluated where u itself says: no derivative of the field at a fixed point."""
    return along(u, t + 0.1 * u(t)) + u(t) ** 2 - 1


@pytest.mark.parametrize("residual", [derivative_by_gradient, shifted])
def test_residual_without_channels_is_differentiated(residual: Any) -> None:
    one_shot = refine(ode(residual), settings=settings(basis="krylov", resolve=False))
    result = refine(ode(residual), settings=settings(basis="krylov"))

    assert "automatic differentiation" in result.detail["solve"]
    assert result.residual_true < 0.1 * one_shot.residual_true


def mixed(u: Any, x: Tensor, a: Tensor) -> Tensor:
    """Two components with products of derivatives up to a mixed second one, and a moved point."""
    value, u_x, u_xx = value_and_two_along(u, x, 0)
    u_xy = along(lambda z: along(u, z, 0), x, 1)
    first = value * u_x - 0.1 * u_xx * a + u_xy**2
    return torch.cat([first, torch.sin(u(x + 1.0)) + second_along(u, x, 1)], dim=1)


def test_channels_give_the_residual_and_its_derivative_of_any_field() -> None:
    torch.manual_seed(1)
    model = FunctionalModel(MLP([2, 9, 9, 2]))
    x, a = torch.rand(11, 2, dtype=torch.float64), torch.rand(11, 1, dtype=torch.float64)
    block = ResidualBlock(name="mixed", residual=mixed, points=x, data=(a,))
    found = find_channels(Segment(block, probe_block(block, model), (x, a), 1.7), model)
    # u, u_x, u_xx, u_y, u_xy, u_yy, and u at the moved point: two components each.
    assert found.width == 14
    assert found.rows is not None

    delta = 0.3 * torch.randn(2, model.layout.size, dtype=torch.float64)
    q0, q1 = (found.rows.residual(model.refined_field(d)).view(11, -1) for d in delta)
    direct = found.segment.residual(model.refined_field(delta[0]))
    torch.testing.assert_close(found.residual(q0), direct, rtol=1e-12, atol=1e-12)

    h = 1e-6
    central = (found.residual(q0 + h * (q1 - q0)) - found.residual(q0 - h * (q1 - q0))) / (2 * h)
    along_it = torch.einsum("nme,ne->nm", found.derivative(q0), q1 - q0).reshape(-1)
    torch.testing.assert_close(along_it, central, rtol=1e-7, atol=1e-7)


def test_nan_of_a_trial_ends_in_shorter_steps() -> None:
    def logarithm(u: Any, t: Tensor) -> Tensor:
        return torch.log(u(t) + 0.5) + 1 + t

    made = replace(ode(), blocks=[ResidualBlock(name="log", residual=logarithm, points=T)], evaluation=None)
    result: RefineResult = refine(made, settings=settings(resolve_steps=30))

    assert result.outcome is Outcome.REFINED
    assert np.isfinite(result.residual_true)
    assert result.residual_true < 0.1 * result.residual_before


def test_error_of_the_residual_in_a_step_is_raised() -> None:
    calls = [0]

    def failing(u: Any, t: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] > limit:
            raise ZeroDivisionError("deliberate")
        return riccati(u, t)

    limit = 10**9
    refine(ode(failing), settings=settings(resolve=False))
    limit, calls[0] = calls[0] - 2, 0
    with pytest.raises(LsrError, match="deliberate"):
        refine(ode(failing), settings=settings(resolve=True))
