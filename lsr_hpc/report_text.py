"""The lines that a refinement prints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lsr_hpc.job import Job
from lsr_hpc.result import Outcome, RefineResult

__all__ = ["gain_in_words", "headline", "instance_line", "mean", "summary_lines"]


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of what is known, or None if anything is unknown.

    Args:
        values: Numbers or None.

    Returns:
        The mean.
    """
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def headline(job: Job, first: RefineResult, n_instances: int) -> str:
    """What runs, and the head of the table.

    Args:
        job: The job.
        first: Result of the first instance.
        n_instances: Number of instances.

    Returns:
        Two lines.
    """
    many = f"{n_instances} instances, each " if n_instances > 1 else ""
    # How many directions there are to find differs between instances.
    size = f"up to {job.subspace.rank}" if n_instances > 1 else f"{first.rank_max}"
    space = (
        f"{job.subspace.basis} basis of {size}"
        if job.solver.space == "subspace"
        else "all of parameter space"
    )
    return (
        f"{many}{first.counts['rows']} rows ({first.counts['held_out_rows']} held out), "
        f"{first.counts['params']} parameters; {space}, {job.solver.type}, {first.jacobian} Jacobian\n"
        f"{'':>4}  {'rank':>9}   {'error':>8} -> {'refined':<8}  {'gain':>9}   "
        f"{'residual':>8} -> {'linear':<8} {'true':<8} {'seconds':>7}"
    )


def _figure(value: float | None) -> str:
    return "       -" if value is None else f"{value:8.2e}"


def _gain(result: RefineResult) -> str:
    before, after = result.error_before, result.error_after
    return f"{before / after:.3g}x" if before and after else "-"


def gain_in_words(before: float, after: float) -> str:
    """What became of an error.

    Args:
        before: Error of the start.
        after: Error of the refined predictor.

    Returns:
        For example ``"1.2e+04x smaller"``.
    """
    if before == after:
        return "unchanged"
    if after == 0 or before == 0:
        return "now zero" if after == 0 else "larger"
    return f"{before / after:.3g}x smaller" if after < before else f"{after / before:.3g}x LARGER"


def instance_line(i: int, result: RefineResult) -> str:
    """One line of the table.

    Args:
        i: Number of the instance.
        result: Its result.

    Returns:
        The line; what was not simply refined says so.
    """
    note = "" if result.outcome is Outcome.REFINED else f"  {result.outcome.value}"
    return (
        f"{i:>4}  {result.rank:>4}/{result.rank_max:<4}   {_figure(result.error_before)} -> "
        f"{_figure(result.error_after)}  {_gain(result):>9}   "
        f"{_figure(result.residual_before)} -> {_figure(result.residual_linear)} "
        f"{_figure(result.residual_true)} {result.seconds['total']:7.2f}{note}"
    )


def summary_lines(results: Sequence[RefineResult], out: Path, seconds: float, peak_rss: int) -> list[str]:
    """What was gained, what to mind, and where it is.

    Args:
        results: All instances.
        out: Run directory.
        seconds: Wall time.
        peak_rss: Largest resident memory of a rank, in bytes.

    Returns:
        Lines.
    """
    before, after = mean([r.error_before for r in results]), mean([r.error_after for r in results])
    lines = []
    if before is not None and after is not None:
        improved = sum(
            1
            for r in results
            if r.error_after is not None and r.error_before is not None and r.error_after < r.error_before
        )
        whose = (
            f"mean relative L2 error of {len(results)} instances" if len(results) > 1 else "relative L2 error"
        )
        lines.append(
            f"{whose}: {before:.2e} -> {after:.2e}, {gain_in_words(before, after)}"
            + (f"; {improved} of {len(results)} improved" if len(results) > 1 else "")
        )
    right_before, right_after = (
        mean([r.checks.get(f"accuracy_{when}") for r in results]) for when in ("before", "after")
    )
    if right_before is not None and right_after is not None:
        lines.append(f"evaluation points in the right class: {right_before:.1%} -> {right_after:.1%}")
    advice: dict[str, int] = {}
    for result in results:
        for sentence in result.advice:
            advice[sentence] = advice.get(sentence, 0) + 1
    lines += [
        f"note{f' ({n} instances)' if n > 1 else ''}: {sentence}" for sentence, n in list(advice.items())[:5]
    ]
    lines.append(
        f"{seconds:.1f} s, peak memory {peak_rss / 2**20:.0f} MiB per rank; result and predictor in {out}"
    )
    return lines
