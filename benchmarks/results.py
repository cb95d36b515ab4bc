"""The shipped jobs, refined by their own command, beside the published figures.

Every row is one run of `lsr-hpc refine` with the committed start; nothing in the table is typed except what
others have published. A run that is there already, of the same job and start, is read and not repeated, so
that a table of long runs can be resumed.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arms import REPOSITORY, Measurement, run_command
from benchmarks.record import Column, Record
from lsr_hpc.build import read_weights
from lsr_hpc.errors import JobError
from lsr_hpc.job import load_job

__all__ = ["COLUMNS", "draw", "run"]

COLUMNS = (
    Column("params", "P", ",d"),
    Column("rows", "rows", ",d"),
    Column("rank", "rank"),
    Column("start", "start", ".2e"),
    Column("error", "refined", ".2e"),
    Column("worst", "worst", ".2e"),
    Column("gain", "gain", ",.3g"),
    Column("published", "published"),
    Column("seconds", "s", ".0f"),
    Column("peak_rss_bytes", "GiB per rank", ".2f", 2**-30),
    Column("command", "command"),
)


@dataclass(frozen=True)
class _Published:
    """A figure of others, for the table.

    Attributes:
        start: Error before, or None.
        refined: Error after.
        by: Whose.
    """

    start: float | None
    refined: float
    by: str

    def __str__(self) -> str:
        before = "" if self.start is None else f"{self.start:.2e} to "
        return f"{before}{self.refined:.2e} ({self.by})"


# Linearized Subspace Refinement as published; Nystrom-preconditioned Newton-CG of Rathore et al. 2024;
# natural gradient and SPRING of arXiv:2604.05230; transfer is the follow-up on response spaces.
_LSR, _LST, _NNCG, _NG = "LSR", "transfer", "NNCG", "natural gradient"
# job -> what others have reached with networks of the full size
_PUBLISHED = {
    "advection": _Published(2.15e-2, 3.10e-3, _LSR),
    "antiderivative": _Published(3.69e-3, 1.53e-5, _LSR),
    "burgers_operator": _Published(1.25e-2, 3.96e-4, _LSR),
    "convection": _Published(4.19e-3, 1.94e-3, _NNCG),
    "data_burgers": _Published(7.48e-3, 3.94e-5, _LSR),
    "diffusion_reaction": _Published(5.58e-3, 5.71e-4, _LSR),
    "helmholtz": _Published(None, 2.0e-9, _NG),
    "reaction": _Published(1.92e-2, 9.92e-3, _NNCG),
    "transfer_burgers": _Published(None, 9.29e-5, _LST),
    "transfer_diffusion_reaction": _Published(None, 1.09e-4, _LST),
    "transfer_ode": _Published(None, 9.68e-8, _LST),
    "wave": _Published(5.52e-2, 1.27e-2, _NNCG),
}
# size -> job, preset, overrides
_JOBS: dict[str, list[tuple[str, str | None, list[str]]]] = {
    "tiny": [("function_fit", "small", ["problem.args.points=200", "subspace.rank=20"])],
    "small": [
        ("function_fit", "small", []),
        ("function_fit", "k4_small", []),
        ("poisson", "small", []),
        ("convection", "small", []),
        ("reaction", "small", []),
        ("wave", "small", []),
        ("burgers2d", "small", []),
        ("helmholtz", "small", []),
        ("heat_inverse", "small", []),
        ("digits", "small", []),
        ("digits", "untrained", []),
        ("antiderivative", "small", []),
        ("data_burgers", "small", []),
        ("data_burgers", "fno", []),
        ("diffusion_reaction", "small", []),
        ("burgers_operator", "small", []),
        ("advection", "small", []),
        ("transfer_ode", "small", []),
        ("transfer_diffusion_reaction", "small", []),
        ("transfer_burgers", "small", []),
    ],
    "full": [
        ("function_fit", None, []),
        ("function_fit", "k4", []),
        ("poisson", None, []),
        ("convection", None, []),
        ("reaction", None, []),
        ("wave", None, []),
        ("burgers2d", None, []),
        ("helmholtz", None, []),
        ("heat_inverse", None, []),
        ("digits", None, []),
        ("antiderivative", None, []),
        ("data_burgers", None, []),
        ("diffusion_reaction", None, []),
        ("burgers_operator", None, []),
        ("advection", None, []),
        ("transfer_ode", None, []),
        ("transfer_diffusion_reaction", None, []),
        ("transfer_burgers", None, []),
    ],
}
_LIMIT_S = 4 * 3600.0
RUNS = REPOSITORY / "runs" / "results"


def run(preset: str, overrides: list[str], cores: int) -> Record:
    """Refine every job of a size.

    Args:
        preset: ``"small"`` or ``"full"``; ``"tiny"`` is for the tests.
        overrides: ``section.key=value`` settings for every job.
        cores: MPI ranks, one thread each.

    Returns:
        The record.
    """
    runs = RUNS / preset
    rows = [_row(runs, job, name, [*own, *overrides], cores) for job, name, own in _JOBS[preset]]
    return Record(
        name="results",
        preset=preset,
        arms=rows,
        notes=[
            "Errors are relative L2 on points that no fit has seen; of several instances the mean, and the "
            f"worst. {cores} MPI ranks, one thread each, float64; seconds and memory of the whole command.",
            "Published figures are of networks and rows of the full size, on a GPU, from their own starts: "
            f"{_LSR} is arXiv:2601.13989, {_LST} its follow-up, "
            f"{_NNCG} is arXiv:2402.01868, {_NG} is arXiv:2604.05230.",
        ],
    )


def _row(runs: Path, job: str, preset: str | None, overrides: list[str], cores: int) -> Measurement:
    """One line of the table; ``skipped`` says why there is none."""
    words = ["refine", f"jobs/{job}.toml"]
    words += ["--preset", preset] if preset else []
    for override in overrides:
        words += ["--set", override]
    name = job if preset in {None, "small"} else f"{job}, {preset.removesuffix('_small')}"
    row: Measurement = {"arm": name, "command": f"`{shlex.join(words)}`", "error": None, "seconds": None}
    if job in _PUBLISHED and name == job:
        row |= {"published": str(_PUBLISHED[job]), "published_error": _PUBLISHED[job].refined}
    try:
        resolved = load_job(REPOSITORY / "jobs" / f"{job}.toml", overrides, preset)
        weights = Path(str(resolved.problem.weights))
        read_weights(weights)
    except JobError as error:
        return {**row, "skipped": f"left out: {error}"}
    out = runs / name.replace(", ", "_")
    if not _is_of(out, resolved.as_toml(), weights):
        print(f"... {name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "lsr_hpc.cli", *words, "--out", str(out)]
        launched = ["mpiexec", "-n", str(cores), *command] if cores > 1 else command
        reason = run_command(launched, threads=1, limit_s=_LIMIT_S)
        if reason is not None:
            return {**row, "skipped": reason}
    return {**row, **_figures(json.loads((out / "result.json").read_text(encoding="utf-8")))}


def _is_of(out: Path, job: str, weights: Path) -> bool:
    """Whether a finished run is there, of this job and of no older start."""
    result = out / "result.json"
    return (
        result.exists()
        and result.stat().st_mtime > weights.stat().st_mtime
        and (out / "job.toml").read_text(encoding="utf-8") == job
    )


def _figures(result: dict[str, Any]) -> Measurement:
    """What the table shows of a ``result.json``."""
    # Of a transfer the conditions, not the one that the network was trained at, nor those that failed.
    instances: Sequence[dict[str, Any]] = [
        i
        for i in result.get("instances", [result])
        if not i.get("is_source") and i["error"]["after"] is not None
    ]
    ranks = [i["rank"] for i in instances]
    before, after = result["error"]["before"], result["error"]["after"]
    return {
        "params": result["params"],
        "rows": result["rows"],
        "rank": f"{min(ranks)} to {max(ranks)}" if min(ranks) < max(ranks) else str(ranks[0]),
        "start": before,
        "error": after,
        "worst": max(i["error"]["after"] for i in instances)
        if len(instances) > 1
        else result["checks"].get("worst_error"),
        "median": statistics.median(i["error"]["after"] for i in instances),
        "gain": before / after,
        "instances": len(instances),
        "seconds": result["seconds"]["total"],
        "peak_rss_bytes": result["peak_rss_bytes"],
        "jacobian": result["jacobian"],
        "curve": [[e["rank"], e["error"]] for e in result["scan"] if e["rank"]],
        "residual": result["residual"],
    }


def draw(record: Record, figure: Any) -> None:
    """Start, published and refined error of every job; error against rank.

    Args:
        record: The record.
        figure: Matplotlib figure.
    """
    rows = [r for r in record.arms if "skipped" not in r]
    from cycler import cycler

    gains, ranks = figure.subplots(1, 2, width_ratios=(3, 2))
    for place, row in enumerate(reversed(rows)):
        gains.plot([row["start"], row["error"]], [place, place], color="0.75", zorder=1)
        published = row.get("published_error")
        marks = (
            (row["start"], "o", "0.5", "start"),
            (published, "D", "#D55E00", "published, refined"),
            (row["error"], "s", "#0072B2", "refined"),
        )
        for value, marker, color, label in marks:
            if value is not None:
                gains.plot(
                    [value],
                    [place],
                    marker,
                    color=color,
                    label=label if place == _first(rows, label) else None,
                )
    gains.set(xscale="log", xlabel="relative L2 error")
    gains.set_yticks(range(len(rows)), [r["arm"] for r in reversed(rows)])
    gains.grid(axis="x", alpha=0.3)
    gains.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    # There are more jobs than colours that can be told apart: dashes tell those apart that share one.
    ranks.set_prop_cycle(
        cycler(linestyle=["-", "--", ":"])
        * cycler(color=["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"])
    )
    for row in (r for r in rows if r["curve"]):
        ranks.loglog(*zip(*row["curve"], strict=True), label=row["arm"])
    ranks.set(xlabel="rank, scanned on fitted rows", ylabel="relative L2 error")
    ranks.grid(alpha=0.3)
    ranks.legend(fontsize="xx-small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _first(rows: Sequence[Measurement], label: str) -> int:
    """Place from below of the first row that has a mark, which names it in the legend."""
    has = [label != "published, refined" or "published_error" in row for row in reversed(rows)]
    return has.index(True)
