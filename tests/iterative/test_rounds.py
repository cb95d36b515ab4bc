"""Rounds in one process: figures, what is carried, when they end, and interruption at every boundary."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lsr_hpc import RefinedPredictor
from lsr_hpc.checkpoint.store import CheckpointStore
from lsr_hpc.comm import OneProcess
from lsr_hpc.errors import AccuracyError, JobError, StopRequested
from lsr_hpc.iterative import rounds
from lsr_hpc.iterative.rounds import iterate, next_round, with_parameters
from lsr_hpc.iterative.state import BestPredictor, IterateState, RoundRecord
from lsr_hpc.iterative.stopping import advice, rounds_without_gain, why_stop
from lsr_hpc.problem import Problem, ResidualBlock
from lsr_hpc.settings import IterateSettings, RefineSettings
from lsr_hpc.snapshot import MemoryState, SavedState, Snapshot
from tests.iterative.problems import X, bratu, cubic, fitted, loss, misfit, noise, refinement, start_of
from tests.iterative.states import interrupted, same_states

Array = NDArray[np.float64]


def rounds_of(problem: Problem, settings: RefineSettings | None = None, **options: Any) -> IterateState:
    chosen = IterateSettings(**({"rounds": 2, "steps": 3, "tangent_rank": 30} | options))
    return iterate(problem, None, settings or refinement(), chosen)


def error_of(problem: Problem, field: Any) -> float:
    assert problem.evaluation is not None
    (x,), reference = problem.evaluation.take(slice(None))
    return float((field(x).detach() - reference).norm() / reference.norm())


def predictor_of(problem: Problem, best: BestPredictor) -> RefinedPredictor:
    return RefinedPredictor(with_parameters(problem, best.theta).model, torch.from_numpy(best.delta))


def residual_of(problem: Problem, field: Any) -> float:
    squares = 0.0
    for block in problem.blocks:
        values = block.residual(field, *block.take(np.arange(block.n_points))).detach()
        squares += block.weight * float(values.square().mean())
    return math.sqrt(squares)


def test_figures_of_the_rounds_are_those_of_networks_and_predictors() -> None:
    problem = bratu()
    state = rounds_of(problem, refinement(jacobian="auto"), rounds=3)
    first, last = state.records[0], state.records[-1]

    assert [r.round for r in state.records] == [0, 1, 2]
    assert state.round == 3
    assert state.finished == "all 3 rounds are done"
    assert first.network_residual_before == pytest.approx(math.sqrt(loss(problem, start_of(problem))))
    assert first.network_error_before == pytest.approx(error_of(problem, problem.model))
    aligned = with_parameters(problem, state.theta)
    assert last.network_residual == pytest.approx(math.sqrt(loss(problem, state.theta)), rel=1e-9)
    assert last.network_error == pytest.approx(error_of(problem, aligned.model), rel=1e-9)
    for one, after in zip(state.records, state.records[1:], strict=False):
        assert after.network_residual_before == pytest.approx(one.network_residual, rel=1e-9)
        assert after.alignment_before == pytest.approx(one.network_residual, rel=1e-9)
        # The objective is the loss itself.
        assert one.alignment_after == pytest.approx(one.network_residual, rel=1e-9)
        assert one.is_accepted
    assert state.predictor is not None
    refined = predictor_of(problem, state.predictor)
    assert state.predictor.error == pytest.approx(error_of(problem, refined), rel=1e-9)
    assert state.predictor.residual == pytest.approx(residual_of(problem, refined), rel=1e-6)
    record = state.records[state.predictor.round]
    assert state.predictor.score == max(record.predictor_residual, record.held_out or 0.0)
    assert state.network is not None
    assert state.network.residual == min(r.network_residual for r in state.records)
    # Rounds help: predictor and network are far better than the network handed in.
    assert last.network_residual < 0.1 * first.network_residual_before
    assert (state.predictor.error or 1.0) < 0.1 * (first.network_error_before or 0.0)
    assert state.seconds == pytest.approx(sum(r.seconds for r in state.records))
    assert all(0 < r.refine_seconds < r.seconds for r in state.records)
    np.testing.assert_array_equal(start_of(problem), start_of(bratu()))


@pytest.mark.parametrize("objective", ["targets", "pseudo_time"])
def test_rounds_aligned_to_the_predictor_improve_the_network(objective: str) -> None:
    problem = cubic()
    state = rounds_of(problem, objective=objective, pseudo_time=0.1, steps=6)
    first, last = state.records[0], state.records[-1]
    assert all(r.is_accepted for r in state.records)
    assert last.network_residual < 0.2 * first.network_residual_before


def test_refused_refinement_leaves_the_round_to_the_alignment() -> None:
    for objective in ("residual", "targets"):
        problem = noise()
        state = rounds_of(problem, objective=objective, rounds=1)
        (record,) = state.records
        assert record.rank == 0
        assert record.held_out is None
        assert record.advice
        assert record.predictor_residual == pytest.approx(record.network_residual_before, rel=1e-12)
        assert state.predictor is not None
        assert not state.predictor.delta.any()
        if objective == "targets":
            # The predictor is the network, which there is nothing to align to.
            assert not record.is_accepted
            np.testing.assert_array_equal(state.theta, start_of(problem))
        assert IterateState.restored(MemoryState(state.snapshot()), OneProcess()).records == state.records


def test_full_space_takes_part_in_rounds() -> None:
    settings = refinement(solver={"space": "full", "type": "lsqr", "max_iterations": 60})
    state = rounds_of(cubic(), settings, warm_share=0.5)
    assert state.warm is None
    assert all(r.rank > 0 for r in state.records)
    assert state.records[-1].network_residual < state.records[0].network_residual_before


def harder_later() -> Problem:
    """The second round is about something else, and far from it."""
    problem = fitted()
    (block,) = problem.blocks
    x, y = block.take(np.arange(200))

    def resample(round_: int) -> list[ResidualBlock]:
        return [replace(block, data=(y + round_ * torch.sign(torch.sin(40 * x)),))]

    return replace(problem, resample=resample)


def test_best_predictor_and_network_outlive_a_worse_round() -> None:
    state = rounds_of(harder_later(), resample=True, rounds=3)
    assert state.records[1].predictor_residual > 2 * state.records[0].predictor_residual
    assert state.predictor is not None
    assert state.predictor.round == 0
    np.testing.assert_array_equal(state.predictor.theta, start_of(fitted()))
    assert state.predictor.residual == state.records[0].predictor_residual
    assert state.network is not None
    assert state.network.round == 0
    assert state.network.residual == state.records[0].network_residual
    assert not np.array_equal(state.network.theta, state.theta)


def test_start_is_the_best_network_if_nothing_improves_it() -> None:
    state = rounds_of(noise(), objective="targets", rounds=1)
    assert state.network is not None
    assert state.network.round == -1
    np.testing.assert_array_equal(state.network.theta, start_of(noise()))
    assert state.network.residual == state.records[0].network_residual_before


def test_every_round_but_the_first_is_resampled() -> None:
    asked: list[int] = []
    problem = cubic()

    def resample(round_: int) -> Any:
        asked.append(round_)
        assert problem.resample is not None
        return problem.resample(round_)

    state = rounds_of(replace(problem, resample=resample), resample=True, rounds=3)
    assert asked == [1, 2]
    assert problem.resample is not None
    moved = replace(problem, blocks=problem.resample(2))
    last = with_parameters(problem, state.theta).model
    assert state.records[2].network_residual == pytest.approx(residual_of(moved, last), rel=1e-9)
    asked.clear()
    rounds_of(replace(problem, resample=resample), rounds=2)
    assert asked == []


def test_resampling_fixed_points_is_refused_before_any_work() -> None:
    with pytest.raises(JobError, match=r"'fitted' has fixed points: set iterate\.resample = false"):
        rounds_of(fitted(), resample=True)


def test_rank_schedule_and_warm_start_reach_the_refinement(
    monkeypatch: pytest.MonkeyPatch, comm_self: Any
) -> None:
    seen: list[tuple[int, Array | None]] = []
    bases: list[Array] = []
    genuine = rounds.refine_prepared

    def spy(prepared: Any, phases: Any, *, given: Array | None, **rest: Any) -> Any:
        seen.append((prepared.settings.subspace.rank, given))
        refinement = genuine(prepared, phases, given=given, **rest)
        assert refinement.basis is not None
        bases.append(refinement.basis.v_local)
        return refinement

    monkeypatch.setattr(rounds, "refine_prepared", spy)
    state = rounds_of(cubic(), rounds=3, ranks=(20, 16), warm_share=0.25)

    assert [rank for rank, _ in seen] == [20, 16, 16]
    assert seen[0][1] is None
    for (_, given), before, after in zip(seen[1:], bases, bases[1:], strict=False):
        assert given is not None
        np.testing.assert_array_equal(given, before[: round(0.25 * len(before))])
        # They come first, and the space is grown behind them.
        np.testing.assert_allclose(after[: len(given)] @ given.T, np.eye(len(given)), atol=1e-12)
        assert len(after) > len(given)
    assert [r.rank <= rank for r, (rank, _) in zip(state.records, seen, strict=True)] == [True] * 3
    seen.clear()
    rounds_of(cubic(), warm_share=0.9)
    (_, cold), (rank, warm) = seen
    assert cold is None
    assert warm is not None
    # Never more than half, so that the residual has a say.
    assert len(warm) == rank // 2
    seen.clear()
    assert rounds_of(cubic()).warm is None
    assert [given for _, given in seen] == [None, None]


def test_momentum_and_trust_region_are_carried_into_the_next_round(comm_self: Any) -> None:
    state = rounds_of(cubic(), rounds=1)
    kept = state.carried.values["tangent"]
    assert kept["damping"] > 0
    assert state.carried.arrays["tangent.last_step"].any()
    options = IterateSettings(steps=1, tangent_rank=30)
    went_on, forgot = (
        next_round(cubic(), comm_self, refinement(), options, before)
        for before in (state, replace(state, carried=Snapshot()))
    )
    assert not np.array_equal(went_on.theta, forgot.theta)


def test_divergence_is_an_error() -> None:
    with pytest.raises(AccuracyError, match="the alignment diverged") as error:
        rounds_of(cubic(), optimizer="adam", steps=60, learning_rate=1e200)
    assert error.value.on_every_rank


def record(round_: int = 0, **changes: Any) -> RoundRecord:
    values = {
        "round": round_,
        "rank": 3,
        "network_error_before": 0.5,
        "network_residual_before": 1.0,
        "predictor_error": 0.1,
        "predictor_residual": 0.2,
        "held_out": 0.2,
        "alignment_before": 1.0,
        "alignment_after": 0.5,
        "steps": 3,
        "is_accepted": True,
        "network_error": 0.3,
        "network_residual": 0.5,
        "refine_seconds": 1.0,
        "seconds": 2.0,
        "advice": [],
    }
    return RoundRecord(**(values | changes))


def after(*records: RoundRecord, best: float = 0.1) -> IterateState:
    predictor = BestPredictor(
        theta=np.zeros(1), delta=np.zeros(1), round=0, score=1.0, error=best, residual=best
    )
    return IterateState(round=len(records), theta=np.zeros(1), records=records, predictor=predictor)


@pytest.mark.parametrize(
    ("settings", "records", "reason"),
    [
        ({"rounds": 2}, [record()], ""),
        ({"rounds": 2}, [record(), record(1)], "all 2 rounds are done"),
        ({"target_error": 0.3}, [record()], "error 3.00e-01 reached iterate.target_error"),
        ({"target_error": 0.29}, [record()], ""),
        ({"target_error": 0.3}, [record(network_error=None)], ""),
        ({"target_residual": 0.5}, [record()], "residual 5.00e-01 reached iterate.target_residual"),
        ({"target_residual": 0.49}, [record()], ""),
        ({"max_seconds": 2.0}, [record()], "iterate.max_seconds = 2 are over"),
        ({"max_seconds": 2.1}, [record()], ""),
        ({"max_seconds": 4.0}, [record(), record(1)], "iterate.max_seconds"),
        ({"patience": 2}, [record(), record(1)], ""),
        ({"patience": 2}, [record(), record(1), record(2)], "2 rounds in a row improved neither"),
        ({"patience": 2}, [record(), record(1), record(2, network_residual=0.449)], ""),
        ({"patience": 2}, [record(), record(1), record(2, network_residual=0.451)], "2 rounds in a row"),
        ({"patience": 2}, [record(), record(1), record(2, predictor_residual=0.179)], ""),
        ({"patience": 2}, [record(), record(1, network_residual=0.4), record(2)], ""),
    ],
)
def test_rounds_end_for_the_reason_given(
    settings: dict[str, Any], records: list[RoundRecord], reason: str
) -> None:
    why = why_stop(after(*records), IterateSettings(**settings))
    assert (reason in why) if reason else not why


def test_gain_is_measured_from_the_best_so_far() -> None:
    worse = [record(), record(1, network_residual=0.9), record(2, network_residual=0.6)]
    assert rounds_without_gain(tuple(worse)) == 2


def test_reached_target_ends_the_rounds() -> None:
    problem = cubic()
    residual = math.sqrt(loss(problem, start_of(problem)))
    state = rounds_of(problem, rounds=9, target_residual=0.9 * residual)
    assert len(state.records) == 1
    assert "target_residual" in state.finished
    assert rounds_of(problem, rounds=9, max_seconds=0.0).finished.startswith("iterate.max_seconds")


def test_advice_compares_the_rounds_with_one_refinement() -> None:
    assert advice(after(record(), best=0.06)).startswith("one refinement is the cheaper way")
    assert "2.5 times better: error 1.0e-01" in advice(after(record(), best=0.04))
    without = replace(after(record(predictor_error=None), best=0.04))
    assert "5.0 times better: residual 2.0e-01" in advice(without)


BOUNDARIES: dict[str, tuple[Callable[[], Problem], dict[str, Any], dict[str, Any]]] = {
    "tangent": (
        cubic,
        {"warm_share": 0.25, "resample": True, "ranks": (12, 9)},
        {"width": 4},
    ),
    "adaptive": (fitted, {"objective": "targets", "steps": 2}, {"rank": 60, "width": 16, "adaptive": True}),
    "lbfgs": (fitted, {"optimizer": "lbfgs", "steps": 25, "objective": "pseudo_time"}, {"width": 6}),
    "adam": (fitted, {"optimizer": "adam", "steps": 120}, {"width": 12, "basis": "svd+krylov"}),
}


@pytest.mark.parametrize("case", BOUNDARIES)
def test_rounds_interrupted_anywhere_go_on_as_if_they_had_not_been(
    case: str, comm_self: Any, tmp_path: Path
) -> None:
    build, options, subspace = BOUNDARIES[case]
    chosen = IterateSettings(**({"rounds": 2, "steps": 2, "tangent_rank": 20} | options))
    settings = refinement(**subspace)
    problem = build()
    whole = iterate(problem, comm_self, settings, chosen)
    store = CheckpointStore(tmp_path / "store", "0" * 64)

    def on_disk(snapshot: Snapshot) -> SavedState:
        identifier = store.save(comm_self, "here-part", snapshot, progress=(0, 1), score=None)
        return store.load(comm_self, identifier)

    # At all boundaries of one run.
    pieced, _ = interrupted(problem, comm_self, settings, chosen, on_disk, at=None)
    same_states(pieced, whole)
    if case != "tangent":
        return
    # At each of them alone, and gone on with to the end.
    n_boundaries = 0
    while True:
        n = n_boundaries + 1
        pieced, was_interrupted = interrupted(problem, comm_self, settings, chosen, MemoryState, at=n)
        same_states(pieced, whole)
        if not was_interrupted:
            break
        n_boundaries = n
    # Three and two blocks of the refinements; the warm start's are not counted. Two steps each.
    assert n_boundaries == 10


def test_state_kept_between_rounds_goes_on_as_if_it_had_not_been(comm_self: Any) -> None:
    build, changes, subspace = BOUNDARIES["tangent"]
    options = IterateSettings(**({"rounds": 3, "steps": 2, "tangent_rank": 20} | changes))
    problem, settings = build(), refinement(**subspace)
    whole = iterate(problem, comm_self, settings, options)
    state = IterateState.start(problem)
    while not state.finished:
        state = IterateState.restored(MemoryState(state.snapshot()), comm_self)
        state = next_round(problem, comm_self, settings, options, state)
    same_states(state, whole)


def test_interrupted_round_counts_the_seconds_of_both_parts(comm_self: Any) -> None:
    problem, settings = fitted(), refinement()
    options = IterateSettings(rounds=1, steps=2, tangent_rank=20)
    kept: list[Snapshot] = []

    def boundary(snapshot: Callable[[], Snapshot]) -> None:
        kept.append(snapshot())
        raise StopRequested("now")

    state = IterateState.start(problem)
    with pytest.raises(StopRequested):
        next_round(problem, comm_self, settings, options, state, boundary=boundary)
    longer = Snapshot(kept[0].arrays, {**kept[0].values, "seconds": kept[0].values["seconds"] + 1000})
    saved = MemoryState(longer)
    resumed = IterateState.restored(saved, comm_self)
    done = next_round(problem, comm_self, settings, options, resumed, saved=saved)
    assert 1000 < done.seconds < 1100


def test_parameters_are_put_into_a_copy() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1))
    network[0].bias.requires_grad_(False)
    problem = Problem(
        name="frozen",
        model=network,
        blocks=[ResidualBlock(name="fit", residual=misfit, points=X, data=(X,))],
    )
    state = IterateState.start(problem)
    assert state.theta.shape == (5,)
    moved = with_parameters(problem, np.arange(5.0))
    assert moved.model[0].weight.tolist() == [[0.0], [1.0]]
    assert moved.model[1].bias.tolist() == [4.0]
    np.testing.assert_array_equal(moved.model[0].bias, network[0].bias.double())
    assert not moved.model[0].bias.requires_grad
    assert network[0].weight.dtype == torch.float32
    np.testing.assert_array_equal(state.theta, IterateState.start(problem).theta)
