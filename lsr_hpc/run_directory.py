"""The run directory of a refinement: job, result, events and predictor, every file under a digest.

It is filled under a hidden name beside its place, ``.NAME.running-XXXXXXXX``, from the start of the run, and
renamed at the end. A run that is killed leaves it there with the instances it has finished.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr_hpc.errors import EnvironmentProblem, JobError
from lsr_hpc.events import Event
from lsr_hpc.field_sample import write_fields
from lsr_hpc.integrity import seal
from lsr_hpc.job import Job
from lsr_hpc.params import digest
from lsr_hpc.phase_record import TIMELINE, append_timeline
from lsr_hpc.phase_table import PhaseCost, phases_as_json
from lsr_hpc.predictor import RefinedPredictor, save_predictors
from lsr_hpc.publish import RUN_MARKER, PendingDirectory
from lsr_hpc.report_text import mean
from lsr_hpc.result import RefineResult
from lsr_hpc.versions import versions

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FinishedRun", "RunDirectory", "theta0_digest"]

_METRICS = "metrics.jsonl"


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
        phases: What the phases have cost.
    """

    job: Job
    name: str
    results: Sequence[RefineResult]
    predictors: Sequence[RefinedPredictor]
    world_size: int
    threads: int
    wall_s: float
    peak_rss_bytes: int
    phases: Sequence[PhaseCost] = ()


class RunDirectory:
    """A run directory while the run lasts.

    Args:
        out: Its final place; an earlier run there becomes ``NAME.previous`` at the end.
        job: The resolved job, written at once.

    Raises:
        JobError: If the place cannot be used.
        EnvironmentProblem: If writing fails.
    """

    def __init__(self, out: Path, job: Job) -> None:
        self._pending = PendingDirectory(out, RUN_MARKER, "--out")
        self._is_worth_keeping = False
        try:
            with _writing(self._pending.path):
                (self._pending.path / "job.toml").write_text(job.as_toml(), encoding="utf-8")
        except EnvironmentProblem:
            self._pending.discard()
            raise

    def add(self, instance: int, result: RefineResult) -> None:
        """Append a finished instance to ``metrics.jsonl`` and flush it to disk.

        Args:
            instance: Its number.
            result: Its result.

        Raises:
            EnvironmentProblem: If writing fails.
        """
        self._append({"event": "refined", "instance": instance, **result.as_json()})
        self._is_worth_keeping = True

    def add_failure(self, instance: int, cause: str) -> None:
        """Append an instance that could not be solved to ``metrics.jsonl``.

        Args:
            instance: Its number.
            cause: Why.

        Raises:
            EnvironmentProblem: If writing fails.
        """
        self._append({"event": "failed", "instance": instance, "cause": cause})

    def _append(self, event: Mapping[str, Any]) -> None:
        line = json.dumps(event, allow_nan=False)
        with (
            _writing(self._pending.path),
            (self._pending.path / _METRICS).open("a", encoding="utf-8") as file,
        ):
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    @property
    def path(self) -> Path:
        """Where the directory is being filled."""
        return self._pending.path

    def add_fields(self, instance: int, kept: Mapping[str, Tensor]) -> None:
        """Write the errors of an instance at some evaluation points.

        Args:
            instance: Its number.
            kept: See :func:`lsr_hpc.field_sample.sample_fields`.

        Raises:
            EnvironmentProblem: If writing fails.
        """
        with _writing(self._pending.path):
            write_fields(self._pending.path / "fields" / f"instance-{instance:05d}.safetensors", kept)

    def add_timeline(self, phases_of_ranks: Sequence[Sequence[Event]]) -> None:
        """Append the phases that the ranks have ended to ``timeline.jsonl``.

        Args:
            phases_of_ranks: Events of every MPI rank, in rank order.

        Raises:
            EnvironmentProblem: If writing fails.
        """
        with _writing(self._pending.path):
            append_timeline(self._pending.path / TIMELINE, phases_of_ranks)

    def finish(self, run: FinishedRun) -> None:
        """Write predictor, ``result.json`` and a manifest of all files; put the directory in its place.

        Args:
            run: What to write.

        Raises:
            EnvironmentProblem: If writing or renaming fails; what there is stays under the temporary name.
        """
        self.publish(_result_json(run), run.predictors)

    def publish(self, content: Mapping[str, Any], predictors: Sequence[RefinedPredictor]) -> None:
        """The same with a ``result.json`` of the caller's.

        Args:
            content: Of ``result.json``.
            predictors: One predictor per instance.

        Raises:
            EnvironmentProblem: If writing or renaming fails; what there is stays under the temporary name.
        """
        target = self._pending.path
        with _writing(target):
            save_predictors(target / "predictor", predictors)
            text = json.dumps(content, indent=1, allow_nan=False)
            (target / RUN_MARKER).write_text(text + "\n", encoding="utf-8")
            seal(target)
        self._pending.publish()

    def abandon(self, error: BaseException) -> None:
        """Remove what a refused job or a run without a finished instance has left.

        Args:
            error: What ended the run; anything but wrong input leaves the finished instances on disk.
        """
        if isinstance(error, JobError) or not self._is_worth_keeping:
            self._pending.discard()


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(
            f"{error.filename or directory} cannot be written: {error.strerror}; free some of the disk, or "
            f"name another --out. Instances finished before are in {directory / _METRICS}"
        ) from error


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
        "jacobian": first.jacobian,
        "solver": job.solver.type,
        "dtype": "float64",
        "theta0_sha256": theta0_digest(predictors[0]),
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
                    "theta0_sha256": theta0_digest(p),
                    "basis": content["basis"],
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
    content["phases"] = phases_as_json(run.phases)
    content["versions"] = versions(with_solvers=True)
    return content


def theta0_digest(predictor: RefinedPredictor) -> str:
    """SHA-256 of the trained parameters of a predictor."""
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
