"""Iterative LSR against continued training at equal seconds: error of the network and of the predictor.

Every arm starts from the same trained network, on the same ranks and rows, in float64. Continued training is
full-batch L-BFGS or Adam on the original loss, run by the product's own data-parallel alignment; evaluation
is not on the clock.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.arms import Arm, Measurement, run_arm
from benchmarks.cases import Case, load
from benchmarks.record import Column, Record, ratio

__all__ = ["COLUMNS", "continued", "draw", "rounds", "run"]

COLUMNS = (
    Column("start", "start", ".2e"),
    Column("error", "network", ".2e"),
    Column("residual", "residual", ".1e"),
    Column("predictor", "predictor", ".2e"),
    Column("first_predictor", "first predictor", ".2e"),
    Column("first_seconds", "after s", ".1f"),
    Column("rounds", "rounds", "d"),
    Column("seconds", "seconds", ".1f"),
    Column("foreign_cores", "foreign cores", ".1f"),
)

# Job, its overrides, and seconds of every arm, by preset.
_CASES: dict[str, list[tuple[str, list[str], float]]] = {
    "tiny": [("poisson", ["problem.args.points=200", "subspace.rank=40"], 3.0)],
    "small": [
        ("poisson", ["subspace.rank=400"], 60.0),
        ("burgers2d", ["problem.args.points=8000", "subspace.rank=300"], 60.0),
        ("burgers_operator", ["subspace.rank=300"], 60.0),
    ],
    "full": [
        ("poisson", ["subspace.rank=400"], 180.0),
        ("burgers2d", ["subspace.rank=300"], 180.0),
        ("burgers_operator", ["subspace.rank=300"], 180.0),
    ],
}
_TANGENT = {"optimizer": "tangent", "steps": 10, "tangent_rank": 400}
_ROUNDS: dict[str, dict[str, Any]] = {
    "rounds, tangent steps on the loss": _TANGENT | {"objective": "residual"},
    "rounds, tangent steps on the targets": _TANGENT | {"objective": "targets"},
    "rounds, as published": {
        **{"objective": "pseudo_time", "pseudo_time": 1e-3},
        **{"optimizer": "lbfgs", "steps": 300, "history": 300},
    },
}
_CONTINUED: dict[str, dict[str, Any]] = {
    "L-BFGS on the loss": {"optimizer": "lbfgs", "steps": 10**6, "history": 100},
    "Adam on the loss": {"optimizer": "adam", "steps": 10**6, "learning_rate": 1e-3},
}


def run(preset: str, overrides: list[str], cores: int) -> Record:
    """Run all arms.

    Args:
        preset: Which cases, and for how many seconds; ``"tiny"`` is for the tests.
        overrides: ``section.key=value`` settings.
        cores: MPI ranks of every arm.

    Returns:
        The record.
    """
    found: list[Measurement] = []
    ratios: dict[str, float] = {}
    for job, settings, seconds in _CASES[preset]:
        case: Case = {"job": f"jobs/{job}.toml", "preset": "small", "overrides": [*settings, *overrides]}
        arms = []
        for function, options_by_name in (("rounds", _ROUNDS), ("continued", _CONTINUED)):
            for name, options in options_by_name.items():
                arguments = {"case": case, "options": options, "seconds": seconds}
                arm = Arm(name=name, function=f"iterative:{function}", arguments=arguments, mpi_ranks=cores)
                [measured] = run_arm(replace(arm, limit_s=60 + 5 * seconds))
                arms.append({**measured, "case": job})
        for other in arms[1:]:
            if (value := ratio(other, arms[0], "error")) is not None:
                ratios[f"{job}, network error: {other['arm']}"] = value
        found += arms
    return Record(
        name="iterative",
        preset=preset,
        arms=found,
        ratios=ratios,
        notes=[
            "network: relative L2 error of the network's own weights when the time was over; a round that "
            "ends later does not count.",
            "first predictor: of one refinement of the start, and after how many seconds it was there.",
        ],
    )


def rounds(case: Case, options: dict[str, Any], seconds: float) -> Measurement:
    """Arm: rounds of refinement and alignment.

    Args:
        case: The case.
        options: Section ``[iterate]``.
        seconds: When the time is over.

    Returns:
        The measurement.

    Collective: all ranks of COMM_WORLD.
    """
    from mpi4py import MPI

    from lsr_hpc.iterative.rounds import next_round
    from lsr_hpc.iterative.state import IterateState
    from lsr_hpc.petsc import start
    from lsr_hpc.settings import IterateSettings

    start([])
    problem, settings = load(case)
    iterate = IterateSettings(rounds=10**6, max_seconds=seconds, patience=10**6, **options)
    state = IterateState.start(problem)
    while not state.finished:
        state = next_round(problem, MPI.COMM_WORLD, settings, iterate, state)
    records = list(state.records)
    ends = np.cumsum([record.seconds for record in records])
    in_time = max(1, int(np.sum(ends <= seconds)))
    first, last = records[0], records[in_time - 1]
    refined = records[:in_time]
    return {
        "start": first.network_error_before,
        "error": last.network_error,
        "residual": last.network_residual,
        "predictor": min(r.predictor_error or np.inf for r in refined),
        "first_predictor": first.predictor_error,
        "first_seconds": first.refine_seconds,
        "rounds": in_time,
        "seconds": float(ends[in_time - 1]),
        "history": [
            {"seconds": float(end), "error": r.network_error}
            for end, r in zip(ends[:in_time], refined, strict=True)
        ],
    }


def continued(case: Case, options: dict[str, Any], seconds: float) -> Measurement:
    """Arm: training on the original loss goes on.

    Args:
        case: The case.
        options: Optimiser, as in section ``[iterate]``.
        seconds: When the time is over.

    Returns:
        The measurement.

    Collective: all ranks of COMM_WORLD.
    """
    from mpi4py import MPI

    from lsr_hpc.evaluate import Evaluator
    from lsr_hpc.iterative.gradient import GradientAlignment
    from lsr_hpc.petsc import start
    from lsr_hpc.prepare import prepare
    from lsr_hpc.settings import HeldOutSettings, IterateSettings, SubspaceSettings

    start([])
    comm = MPI.COMM_WORLD
    problem, settings = load(case)
    plain = replace(settings, held_out=HeldOutSettings(fraction=0.0), subspace=SubspaceSettings(rank=1))
    prepared = prepare(
        problem, comm, replace(plain, compute=replace(settings.compute, jacobian="matrix_free"))
    )
    evaluation = problem.evaluation
    assert evaluation is not None

    def error(theta: Any) -> float:
        return Evaluator(prepared.comm, evaluation, prepared).error(
            prepared.model.field(torch.from_numpy(theta))
        )

    theta0 = prepared.model.theta0.numpy()
    training = GradientAlignment(prepared, IterateSettings(**options), theta=theta0)
    first = error(theta0)
    history, spent, looked = [], 0.0, 0.0
    while spent < seconds:
        started = time.perf_counter()
        moved = training.step()
        spent = comm.bcast(spent + time.perf_counter() - started, root=0)
        if spent - looked > seconds / 40 or spent >= seconds or not moved:
            looked = spent
            history.append({"seconds": spent, "error": error(training.theta)})
        if not moved:
            break
    return {
        "start": first,
        "error": history[-1]["error"],
        "residual": float(np.sqrt(training.loss)),
        "seconds": spent,
        "history": history,
    }


def draw(record: Record, figure: Any) -> None:
    """Error of the network against seconds, one panel per case.

    Args:
        record: The record.
        figure: Matplotlib figure.
    """
    cases = list(dict.fromkeys(m["case"] for m in record.arms))
    for axes, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        for arm in record.arms:
            if arm["case"] == case and "skipped" not in arm:
                points = [{"seconds": 0.0, "error": arm["start"]}, *arm["history"]]
                axes.semilogy(
                    [p["seconds"] for p in points],
                    [p["error"] for p in points],
                    "o-",
                    markersize=3,
                    label=arm["arm"],
                )
        axes.set(title=case, xlabel="seconds", ylabel="relative L2 error of the network")
        axes.grid(which="both", alpha=0.3)
        axes.legend(fontsize="small")
