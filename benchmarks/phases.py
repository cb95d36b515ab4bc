"""What it costs to count flops, messages and seconds by phase: a refinement with it over one without.

Both are done by turns in one process and the best of each is kept. Processor seconds say more than the clock
on a machine with other work; ranks that wait for a message use none of them.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.arms import Arm, Measurement, run_arm
from benchmarks.cases import Case, load
from benchmarks.record import Column, Record

__all__ = ["COLUMNS", "draw", "measure", "run"]

COLUMNS = (
    Column("rows", "rows", "d"),
    Column("params", "P", "d"),
    Column("rank", "rank", "d"),
    Column("seconds", "s"),
    Column("over_plain", "over plain", ".4f"),
    Column("processor_s", "processor s"),
    Column("processor_over_plain", "over plain", ".4f"),
    Column("error", "error", ".2e"),
    Column("foreign_cores", "foreign cores", ".1f"),
)
_JOB = "jobs/function_fit.toml"
# Points, rank, turns.
_SIZES = {"tiny": (100, 8, 2), "small": (2000, 40, 15), "full": (5000, 400, 7)}


def run(preset: str, overrides: list[str], cores: int) -> Record:
    """Run all arms.

    Args:
        preset: ``"small"`` or ``"full"``; ``"tiny"`` is for the tests.
        overrides: ``section.key=value`` settings.
        cores: MPI ranks.

    Returns:
        The record.
    """
    points, rank, turns = _SIZES[preset]
    settings = [f"problem.args.points={points}", f"subspace.rank={rank}", *overrides]
    case: Case = {"job": _JOB, "preset": "small", "overrides": settings}
    arm = Arm(
        name="ours, counted",
        function="phases:measure",
        arguments={"case": case, "turns": turns},
        mpi_ranks=cores,
    )
    arms = run_arm(arm)
    ratios = {f"counted over plain, {how}": arms[0][key] for how, key in _RATIOS.items() if key in arms[0]}
    return Record(name="phases", preset=preset, arms=arms, ratios=ratios, notes=[])


_RATIOS = {"clock": "over_plain", "processor": "processor_over_plain"}


def measure(case: Case, turns: int) -> Measurement:
    """Arm: refinements with and without counting, by turns.

    Args:
        case: The case.
        turns: How many of each.

    Returns:
        The measurement.

    Raises:
        ArithmeticError: If counting has changed what is computed.

    Collective: all ranks of COMM_WORLD.
    """
    from mpi4py import MPI

    from lsr_hpc.events import listening
    from lsr_hpc.oneshot import refine
    from lsr_hpc.petsc import start
    from lsr_hpc.phase_record import PhaseRecorder
    from lsr_hpc.traffic import counted, traffic_of

    start()
    world = MPI.COMM_WORLD
    comm = counted(world)
    problem, settings = load(case)
    refine(problem, world, settings=settings)
    times: dict[str, list[tuple[float, float]]] = {"plain": [], "counted": []}
    results: dict[str, Any] = {}
    for turn in range(2 * turns):
        how = "counted" if turn % 2 else "plain"
        world.Barrier()
        clock, processor = time.perf_counter(), time.process_time()
        if how == "plain":
            results[how] = refine(problem, world, settings=settings)
        else:
            with listening(PhaseRecorder(traffic_of(comm))):
                results[how] = refine(problem, comm, settings=settings)
        spent = (time.perf_counter() - clock, time.process_time() - processor)
        times[how].append((max(world.allgather(spent[0])), sum(world.allgather(spent[1]))))
    if results["plain"].delta.tobytes() != results["counted"].delta.tobytes():
        raise ArithmeticError("counting has changed the correction")
    best = {how: [min(column) for column in zip(*of, strict=True)] for how, of in times.items()}
    return {
        "rows": results["plain"].counts["rows"],
        "params": results["plain"].counts["params"],
        "rank": results["plain"].rank,
        "error": results["counted"].error_after,
        "seconds": best["counted"][0],
        "over_plain": best["counted"][0] / best["plain"][0],
        "processor_s": best["counted"][1],
        "processor_over_plain": best["counted"][1] / best["plain"][1],
    }


def draw(record: Record, figure: Any) -> None:
    """The two ratios.

    Args:
        record: The record.
        figure: Matplotlib figure.
    """
    axes = figure.subplots()
    axes.bar(list(record.ratios), list(record.ratios.values()))
    axes.set(ylabel="counted over plain")
    axes.grid(alpha=0.3)
