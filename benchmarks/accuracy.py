"""Accuracy against seconds: ours and other ways to refine a trained network, from one start, at equal time.

    python -m benchmarks accuracy --problem poisson --preset small --budget 60

Every arm of a case is a fresh process on the same cores and gets the same network, weights theta0, points,
data and row weights, in float64 unless it says otherwise; digests of weights and rows are compared. A case is
one seed, of an operator one seed and one unseen function.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy_registry import ARMS, PROBLEMS, Target
from benchmarks.arms import REPOSITORY, Arm, Measurement, run_arm, run_command
from benchmarks.cases import Case
from benchmarks.record import Record, machine, save_json

__all__ = ["TARGETS", "main", "run", "summarised"]

TARGETS = tuple(10.0**-i for i in range(1, 9))
RUNS = REPOSITORY / "runs" / "accuracy"
# Problems of the publication of NNCG.
_TRIO = ("convection", "reaction", "wave")


# Threefold the budget for results in one shot that come late, and a minute to start and to judge.
_LIMIT_FACTOR, _LIMIT_EXTRA_S = 3.0, 60.0
_TRAINING_LIMIT_S = 3600.0
_TINY = {
    "poisson": ["problem.args.points=150", "subspace.rank=30"],
    "antiderivative": ["problem.args.rows=80", "subspace.rank=20"],
}


def run(
    problems: Sequence[str],
    arms: Sequence[str],
    *,
    budget_s: float,
    seeds: int,
    preset: str = "small",
    overrides: Sequence[str] = (),
    cores: int = 2,
    instances: int | None = None,
    is_fresh: bool = False,
) -> Record:
    """Run arms on cases, or read those that are there already.

    Args:
        problems: Names of :data:`PROBLEMS`.
        arms: Names of :data:`ARMS`.
        budget_s: Seconds of every arm in every case.
        seeds: Number of seeds.
        preset: ``"small"`` or ``"full"``; ``"tiny"`` is for the tests.
        overrides: ``section.key=value`` settings for every job.
        cores: Ranks of ours, threads of the others.
        instances: Unseen functions a seed, in place of the problem's own number.
        is_fresh: Whether to run what is there already too.

    Returns:
        The record; its arms are single measurements.
    """
    found: list[Measurement] = []
    for name in problems:
        target = PROBLEMS[name]
        extra = [*(_TINY.get(name, []) if preset == "tiny" else []), *overrides]
        for seed in range(seeds):
            cases = _cases(name, target, seed, preset, extra, instances)
            for number, case in enumerate(cases):
                for arm_name in arms:
                    if (reason := _why_not(arm_name, name, target)) is not None:
                        measured = [{"skipped": reason}]
                    else:
                        place = RUNS / preset / name
                        arm = _arm(arm_name, target, case, budget_s, cores)
                        measured = _measured(arm, place, is_fresh=is_fresh)
                    tags = {"problem": name, "seed": seed, "instance": number, "arm": arm_name}
                    found += [{**m, **tags, "title": _title(arm_name, m)} for m in measured]
    _require_same_start(found)
    return Record(name="accuracy", preset=preset, arms=found)


def _title(arm: str, measurement: Measurement) -> str:
    part = measurement.get("part")
    return ARMS[arm].title + (f": {part}" if part else "")


def _why_not(arm: str, name: str, target: Target) -> str | None:
    if arm == "nncg" and name not in _TRIO:
        return "run on the problems of its publication: " + ", ".join(_TRIO)
    if arm == "ours_resolve" and target.is_linear:
        return "the residual is linear in u: the same as one shot, bit for bit"
    return None


def _cases(
    name: str, target: Target, seed: int, preset: str, extra: list[str], instances: int | None
) -> list[Case]:
    """What the arms of a seed are given."""
    job = f"jobs/{target.job}.toml"
    job_preset = None if preset == "full" else "small"
    overrides = [f"problem.args.seed={target.first_seed + seed}", *extra]
    if target.trains and seed:
        # Relative to the job file, so that what was measured is found again wherever the repository lies.
        weights = os.path.relpath(_start(target.job, job_preset, seed), REPOSITORY / "jobs")
        overrides.append(f"problem.weights={json.dumps(weights)}")
    n = (instances or target.instances) if target.instances else 1
    if target.instances:
        overrides.append(f"problem.args.instances={n}")
    return [{"job": job, "preset": job_preset, "overrides": overrides, "instance": i} for i in range(n)]


def _start(job: str, preset: str | None, seed: int) -> Path:
    """A start trained with another seed by the job's own recipe; made once.

    Returns:
        Its file.

    Raises:
        RuntimeError: If it cannot be trained.
    """
    weights = RUNS / "starts" / f"{job}-{preset or 'full'}-{seed}.safetensors"
    if not weights.exists():
        print(f"... training start {seed} of {job}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "lsr_hpc.cli", "train", f"jobs/{job}.toml"]
        command += ["--preset", preset] if preset else []
        command += [
            "--set",
            f"train.seed={seed}",
            "--set",
            f"problem.args.seed={seed}",
            "--out",
            str(weights),
        ]
        weights.parent.mkdir(parents=True, exist_ok=True)
        reason = run_command(command, threads=1, limit_s=_TRAINING_LIMIT_S)
        if reason is not None:
            raise RuntimeError(f"start {seed} of {job}: {reason}")
    return weights


def _arm(name: str, target: Target, case: Case, budget_s: float, cores: int) -> Arm:
    """The arm for a case, as a process."""
    method = ARMS[name]
    arguments = {"case": case, "budget_s": budget_s, **method.arguments}
    if method.function.endswith(":recipe"):
        arguments["rank"] = target.recipe_rank
    return Arm(
        name=name,
        function=method.function,
        arguments=arguments,
        mpi_ranks=cores if method.is_ours else 0,
        threads=1 if method.is_ours else cores,
        limit_s=_LIMIT_FACTOR * budget_s + _LIMIT_EXTRA_S,
    )


def _measured(arm: Arm, place: Path, *, is_fresh: bool) -> list[Measurement]:
    """Measurements of an arm: of an earlier run of just this, or of a process now."""
    words = json.dumps([arm.function, arm.arguments, arm.mpi_ranks, arm.threads], sort_keys=True)
    kept = place / f"{arm.name}-{hashlib.sha256(words.encode()).hexdigest()[:16]}.json"
    if kept.exists() and not is_fresh:
        found: list[Measurement] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    case = arm.arguments["case"]
    print(
        f"... {case['job']}, {case['overrides'][0]}, instance {case['instance']}", file=sys.stderr, flush=True
    )
    found = run_arm(arm)
    if any(m.get("skipped", "").startswith(("failed", "not installed")) for m in found):
        return found
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(found, allow_nan=False) + "\n", encoding="utf-8")
    return found


def _require_same_start(found: Sequence[Measurement]) -> None:
    """Every arm of a case must have had the same weights and rows.

    Raises:
        RuntimeError: If digests differ.
    """
    seen: dict[tuple[Any, ...], tuple[str, str, str]] = {}
    for m in found:
        if "theta0_sha256" in m:
            case = (m["problem"], m["seed"], m["instance"])
            own = (m["arm"], m["theta0_sha256"], m["rows_sha256"])
            if seen.setdefault(case, own)[1:] != own[1:]:
                raise RuntimeError(f"{case}: arms {seen[case][0]} and {m['arm']} had other weights or rows")


def summarised(measurements: Sequence[Measurement]) -> list[Measurement]:
    """One entry per problem and line of its table, over all cases.

    Args:
        measurements: Single measurements.

    Returns:
        Entries with ``title``, ``kind``, medians, ``mean`` and ``worst`` error, and ``reached``: per target
        the median seconds, Inf where it was not reached in half of the cases. Arms that took nothing have
        ``skipped``.
    """
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault((m["problem"], m["title"]), []).append(m)
    lines = []
    for (problem, title), group in groups.items():
        taken = [m for m in group if "skipped" not in m]
        common = {"problem": problem, "title": title, "arm": group[0]["arm"]}
        if not taken:
            lines.append({**common, "skipped": group[0]["skipped"]})
            continue
        errors = [_number(m["error"]) for m in taken]
        lines.append({
            **common,
            "kind": taken[0]["kind"],
            "cases": len(taken),
            "failed": len(group) - len(taken),
            "late": sum(m["is_late"] for m in taken),
            "median": statistics.median(errors),
            "mean": statistics.fmean(errors),
            "best": min(errors),
            "worst": max(errors),
            **{
                key: statistics.median(_number(m.get(source)) for m in taken)
                for key, source in (
                    ("on_the_way", "best_error"),
                    ("true", "true"),
                    ("linear", "linear"),
                    ("seconds", "seconds"),
                    ("peak_rss_bytes", "peak_rss_bytes"),
                    ("j_columns", "j_columns"),
                    ("jt_columns", "jt_columns"),
                    ("columns", "columns"),
                    ("foreign_cores", "foreign_cores"),
                )
            },
            "reached": [statistics.median(_reached(m, target) for m in taken) for target in TARGETS],
        })
    return lines


def _number(value: Any) -> float:
    return math.inf if value is None else float(value)


def _reached(measurement: Measurement, target: float) -> float:
    """Seconds at which an error was first seen at a target or below, Inf if it never was."""
    seconds = [p["seconds"] for p in measurement["history"] if p["error"] <= target]
    return min(seconds, default=math.inf)


def main(words: list[str], program: str = "python -m benchmarks accuracy") -> int:
    """Run the comparison from its command line.

    Args:
        words: Words behind ``accuracy``.
        program: How the help names the command.

    Returns:
        Exit code.
    """
    from benchmarks.accuracy_document import draw_problem, save_document, tables
    from benchmarks.record import save_png

    options = _parser(program).parse_args(words)
    record = run(
        options.problem,
        options.arms,
        budget_s=options.budget,
        seeds=options.seeds,
        preset=options.preset,
        overrides=options.overrides,
        cores=options.cores,
        instances=options.instances,
        is_fresh=options.fresh,
    )
    record.command = " ".join([program, *words])
    print(tables(record))
    if options.json is not None:
        save_json(record, options.json)
    pictures = {}
    if options.png is not None:
        for name in options.problem:
            place = options.png
            if len(options.problem) > 1:
                place = place.with_name(f"{place.stem}_{name}{place.suffix}")
            if save_png(record, place, lambda r, figure, name=name: draw_problem(r, name, figure)):  # type: ignore[misc]
                pictures[name] = place
    if options.markdown is not None:
        save_document(record, options.markdown, pictures, options.budget, machine())
    return 0


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Ours and other ways to refine a trained network, from one start, at equal seconds.",
        epilog="arms:\n"
        + "\n".join(f"  {name:15s} {method.title}" for name, method in ARMS.items())
        + f"\n\nexample: {program} --problem poisson --preset small --budget 60 --png poisson.png\n"
        "Arms that have run with the same words before are read from runs/accuracy, so that a long\n"
        "comparison can be done in pieces, and goes on where it was stopped.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def names(known: dict[str, Any], what: str) -> Any:
        def read(text: str) -> list[str]:
            chosen = text.split(",")
            unknown = [name for name in chosen if name not in known]
            if unknown:
                raise argparse.ArgumentTypeError(f"no {what} {unknown[0]!r}: use {', '.join(known)}")
            return chosen

        return read

    parser.add_argument(
        "--problem",
        type=names(PROBLEMS, "problem"),
        required=True,
        metavar="NAME[,NAME]",
        help="one or more of: " + ", ".join(PROBLEMS),
    )
    parser.add_argument(
        "--arms",
        type=names(ARMS, "arm"),
        default=list(ARMS),
        metavar="NAME[,NAME]",
        help="some of the arms below (default: all)",
    )
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of every arm (default: 60)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--instances", type=int, help="unseen functions a seed, of operators (default: 1)")
    parser.add_argument(
        "--preset", choices=["tiny", "small", "full"], default="full", help="size of the job (default: full)"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the document")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement, with histories")
    parser.add_argument(
        "--png", type=Path, metavar="FILE", help="draw; of several problems FILE_PROBLEM each"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="setting of the job; may be repeated",
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=min(2, len(os.sched_getaffinity(0))),
        help="MPI ranks of ours, threads of the others (default: 2, where there are two)",
    )
    parser.add_argument("--fresh", action="store_true", help="run everything again")
    return parser
