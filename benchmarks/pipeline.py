"""What the pipeline costs: the seconds of a whole ``lsr-hpc run`` that no round computes in.

A round's own seconds run on the first MPI rank from its refinement to its last evaluation. All the rest of
the run is overhead: controller, start and end of the ranks, imports, building the problem, deliveries.
Checkpoints inside and after a round are shown apart, at the interval of the job.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.arms import REPOSITORY, Arm, Measurement, run_arm
from benchmarks.record import Column, Record

__all__ = ["COLUMNS", "draw", "run", "whole_run"]

COLUMNS = (
    Column("rounds", "rounds", "d"),
    Column("seconds", "run s", ".1f"),
    Column("computing", "in rounds s", ".1f"),
    Column("around_step", "around a round s", ".2f"),
    Column("of_it_problem", "of it problem s", ".2f"),
    Column("between", "between steps s", ".3f"),
    Column("begin_and_end", "begin and end of the run s", ".1f"),
    Column("checkpoint_share", "checkpoints %", ".2f", 100.0),
    Column("foreign_cores", "foreign cores", ".1f"),
)
_CASES: dict[str, list[tuple[str, list[str]]]] = {
    "tiny": [("poisson", ["problem.args.points=200", "subspace.rank=30", "iterate.rounds=2"])],
    "small": [
        ("poisson", ["iterate.rounds=4", "iterate.target_error=0"]),
        ("burgers2d", ["iterate.rounds=3"]),
        ("burgers_operator", ["iterate.rounds=2", "problem.args.instances=1"]),
    ],
}
_CASES["full"] = _CASES["small"]


def run(preset: str, overrides: list[str], cores: int) -> Record:
    """Run whole jobs and read what they have written.

    Args:
        preset: Which jobs, all in their own preset small; ``"tiny"`` is for the tests.
        overrides: ``section.key=value`` settings.
        cores: MPI ranks.

    Returns:
        The record.
    """
    arms: list[Measurement] = []
    for job, settings in _CASES[preset]:
        arguments = {"job": job, "overrides": [*settings, *overrides], "mpi_ranks": cores}
        arms += run_arm(Arm(name=f"ours, {job}", function="pipeline:whole_run", arguments=arguments))
    notes = ["A step is one start of the MPI ranks, here for one round (run.rounds_per_step)."]
    return Record(name="pipeline", preset=preset, arms=arms, notes=notes)


def whole_run(job: str, overrides: list[str], mpi_ranks: int) -> Measurement:
    """Run a job from its beginning to its end.

    Args:
        job: ``jobs/<job>_iterative.toml``, in its preset small.
        overrides: ``section.key=value`` settings.
        mpi_ranks: MPI ranks of every step.

    Returns:
        The measurement.

    Raises:
        RuntimeError: If the run fails.
    """
    words = [word for setting in overrides for word in ("--set", setting)]
    with tempfile.TemporaryDirectory(prefix="lsr-bench-") as home:
        out = Path(home) / "run"
        command = [
            sys.executable,
            "-m",
            "lsr_hpc.cli",
            "run",
            f"jobs/{job}_iterative.toml",
            "--preset",
            "small",
        ]
        started = time.perf_counter()
        done = subprocess.run(
            [*command, *words, "--ranks", str(mpi_ranks), "--out", str(out)],
            cwd=REPOSITORY,
            # It refuses to be started by a rank, which this process may be.
            env={k: v for k, v in os.environ.items() if not k.startswith(("OMPI_COMM", "PMI"))},
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(f"exit {done.returncode}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {"seconds": seconds, **_figures(events, seconds)}


def _figures(events: list[dict[str, Any]], seconds: float) -> Measurement:
    steps = [event for event in events if event["event"] == "step"]
    inside = [step["metrics"]["step_seconds"] for step in steps]
    # The seconds of an instance's rounds are counted up.
    last = {step["instance"]: step for step in steps}.values()
    computing = sum(step["metrics"]["seconds"] for step in last)
    in_steps = sum(step["wall_s"] for step in steps)
    # The first step waits for nothing before it.
    gaps = [later["time"] - later["wall_s"] - earlier["time"] for earlier, later in itertools.pairwise(steps)]
    checkpoints = sum(part["checkpoint"] for part in inside)
    return {
        "rounds": len(steps),
        "computing": computing,
        # Checkpoints inside a round are part of its seconds; the one at its end is not.
        "around_step": (in_steps - computing) / len(steps),
        "of_it_problem": sum(part["start"] for part in inside) / len(steps),
        "between": sum(gaps) / len(gaps),
        "begin_and_end": seconds - in_steps - sum(gaps),
        "checkpoint_share": checkpoints / in_steps,
    }


def draw(record: Record, figure: Any) -> None:
    """Where the seconds of every run went, as bars.

    Args:
        record: The record.
        figure: Matplotlib figure.
    """
    arms = [arm for arm in record.arms if "skipped" not in arm]
    axes = figure.subplots()
    labels = [arm["arm"] for arm in arms]
    parts = {
        "in rounds": [arm["computing"] for arm in arms],
        "around the rounds": [arm["around_step"] * arm["rounds"] for arm in arms],
        "begin and end": [arm["begin_and_end"] for arm in arms],
    }
    left = [0.0] * len(arms)
    for name, values in parts.items():
        axes.barh(labels, values, left=left, label=name)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_xlabel("seconds")
    axes.legend()
