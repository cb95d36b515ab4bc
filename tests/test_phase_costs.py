"""Flops, messages and seconds by phase: against counts by hand, and without an effect on what is computed."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lsr_hpc import Problem, RefineSettings, ResidualBlock, SubspaceSettings
from lsr_hpc.events import emit, listening
from lsr_hpc.models import MLP
from lsr_hpc.oneshot import refine
from lsr_hpc.petsc import libraries
from lsr_hpc.phase_record import PhaseRecorder, append_timeline, read_timelines
from lsr_hpc.phase_table import phase_costs, phases_as_text
from lsr_hpc.phases import Phases
from lsr_hpc.prepare import prepare
from lsr_hpc.settings import ComputeSettings
from lsr_hpc.traffic import traffic_of


def recorded(*actions: Any) -> list[dict[str, Any]]:
    """Phases a, b, ... with an action each."""
    recorder, phases = PhaseRecorder(), Phases()
    with listening(recorder):
        for name, action in zip("abcdefgh", actions, strict=False):
            with phases(name):
                action()
    return [dict(event) for event in recorder.take()]


def test_flops_of_petsc_and_flops_that_are_told_add_up() -> None:
    PETSc, _ = libraries()
    x = PETSc.Vec().createSeq(1000)
    x.set(1.0)

    def dot_twice() -> None:
        x.dot(x)
        x.dot(x)
        emit("flops", flops=7.0)

    a, b = recorded(dot_twice, lambda: emit("product", columns=1, rows=1, is_held_out=False, flops=11.0))
    assert a["flops"] == 2 * (2 * 1000 - 1) + 7
    assert b["flops"] == 11.0
    # Counts begin anew with the phase, though PETSc goes on adding to the event of that name.
    assert recorded(dot_twice)[0]["flops"] == a["flops"]
    x.destroy()


def test_outer_phase_counts_the_inner_one_too() -> None:
    recorder, phases = PhaseRecorder(), Phases()
    with listening(recorder), phases("outer"):
        emit("flops", flops=1.0)
        with phases("inner"):
            emit("flops", flops=2.0)
    counts = {event["phase"]: event["flops"] for event in recorder.take()}
    assert counts == {"inner": 2.0, "outer": 3.0}


def test_phase_that_fails_is_closed() -> None:
    recorder, phases = PhaseRecorder(), Phases()
    with listening(recorder):
        with suppress(ZeroDivisionError), phases("outer"), phases("inner"):
            emit("flops", flops=5.0)
            raise ZeroDivisionError
        with phases("after"):
            emit("flops", flops=3.0)
    assert [(e["phase"], e["flops"]) for e in recorder.take()] == [
        ("inner", 5.0),
        ("outer", 5.0),
        ("after", 3.0),
    ]


def problem() -> Problem:
    torch.manual_seed(0)
    x = torch.rand(500, 3, dtype=torch.float64)

    def misfit(u: Any, x: Tensor) -> Tensor:
        return u(x) - x.sum(dim=1, keepdim=True)

    return Problem(
        name="sum", model=MLP([3, 40, 40, 1]), blocks=[ResidualBlock(name="fit", residual=misfit, points=x)]
    )


@pytest.mark.parametrize("jacobian", ["explicit", "factored", "matrix_free"])
def test_flops_of_a_product_are_those_of_its_matrix_products(jacobian: str, comm_self: Any) -> None:
    settings = RefineSettings(
        subspace=SubspaceSettings(rank=10), compute=ComputeSettings(jacobian=jacobian, device="cpu")
    )
    prepared = prepare(problem(), comm_self, settings)
    assert prepared.representation.name == jacobian
    n_weights, n_parameters, n_rows = 3 * 40 + 40 * 40 + 40, 3 * 40 + 40 * 40 + 40 + 81, 400
    expected = {
        "explicit": 2 * n_rows * n_parameters,
        # One forward pass per column: the derivative of every layer's output times its input.
        "factored": 2 * n_rows * n_weights,
        # A tangent passes every layer twice: with its weight, and with the tangent of its weight.
        "matrix_free": 4 * n_rows * n_weights,
    }[jacobian]
    assert prepared.jacobian.local.flops_per_column == pytest.approx(expected, rel=0.15)
    events = []
    with listening(events.append):
        prepared.jacobian.jv(np.ones((4, n_parameters)))
    assert events[0]["flops"] == 4 * prepared.jacobian.local.flops_per_column


def test_refinement_is_the_same_bit_for_bit_whether_it_is_recorded(comm_self: Any) -> None:
    settings = RefineSettings(subspace=SubspaceSettings(rank=40))
    plain = refine(problem(), comm_self, settings=settings)
    recorder = PhaseRecorder()
    with listening(recorder):
        watched = refine(problem(), comm_self, settings=settings)
    assert plain.delta.tobytes() == watched.delta.tobytes()
    phases = {event["phase"]: event for event in recorder.take()}
    assert set(phases) == {"prepare", "basis", "jacobian", "solve", "resolve", "check"}
    # Forty columns of J and of its transpose, and orthogonalising them.
    assert phases["basis"]["flops"] > 80 * 2 * 400 * (3 * 40 + 40 * 40 + 40)
    # A QR of [J V | r0]: 2 m^2 (n - m / 3).
    assert phases["solve"]["flops"] > 2 * 41**2 * (400 - 41 / 3)
    assert all(event["messages"] == event["received_bytes"] == 0 for event in phases.values())


def test_costs_of_several_ranks_and_times() -> None:
    def line(mpi_rank: int, phase: str, begin: float, end: float, **counts: float) -> dict[str, Any]:
        return {"mpi_rank": mpi_rank, "phase": phase, "begin": begin, "end": end, **counts}

    costs = phase_costs([
        line(0, "solve", 10, 12, flops=1e9, wait_s=1.0, messages=2, received_bytes=2**20),
        line(1, "solve", 10, 12, flops=3e9, wait_s=0.0, messages=2, received_bytes=0),
        line(0, "basis", 0, 4, flops=1e9, reductions=3),
        line(0, "basis", 5, 6, flops=1e9, reductions=3),
        line(1, "basis", 0, 4, flops=2e9, reductions=5),
    ])
    basis, solve = costs
    assert (basis.phase, basis.seconds, basis.flops, basis.flops_balance) == ("basis", 5.0, 4e9, 1.0)
    assert basis.reductions == 6
    assert math.isclose(basis.balance or 0, 4.5 / 5)
    assert (solve.seconds, solve.wait_s, solve.balance) == (2.0, 0.5, 0.75)
    assert (solve.flops, solve.messages, solve.received_bytes) == (4e9, 4, 2**20)
    assert math.isclose(solve.flops_balance or 0, 2 / 3)
    text = phases_as_text(costs)
    assert len({len(row) for row in text}) == 1
    assert text[2].split() == ["solve", "2.000", "0.500", "0.75", "4.000", "2.00", "0.67", "1.00", "4", "0"]


def test_phase_without_work_has_no_balance() -> None:
    (cost,) = phase_costs([{"mpi_rank": 0, "phase": "jacobian", "begin": 1.0, "end": 1.0}])
    assert cost.balance is None
    assert cost.flops_balance is None
    assert phases_as_text([cost])[1].count(" - ") == 3


def test_timelines_are_read_back_by_their_begin(tmp_path: Path) -> None:
    events = recorded(lambda: None, lambda: emit("flops", flops=2.0))
    for name in ("second", "first"):
        append_timeline(tmp_path / name, [events[::-1]])
    lines = read_timelines([tmp_path / "second", tmp_path / "missing", tmp_path / "first"])
    assert [line["phase"] for line in lines] == ["a", "a", "b", "b"]
    assert lines[-1]["flops"] == 2.0


def test_communicator_that_nobody_counts_has_counts_of_zero(comm_self: Any) -> None:
    assert traffic_of(comm_self).messages == 0
