"""A Jacobian ten times larger than the memory budget of a rank, refined all the same.

Ours gets ``compute.memory_per_rank``; the published recipe, which has no such setting, shows what the same
products take when all rows are differentiated at once. The budget counts everything in the process, libraries
included.
"""

from __future__ import annotations

from typing import Any

from benchmarks.arms import Arm, Measurement, run_arm
from benchmarks.cases import Case
from benchmarks.record import Column, Record, ratio
from lsr_hpc.settings import parse_bytes

__all__ = ["COLUMNS", "draw", "run"]

COLUMNS = (
    Column("rows", "rows", "d"),
    Column("params", "P", "d"),
    Column("rank", "rank", "d"),
    Column("jacobian_bytes", "8 N P MiB", ".0f", 2**-20),
    Column("budget_bytes", "budget MiB", ".0f", 2**-20),
    Column("peak_rss_bytes", "peak MiB", ".0f", 2**-20),
    Column("peak_over_budget", "peak / budget", ".2f"),
    Column("error_before", "error before", ".2e"),
    Column("error", "after", ".2e"),
    Column("seconds", "s"),
    Column("foreign_cores", "foreign cores", ".1f"),
)

# job, its preset, settings, budget of each rank
_SIZES: dict[str, tuple[str, str | None, list[str], str]] = {
    "tiny": (
        "jobs/antiderivative.toml",
        "small",
        ["problem.args.rows=100", "subspace.rank=8"],
        "2GiB",
    ),
    "small": (
        "jobs/antiderivative.toml",
        "small",
        ["problem.args.rows=40000", "subspace.rank=20"],
        "560MiB",
    ),
    "full": (
        "jobs/function_fit.toml",
        None,
        ["problem.args.points=40000", "subspace.rank=200"],
        "1.5GiB",
    ),
}


def run(preset: str, overrides: list[str], cores: int) -> Record:
    """Run all arms.

    Args:
        preset: ``"small"`` or ``"full"``; ``"tiny"`` is for the tests, where J does fit.
        overrides: ``section.key=value`` settings.
        cores: Cores of every arm.

    Returns:
        The record.
    """
    job, job_preset, settings, budget = _SIZES[preset]
    words = [*settings, f"compute.memory_per_rank={budget}", *overrides]
    case: Case = {"job": job, "preset": job_preset, "overrides": words}
    [ours] = run_arm(Arm(name="ours", function="oneshot:ours", arguments={"case": case}, mpi_ranks=cores))
    [recipe] = run_arm(
        Arm(
            name="published_recipe",
            function="oneshot:recipe",
            arguments={"case": case, "dtype": "float64", "rank": None},
            threads=cores,
        )
    )
    budget_bytes = parse_bytes(budget)
    if "skipped" not in ours:
        fitted = ours["rows"] - ours["held_out_rows"]
        sizes = {
            "rows": fitted,
            "params": ours["params"],
            "jacobian_bytes": 8 * fitted * ours["params"],
            "budget_bytes": budget_bytes,
        }
        for arm in (ours, recipe):
            if arm["peak_rss_bytes"]:
                arm |= {**sizes, "peak_over_budget": arm["peak_rss_bytes"] / budget_bytes}
    ratios: dict[str, float | None] = {
        "J over budget of a rank": ratio(ours, ours | {"jacobian_bytes": budget_bytes}, "jacobian_bytes"),
        "peak memory: published_recipe/ours": ratio(recipe, ours, "peak_rss_bytes"),
    }
    return Record(
        name="memory",
        preset=preset,
        arms=[ours, recipe],
        ratios={name: value for name, value in ratios.items() if value is not None},
        notes=["peak: resident memory of the largest process, libraries included, as the budget is meant."],
    )


def draw(record: Record, figure: Any) -> None:
    """Bytes of J, budget and peaks as bars.

    Args:
        record: The record.
        figure: Matplotlib figure.
    """
    axes = figure.subplots()
    measured: list[Measurement] = [a for a in record.arms if a.get("jacobian_bytes")]
    if not measured:
        return
    first = measured[0]
    bars = {"J, if stored": first["jacobian_bytes"], "budget of a rank": first["budget_bytes"]}
    bars |= {f"peak of {a['arm']}": a["peak_rss_bytes"] for a in measured}
    axes.barh(list(bars), [b / 2**30 for b in bars.values()])
    axes.set(xlabel="GiB")
    axes.grid(axis="x", alpha=0.3)
