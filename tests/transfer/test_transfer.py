"""Conditions solved from response modes, against dense solutions of the same spaces written out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, jacrev

from lsr_hpc import (
    ComputeSettings,
    HeldOutSettings,
    ProblemFamily,
    RefineSettings,
    ResidualBlock,
    SolverSettings,
    SubspaceSettings,
)
from lsr_hpc.errors import JobError
from lsr_hpc.phases import Phases
from lsr_hpc.prepare import prepare
from lsr_hpc.problem import Problem
from lsr_hpc.result import Outcome
from lsr_hpc.snapshot import MemoryState
from lsr_hpc.transfer import (
    FailedTarget,
    SolvedTarget,
    TransferSpace,
    compute_modes,
    digest_of_modes,
    solve_targets,
    spread,
)
from tests.transfer.conditions import WEIGHT, X, coefficient, condition, family, forcing, network

Array = NDArray[np.float64]


def settings(rank: int = 12, fraction: float = 0.0, **solver: Any) -> RefineSettings:
    return RefineSettings(
        subspace=SubspaceSettings(rank=rank, basis="svd", iterations=4),
        held_out=HeldOutSettings(fraction=fraction),
        solver=SolverSettings(**solver),
        compute=ComputeSettings(device="cpu", memory_per_rank="2GiB"),
    )


def space_of(comm: Any, source: Problem, chosen: RefineSettings) -> tuple[TransferSpace, Array]:
    """The modes of a source, and its directions, shape (l, P)."""
    prepared = prepare(source, comm, chosen)
    modes = MemoryState(compute_modes(prepared, Phases()))
    return TransferSpace(comm, prepared, modes), modes.whole("directions")


class Dense:
    """Row-scaled residual of a condition in the coefficients of some directions, by reverse mode alone."""

    def __init__(self, i: int, b: float, directions: Array) -> None:
        net = network()
        names = [name for name, _ in net.named_parameters()]
        start = {name: p.detach() for name, p in net.named_parameters()}

        def value(tensors: dict[str, Tensor], at: Tensor) -> Tensor:
            return functional_call(net, tensors, (at[:, None],))[:, 0]

        def slope(tensors: dict[str, Tensor]) -> Tensor:
            return torch.func.grad(lambda at: value(tensors, at).sum())(X[:, 0])

        def along(of: Any) -> Array:
            gradients = jacrev(of)(start)
            dense = torch.cat([gradients[n].flatten(1) for n in names], 1).detach().numpy()
            return np.asarray(dense @ directions.T)

        self.u, self.du = value(start, X[:, 0]).detach().numpy(), slope(start).detach().numpy()
        self.g, self.dg = along(lambda p: value(p, X[:, 0])), along(slope)
        self.a, self.f = coefficient(i).numpy()[:, 0], forcing(i).numpy()[:, 0]
        self.b, self.s = b, 0.1 * i

    def residual(self, c: Array) -> Array:
        u, du = self.u + self.g @ c, self.du + self.dg @ c
        rows = (du + self.a * u + self.b * u**2 - self.f) / np.sqrt(len(u))
        return np.concatenate([rows, np.sqrt(WEIGHT) * (u[:1] - self.s)])

    def jacobian(self, c: Array) -> Array:
        u = self.u + self.g @ c
        rows = self.dg + (self.a + 2 * self.b * u)[:, None] * self.g
        return np.vstack([rows / np.sqrt(len(u)), np.sqrt(WEIGHT) * self.g[:1]])


@pytest.mark.parametrize("target", [0, 1, 4])
def test_linear_condition_is_the_least_squares_solution(comm_self: Any, target: int) -> None:
    """Also of another coefficient than the source's, so that the residual's own modes would not do."""
    space, directions = space_of(comm_self, condition(0), settings())
    result = space.solve(condition(target))

    dense = Dense(target, 0.0, directions)
    a, r0 = (torch.from_numpy(v) for v in (dense.jacobian(np.zeros(12)), dense.residual(np.zeros(12))))
    c = torch.linalg.lstsq(a, -r0[:, None], driver="gelsd").solution[:, 0].numpy()
    assert result.outcome is Outcome.REFINED
    assert result.checks["resolve_steps"] == 1
    assert result.rank == 12
    found = result.delta @ directions.T
    np.testing.assert_allclose(found @ directions, result.delta, atol=1e-12 * np.abs(c).max())
    # Coefficients of weak directions are rounding, the field is not.
    np.testing.assert_allclose(dense.g @ found, dense.g @ c, atol=1e-9)
    expected = np.linalg.norm(dense.residual(c))
    assert result.residual_true == pytest.approx(expected, rel=1e-8)
    assert result.residual_linear == pytest.approx(expected, rel=1e-8)
    assert result.residual_before == pytest.approx(float(r0.norm()), rel=1e-12)


def test_nonlinear_condition_is_the_solution_of_least_squares(
    comm_self: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lsr_hpc.gauss_newton._SMALL_FALL", 0.0)
    space, directions = space_of(comm_self, condition(0, b=1.0), settings(resolve_steps=40))
    result = space.solve(condition(2, b=1.0))

    dense = Dense(2, 1.0, directions)
    solved = scipy.optimize.least_squares(
        dense.residual, np.zeros(12), dense.jacobian, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=500
    )
    assert result.checks["resolve_steps"] > 2
    assert result.residual_true == pytest.approx(np.linalg.norm(solved.fun), rel=1e-8)
    field = dense.u + dense.g @ (result.delta @ directions.T)
    np.testing.assert_allclose(field, dense.u + dense.g @ solved.x, atol=1e-6)


def test_held_out_rows_choose_the_rank_and_are_fitted_then(comm_self: Any) -> None:
    space, directions = space_of(comm_self, condition(0), settings(fraction=0.3))
    result = space.solve(condition(3))

    assert [entry["rank"] for entry in result.scan] == [0, 3, 6, 12]
    assert result.counts == {"rows": 121, "held_out_rows": 36, "params": 141}
    dense = Dense(3, 0.0, directions[: result.rank])
    nothing = np.zeros(result.rank)
    c = np.linalg.lstsq(dense.jacobian(nothing), -dense.residual(nothing), rcond=None)[0]
    assert result.residual_true == pytest.approx(np.linalg.norm(dense.residual(c)), rel=1e-8)


def test_steps_that_do_not_suffice_are_told(comm_self: Any) -> None:
    space, _ = space_of(comm_self, condition(0, b=1.0), settings(resolve_steps=1))
    result = space.solve(condition(4, b=1.0))
    assert result.outcome is Outcome.NOT_CONVERGED
    assert "raise solver.resolve_steps" in result.advice[0]
    assert result.residual_true < result.residual_before


def targets_of(comm: Any, made: ProblemFamily) -> list[SolvedTarget | FailedTarget]:
    space, _ = space_of(comm, made.instance(0), settings())
    return [target for wave in solve_targets(comm, space, 0, 1, made) for target in wave]


def broken(i: int) -> Problem:
    """Conditions that cannot be solved, each for another reason."""
    if i == 1:
        raise RuntimeError("no data for this one")
    if i == 2:
        return family(spoilt=2).instance(2)
    if i == 3:
        other = network()
        torch.nn.init.zeros_(other.layers[0].bias)  # type: ignore[arg-type]
        other.layers[0].bias.data += 1  # type: ignore[operator, union-attr]
        return condition(3, model=other)
    made = condition(i)
    equation, start = made.blocks
    if i == 4:
        moved = ResidualBlock(
            name="equation", residual=equation.residual, points=X + 0.01, data=equation.data
        )
        return condition(i, blocks=[moved, start])
    if i == 5:
        return condition(i, blocks=[start, equation])
    if i == 6:
        second = ResidualBlock(
            name="equation",
            residual=lambda u, x, a, f: torch.func.jvp(u, (x,), (2 * torch.ones_like(x),))[1] + u(x) - f,
            points=X,
            data=equation.data,
        )
        return condition(i, blocks=[second, start])
    return made


def test_condition_that_fails_is_told_with_its_cause_and_leaves_the_others_alone(comm_self: Any) -> None:
    made = ProblemFamily(name="broken", n_instances=8, instance=broken)
    targets = targets_of(comm_self, made)
    causes = {t.instance: t.cause for t in targets if isinstance(t, FailedTarget)}
    solved = {t.instance: t.result for t in targets if isinstance(t, SolvedTarget)}

    assert set(causes) == {1, 2, 3, 4, 5, 6}
    assert "no data for this one" in causes[1]
    assert "residual block 'equation' is nan at point [0.058" in causes[2]
    assert "network differs from that of the source in 'layers.0.bias'" in causes[3]
    assert "residual block 'equation' takes the network at other points" in causes[4]
    assert "give all conditions the same" in causes[5]
    assert "other derivatives" in causes[6]
    alone = targets_of(comm_self, family(8))[7]
    assert isinstance(alone, SolvedTarget)
    np.testing.assert_array_equal(solved[7].delta, alone.result.delta)


def test_residual_without_channels_is_refused(comm_self: Any) -> None:
    def by_reverse_mode(u: Any, x: Tensor, a: Tensor, f: Tensor) -> Tensor:
        slope: Tensor = torch.func.grad(lambda at: u(at).sum())(x)
        return slope + u(x) - f

    equation, start = condition(0).blocks
    block = ResidualBlock(name="equation", residual=by_reverse_mode, points=X, data=equation.data)
    with pytest.raises(JobError, match=r"'equation' cannot be transferred.*reverse mode; write it with"):
        space_of(comm_self, condition(0, blocks=[block, start]), settings())


def test_modes_that_do_not_fit_into_memory_are_refused_with_what_to_set(
    comm_self: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("lsr_hpc.transfer.modes.room_for_modes", lambda prepared: 1000)
        with pytest.raises(
            JobError, match=r"compute\.memory_per_rank = '2GiB' leaves 0 MiB for response modes"
        ):
            space_of(comm_self, condition(0), settings())
    monkeypatch.setattr("lsr_hpc.transfer.space.rss_bytes", lambda: 2**31)
    with pytest.raises(JobError, match=r"transfer\.ranks_per_target"):
        space_of(comm_self, condition(0), settings())


def test_digest_follows_what_the_modes_follow_from() -> None:
    chosen = settings()
    first = digest_of_modes(condition(0), chosen)
    assert digest_of_modes(condition(0), chosen) == first
    assert digest_of_modes(condition(0), settings(resolve_steps=3)) == first
    other = network()
    torch.nn.init.ones_(other.layers[0].bias)  # type: ignore[arg-type]
    equation, start = condition(0).blocks
    moved = ResidualBlock(name="equation", residual=equation.residual, points=X + 0.01, data=equation.data)
    different = [
        digest_of_modes(condition(0, model=other), chosen),
        digest_of_modes(condition(0, blocks=[moved, start]), chosen),
        digest_of_modes(condition(1), chosen),
        digest_of_modes(condition(0), settings(rank=11)),
        digest_of_modes(condition(0), settings(cut=1e-5)),
        digest_of_modes(condition(0), settings(fraction=0.2)),
    ]
    assert len({first, *different}) == 7


def test_spread() -> None:
    found = spread([4.0, 1.0, 2.0, 3.0, 10.0])
    assert found is not None
    assert (found.mean, found.median, found.worst) == (4.0, 3.0, 10.0)
    assert found.p90 == pytest.approx(7.6)
    assert spread([]) is spread([1.0, None]) is None
