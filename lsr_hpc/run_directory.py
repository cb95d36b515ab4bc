"""The run directory of a refinement: job, result, events and predictor, published whole or not at all."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsr_hpc.job import Job
from lsr_hpc.params import digest
from lsr_hpc.predictor import RefinedPredictor, save_predictors
from lsr_hpc.report_text import mean
from lsr_hpc.result import RefineResult
from lsr_hpc.store import publish_directory
from lsr_hpc.versions import versions

__all__ = ["FinishedRun", "write_run"]


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """Everything a run directory records.

    Attributes:
        job: The resolved job.
        name: Name of the problem or family.
        results: One result per instance.
        predictors: One predictor per instance.
        world_size: MPI ranks.
        threads: Threads per rank.
        wall_s: Wall time of everything, in seconds.
        peak_rss_bytes: Largest resident memory of a rank.
    """

    job: Job
    name: str
    results: Sequence[RefineResult]
    predictors: Sequence[RefinedPredictor]
    world_size: int
    threads: int
    wall_s: float
    peak_rss_bytes: int


def write_run(out: Path, run: FinishedRun) -> None:
    """Write ``job.toml``, ``result.json``, ``metrics.jsonl`` and ``predictor/``.

    Args:
        out: Run directory; an earlier run there becomes ``NAME.previous``.
        run: What to write.
    """
    with publish_directory(out) as target:
        (target / "job.toml").write_text(run.job.as_toml(), encoding="utf-8")
        content = _result_json(run)
        (target / "result.json").write_text(
            json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        with (target / "metrics.jsonl").open("w", encoding="utf-8") as file:
            for i, result in enumerate(run.results):
                file.write(
                    json.dumps({"event": "refined", "instance": i, **result.as_json()}, allow_nan=False)
                    + "\n"
                )
        save_predictors(target / "predictor", run.predictors)


def _result_json(run: FinishedRun) -> dict[str, Any]:
    job, results, predictors = run.job, run.results, run.predictors
    first = results[0]
    content: dict[str, Any] = {
        "schema": 1,
        "status": "done",
        "problem": run.name,
        "world_size": run.world_size,
        "threads_per_rank": run.threads,
        "rows": first.counts["rows"],
        "params": first.counts["params"],
        "rank": first.rank,
        "rank_max": first.rank_max,
        "basis": job.subspace.basis if job.solver.space == "subspace" else "none",
        "jacobian": job.compute.jacobian,
        "solver": job.solver.type,
        "dtype": "float64",
        "theta0_sha256": _theta0_digest(predictors[0]),
    }
    if len(results) == 1:
        content |= {k: v for k, v in first.as_json().items() if k != "problem"}
    else:
        errors = {"before": [r.error_before for r in results], "after": [r.error_after for r in results]}
        content |= {
            "rank": round(statistics.fmean(r.rank for r in results)),
            "error": {when: mean(values) for when, values in errors.items()},
            "error_std": {
                when: None if None in values else statistics.pstdev([v for v in values if v is not None])
                for when, values in errors.items()
            },
            "residual": {
                key: mean([getattr(r, f"residual_{key}") for r in results])
                for key in ("before", "linear", "true")
            },
            "scan": _mean_scan(results),
            "seconds": {key: sum(r.seconds[key] for r in results) for key in first.seconds},
            "instances": [
                {
                    **r.as_json(),
                    "theta0_sha256": _theta0_digest(p),
                    "basis": content["basis"],
                    "jacobian": content["jacobian"],
                    "solver": content["solver"],
                    "dtype": content["dtype"],
                }
                for r, p in zip(results, predictors, strict=True)
            ],
        }
    content["seconds"] = {
        **{"basis": 0.0, "jacobian": 0.0, "solve": 0.0},
        **content["seconds"],
        "total": run.wall_s,
    }
    content["peak_rss_bytes"] = run.peak_rss_bytes
    content["versions"] = versions(with_solvers=True)
    return content


def _theta0_digest(predictor: RefinedPredictor) -> str:
    return digest(predictor.layout.read(predictor.network))


def _mean_scan(results: Sequence[RefineResult]) -> list[dict[str, Any]]:
    """Mean over the instances at every rank that all of them scanned."""
    by_rank = [{entry["rank"]: entry for entry in r.scan} for r in results]
    common = sorted(set.intersection(*(set(entries) for entries in by_rank)))
    return [
        {
            "rank": rank,
            **{
                key: mean([entries[rank][key] for entries in by_rank])
                for key in ("train", "held_out", "error")
            },
        }
        for rank in common
    ]
