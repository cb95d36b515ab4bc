"""Strong and weak scaling over MPI ranks, with counted bytes and messages beside those of the cost model.

Seconds are taken where every rank has a core of its own; with more ranks only the counts mean something. A
sweep is one J V and one J^T U of rank + oversampling columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.arms import Arm, Measurement, best_of, run_arm
from benchmarks.cases import Case, load
from benchmarks.cost_model import gather_bytes, tsqr_bytes
from benchmarks.record import Column, Record

__all__ = ["COLUMNS", "draw", "run"]

COLUMNS = (
    Column("rows", "rows", "d"),
    Column("seconds", "refine s"),
    Column("sweep_s", "sweep s"),
    Column("sweep_bytes", "sweep MB", ".2f", 1e-6),
    Column("sweep_model_bytes", "model MB", ".2f", 1e-6),
    Column("sweep_messages", "messages", "d"),
    Column("tsqr_bytes", "TSQR kB", ".1f", 1e-3),
    Column("tsqr_model_bytes", "model kB", ".1f", 1e-3),
    Column("refine_bytes", "refine MB", ".2f", 1e-6),
    Column("refine_messages", "messages", "d"),
    Column("error", "error", ".2e"),
    Column("peak_rss_bytes", "peak MiB", ".0f", 2**-20),
    Column("foreign_cores", "foreign cores", ".1f"),
)

_JOB = "jobs/function_fit.toml"
# points of the strong runs and of the weak run on one rank; rank of the subspace
_SIZES = {"tiny": (100, 8), "small": (2000, 40), "full": (10000, 300)}
_RANKS = (1, 2, 4)


def run(preset: str, overrides: list[str], cores: int) -> Record:
    """Run all arms.

    Args:
        preset: ``"small"`` or ``"full"``; ``"tiny"`` is for the tests.
        overrides: ``section.key=value`` settings.
        cores: Largest number of ranks that are timed.

    Returns:
        The record.
    """
    points, rank = _SIZES[preset]
    arms: list[Measurement] = []
    runs = [("strong", ranks, points) for ranks in _RANKS] + [("weak", r, r * points) for r in _RANKS[1:]]
    for kind, ranks, n_points in runs:
        settings = [f"problem.args.points={n_points}", f"subspace.rank={rank}", *overrides]
        case: Case = {"job": _JOB, "preset": "small", "overrides": settings}
        [found] = run_arm(
            Arm(
                name=f"ours, {kind}, {ranks} ranks",
                function="scaling:measure",
                arguments={"case": case},
                mpi_ranks=ranks,
            )
        )
        if ranks > cores:
            found |= {"seconds": None, "sweep_s": None, "phases": None}
        arms.append({**found, "kind": kind})
    return Record(
        name="scaling",
        preset=preset,
        arms=arms,
        ratios=_ratios(arms),
        notes=[
            "speed-up: 1 rank over n ranks at equal rows, n at best; efficiency: 1 rank over n ranks at "
            "equal rows per rank, 1 at best.",
            "bytes and messages: largest over the ranks, received, as if sent directly by their owner.",
        ],
    )


def _ratios(arms: list[Measurement]) -> dict[str, float]:
    """Speed-ups and weak efficiencies of the refinement and of a sweep."""
    single, ratios = arms[0], {}
    for arm in arms[1:]:
        word = "speed-up" if arm["kind"] == "strong" else "efficiency"
        for key, name in {"seconds": "refine", "sweep_s": "sweep"}.items():
            if single.get(key) and arm.get(key):
                ratios[f"{arm['kind']} {word} of {arm['mpi_ranks']} ranks, {name}"] = single[key] / arm[key]
    return ratios


def measure(case: Case) -> Measurement:
    """Arm: a refinement, a sweep and a TSQR on the ranks of the world.

    Args:
        case: The case.

    Returns:
        The measurement.

    Collective: all ranks of COMM_WORLD.
    """
    from mpi4py import MPI

    from lsr_hpc.least_squares.reduced import reduce_rows
    from lsr_hpc.oneshot import refine
    from lsr_hpc.petsc import start
    from lsr_hpc.prepare import prepare
    from lsr_hpc.traffic import Traffic, counted, traffic_of

    start()
    world = MPI.COMM_WORLD
    comm = counted(world)
    traffic = traffic_of(comm)
    problem, settings = load(case)
    refine(problem, world, settings=settings)
    received: dict[str, Traffic] = {}
    before = traffic.copy()
    result = refine(problem, comm, settings=settings)
    received["refine"] = traffic.since(before)

    prepared = prepare(problem, comm, settings)
    jacobian = prepared.jacobian
    lo, hi = jacobian.my_parameters
    width = prepared.settings.subspace.rank
    v_local = np.ones((width, hi - lo))
    before = traffic.copy()
    image = jacobian.jv(v_local)
    jacobian.jtu(image)
    received["sweep"] = traffic.since(before)
    sweep_s, _ = best_of(lambda: jacobian.jtu(jacobian.jv(v_local)), world, repeats=10)
    before = traffic.copy()
    reduce_rows(comm, image, np.ones(jacobian.local.n_rows), prepared.fit_rows.n_rows)
    received["tsqr"] = traffic.since(before)

    found: Measurement = {
        "seconds": result.seconds["total"],
        "error": result.error_after,
        "rows": prepared.n_rows,
        "params": jacobian.local.n_parameters,
        "width": width,
        "phases": result.seconds,
        "sweep_s": sweep_s,
        "sweep_model_bytes": 2 * gather_bytes(width, jacobian.local.n_parameters, world.size),
        "tsqr_model_bytes": tsqr_bytes(width + 1, world.size),
    }
    for phase, of in received.items():
        for name, count in {"bytes": of.received_bytes, "messages": of.messages}.items():
            found[f"{phase}_{name}"] = max(world.allgather(count))
    return found


def draw(record: Record, figure: Any) -> None:
    """Seconds and bytes against the number of ranks.

    Args:
        record: The record.
        figure: Matplotlib figure.
    """
    time_axes, byte_axes = figure.subplots(1, 2)
    for kind in ("strong", "weak"):
        arms = [a for a in record.arms if a["kind"] == kind or a["mpi_ranks"] == 1]
        timed = [a for a in arms if a.get("sweep_s")]
        time_axes.plot(
            [a["mpi_ranks"] for a in timed], [a["sweep_s"] for a in timed], "o-", label=f"{kind}, sweep"
        )
        counted = [a for a in arms if a.get("sweep_bytes") is not None]
        ranks = [a["mpi_ranks"] for a in counted]
        byte_axes.plot(ranks, [a["sweep_bytes"] / 1e6 for a in counted], "o", label=f"{kind}, counted")
    byte_axes.plot(ranks, [a["sweep_model_bytes"] / 1e6 for a in counted], "k--", label="model")
    time_axes.set(xlabel="MPI ranks", ylabel="seconds", ylim=(0, None))
    byte_axes.set(xlabel="MPI ranks", ylabel="MB received per rank and sweep", ylim=(0, None))
    for axes in (time_axes, byte_axes):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
