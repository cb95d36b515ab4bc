"""What a transfer leaves in ``result.json``, and the lines that it prints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lsr_hpc.job import Job
from lsr_hpc.phase_table import PhaseCost, phases_as_json
from lsr_hpc.report_text import gain_in_words, mean
from lsr_hpc.transfer.groups import FailedTarget, SolvedTarget
from lsr_hpc.transfer.statistics import Spread, spread
from lsr_hpc.versions import versions

__all__ = ["FinishedTransfer", "result_json", "summary_lines"]


@dataclass(frozen=True, kw_only=True)
class FinishedTransfer:
    """All that a transfer has to tell.

    Attributes:
        job: The resolved job.
        name: Name of the family.
        targets: What became of every instance, in order.
        modes: The part of ``result.json`` on the response modes.
        theta0_sha256: Digest of the trained parameters.
        world_size: MPI ranks.
        threads: Threads per rank.
        seconds: By phase, and in total.
        peak_rss_bytes: Largest resident memory of a rank.
        phases: What the phases have cost.
    """

    job: Job
    name: str
    targets: Sequence[SolvedTarget | FailedTarget]
    modes: Mapping[str, Any]
    theta0_sha256: str
    world_size: int
    threads: int
    seconds: Mapping[str, float]
    peak_rss_bytes: int
    phases: Sequence[PhaseCost] = field(default_factory=tuple)

    @property
    def source(self) -> int:
        """Number of the source."""
        assert self.job.transfer is not None
        return self.job.transfer.source

    @property
    def solved(self) -> list[SolvedTarget]:
        """Those with a result, the source among them."""
        return [t for t in self.targets if isinstance(t, SolvedTarget)]

    @property
    def failed(self) -> list[FailedTarget]:
        """Those without one."""
        return [t for t in self.targets if isinstance(t, FailedTarget)]

    @property
    def counting(self) -> list[SolvedTarget]:
        """Those that the statistics are of: solved ones but the source."""
        return [t for t in self.solved if t.instance != self.source]


def result_json(run: FinishedTransfer) -> dict[str, Any]:
    """Content of ``result.json``.

    Args:
        run: What there is to tell.

    Returns:
        JSON types, no NaN.
    """
    results = [t.result for t in run.counting]
    some = (results or [t.result for t in run.solved])[0]
    errors = {"before": [r.error_before for r in results], "after": [r.error_after for r in results]}
    figures: dict[str, Sequence[float | None]] = {
        "error_before": errors["before"],
        "error": errors["after"],
        "residual_before": [r.residual_before for r in results],
        "residual": [r.residual_true for r in results],
        "steps": [float(r.checks["resolve_steps"]) for r in results],
        "seconds": [r.seconds["total"] for r in results],
    }
    return {
        "schema": 1,
        "status": "done",
        "problem": run.name,
        "world_size": run.world_size,
        "threads_per_rank": run.threads,
        "rows": some.counts["rows"],
        "params": some.counts["params"],
        "rank": round(mean([float(r.rank) for r in results]) or 0),
        "rank_max": some.rank_max,
        "basis": run.job.subspace.basis,
        "jacobian": some.jacobian,
        "solver": run.job.solver.type,
        "dtype": "float64",
        "theta0_sha256": run.theta0_sha256,
        "error": {when: mean(values) for when, values in errors.items()},
        "error_std": {when: _deviation(values) for when, values in errors.items()},
        "residual": {
            key: mean([getattr(r, f"residual_{key}") for r in results])
            for key in ("before", "linear", "true")
        },
        "scan": [],
        "transfer": {
            "source": run.source,
            "targets": len(run.targets) - 1,
            "solved": len(results),
            "failed": [{"instance": t.instance, "cause": t.cause} for t in run.failed],
            "modes": dict(run.modes),
            **{name: _as_json(spread(values)) for name, values in figures.items()},
        },
        "instances": [_instance_json(run, target) for target in run.targets],
        "seconds": {"basis": 0.0, "jacobian": 0.0, "solve": 0.0, **run.seconds},
        "peak_rss_bytes": run.peak_rss_bytes,
        "phases": phases_as_json(run.phases),
        "versions": versions(with_solvers=True),
    }


def _instance_json(run: FinishedTransfer, target: SolvedTarget | FailedTarget) -> dict[str, Any]:
    same = {
        "instance": target.instance,
        "is_source": target.instance == run.source,
        "theta0_sha256": run.theta0_sha256,
        "basis": run.job.subspace.basis,
        "solver": run.job.solver.type,
        "dtype": "float64",
    }
    if isinstance(target, SolvedTarget):
        return {**same, **target.result.as_json()}
    return {
        **same,
        "outcome": "failed",
        "advice": [target.cause],
        "rank": 0,
        "error": {"before": None, "after": None},
        "residual": {"before": None, "linear": None, "true": None},
        "scan": [],
        "seconds": {"total": target.seconds},
    }


def summary_lines(run: FinishedTransfer, out: Path) -> list[str]:
    """What was gained, what to mind, and where it is.

    Args:
        run: What there is to tell.
        out: Run directory.

    Returns:
        Lines.
    """
    results = [t.result for t in run.counting]
    before, after = spread([r.error_before for r in results]), spread([r.error_after for r in results])
    lines = []
    if before is not None and after is not None:
        lines += [
            f"relative L2 error of {len(results)} targets: mean {before.mean:.2e} -> {after.mean:.2e}, "
            f"{gain_in_words(before.mean, after.mean)}; median {after.median:.2e}, P90 {after.p90:.2e}, "
            f"worst {after.worst:.2e}"
        ]
    seconds = spread([r.seconds["solve"] for r in results])
    if seconds is not None:
        steps = sum(r.checks["resolve_steps"] for r in results) / len(results)
        lines.append(f"{seconds.mean:.2g} s and {steps:.2g} Gauss-Newton steps for a target")
    if run.failed:
        lines.append(f"{len(run.failed)} of {len(run.targets)} conditions failed, see above and result.json")
    advice = Counter(sentence for t in run.solved for sentence in t.result.advice)
    lines += [
        f"note{f' ({n} targets)' if n > 1 else ''}: {sentence}" for sentence, n in advice.most_common(5)
    ]
    memory = run.peak_rss_bytes / 2**20
    lines.append(
        f"{run.seconds['total']:.1f} s, peak memory {memory:.0f} MiB per rank; result and predictors in {out}"
    )
    return lines


def _deviation(values: Sequence[float | None]) -> float | None:
    centre = mean(values)
    squares = [(v - centre) ** 2 for v in values if v is not None and centre is not None]
    return None if centre is None else math.sqrt(math.fsum(squares) / len(squares))


def _as_json(found: Spread | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)
