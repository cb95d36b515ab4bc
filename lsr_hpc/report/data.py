"""What a report shows, read from a finished directory of ``refine`` or ``run``; every byte is checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.errors import JobError
from lsr_hpc.field_sample import read_fields
from lsr_hpc.integrity import MANIFEST, Fault, digest_fault, read_signed, seal_faults
from lsr_hpc.phase_record import TIMELINE, read_timelines
from lsr_hpc.phase_table import PhaseCost, phase_costs
from lsr_hpc.publish import RUN_MARKER

__all__ = ["InstanceData", "Phase", "RunData", "load_run"]

Array = NDArray[np.float64]
_IDENTITY, _JOB = "run.json", "job.toml"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of work of one MPI rank.

    Attributes:
        mpi_rank: The rank.
        name: Name of the phase.
        begin: Seconds since the epoch.
        end: Seconds since the epoch.
        peak_rss_bytes: Largest resident memory of the process until then.
    """

    mpi_rank: int
    name: str
    begin: float
    end: float
    peak_rss_bytes: int


@dataclass(frozen=True, kw_only=True)
class InstanceData:
    """One refined network.

    Attributes:
        number: Number of the instance.
        rank: Directions used.
        rank_max: Directions made; None where it is not known (rounds).
        outcome: How it ended.
        advice: What to mind.
        error_before: Relative L2 error of the start, None without evaluation data.
        error_after: Of the refined predictor.
        network_error: Of the aligned network, after rounds.
        residual_before: Square root of the loss at the start.
        residual_linear: What the linearisation promised; None after rounds.
        residual_true: Of the refined field.
        scan: Ranks looked at: rank, train, held_out, error, true.
        spectrum: Number (from 1), singular value and share of the start residual, shape (l, 3).
        records: Rounds, empty for ``refine``.
        fields: Thinned evaluation data with errors, empty without any.
        seconds: Wall time.
        seconds_by_phase: Empty after rounds.
    """

    number: int
    rank: int
    rank_max: int | None
    outcome: str
    advice: Sequence[str]
    error_before: float | None
    error_after: float | None
    network_error: float | None
    residual_before: float
    residual_linear: float | None
    residual_true: float
    scan: Sequence[Mapping[str, Any]]
    spectrum: Array
    records: Sequence[Mapping[str, Any]]
    fields: Mapping[str, Array]
    seconds: float
    seconds_by_phase: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A finished directory.

    Attributes:
        name: Name of the directory.
        directory: The directory.
        problem: Name of the problem.
        is_iterative: Whether it is of ``lsr-hpc run``.
        is_transfer: Whether the instances are conditions solved in the tangent space of one network.
        instances: The refined ones, in order.
        n_instances: How many there were to refine.
        result: All of ``result.json``.
        phases: Of all MPI ranks, by begin.
        costs: What the phases have cost over all ranks.
        job: Text of the resolved job.
    """

    name: str
    directory: Path
    problem: str
    is_iterative: bool
    is_transfer: bool
    instances: Sequence[InstanceData]
    n_instances: int
    result: Mapping[str, Any]
    phases: Sequence[Phase]
    costs: Sequence[PhaseCost]
    job: str


def load_run(directory: Path) -> RunData:
    """Read a finished directory, having compared every file with its digest.

    Args:
        directory: Directory of ``refine`` or of ``run``.

    Returns:
        What there is to show.

    Raises:
        JobError: If it is no such directory, not finished, damaged, or has no refined instance.
    """
    is_iterative = (directory / _IDENTITY).exists()
    if not (directory / RUN_MARKER).is_file():
        remedy = (
            f"finish it with `lsr-hpc resume {directory}`" if is_iterative else "give --out of refine or run"
        )
        raise JobError(f"{directory} holds no finished run: {remedy}")
    _require_intact(directory, is_iterative)
    result = json.loads((directory / RUN_MARKER).read_text(encoding="utf-8"))
    instances = _rounds_of(directory, result) if is_iterative else _refinements_of(directory, result)
    if not instances:
        raise JobError(f"{directory}: no instance was refined: {result.get('message', 'see its log')}")
    timeline = read_timelines([
        directory / TIMELINE,
        *sorted((directory / "steps").glob(f"*/*/*/{TIMELINE}")),
    ])
    return RunData(
        name=directory.resolve().name,
        directory=directory,
        problem=result["problem"],
        is_iterative=is_iterative,
        is_transfer="transfer" in result,
        instances=instances,
        n_instances=len(_entries(result)),
        result=result,
        phases=_phases_of(timeline),
        costs=phase_costs(timeline),
        job=(directory / _JOB).read_text(encoding="utf-8"),
    )


def _require_intact(directory: Path, is_iterative: bool) -> None:
    faults = seal_faults(directory)
    if is_iterative:
        identity = read_signed(directory / _IDENTITY)
        if isinstance(identity, Fault):
            faults.append(identity)
        elif fault := digest_fault(directory / _JOB, str(identity.get("job_sha256"))):
            faults.append(fault)
    if faults:
        missing_seal = faults[0].file == MANIFEST and faults[0].kind == "missing"
        advice = (
            "it was made by an older version, or its run has not ended"
            if missing_seal
            else "see `lsr-hpc verify`, and restore a copy or run again"
        )
        named = "; ".join(map(str, faults[:3])) + (f" and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise JobError(f"{directory}: {named}: {advice}")


def _entries(result: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """Instances with their numbers; the source of a transfer is none of its results."""
    entries = enumerate(result.get("instances", [result]))
    return [(i, entry) for i, entry in entries if not entry.get("is_source")]


def _refinements_of(directory: Path, result: Mapping[str, Any]) -> list[InstanceData]:
    return [
        InstanceData(
            number=i,
            rank=entry["rank"],
            rank_max=entry["rank_max"],
            outcome=entry["outcome"],
            advice=entry["advice"],
            error_before=entry["error"]["before"],
            error_after=entry["error"]["after"],
            network_error=None,
            residual_before=entry["residual"]["before"],
            residual_linear=entry["residual"]["linear"],
            residual_true=entry["residual"]["true"],
            scan=entry["scan"],
            spectrum=_spectrum(entry["singular_values"], entry.get("residual_components", [])),
            records=(),
            fields=_fields_of(directory, i),
            seconds=entry["seconds"]["total"],
            seconds_by_phase={k: v for k, v in entry["seconds"].items() if k not in {"total", "products"}},
        )
        for i, entry in _entries(result)
        # A condition that a transfer could not solve has no figures.
        if entry["outcome"] != "failed"
    ]


def _rounds_of(directory: Path, result: Mapping[str, Any]) -> list[InstanceData]:
    return [
        InstanceData(
            number=entry["instance"],
            rank=entry["rank"],
            rank_max=None,
            outcome=result["instances"][entry["instance"]].get("status", "done"),
            advice=(),
            error_before=entry["error"]["before"],
            error_after=entry["error"]["after"],
            network_error=entry["network"]["error"],
            residual_before=entry["residual"]["before"],
            residual_linear=None,
            residual_true=entry["residual"]["true"],
            scan=entry["records"][entry["predictor_round"]].get("scan", []),
            spectrum=_from_records(entry["records"][entry["predictor_round"]].get("spectrum", [])),
            records=entry["records"],
            fields=_fields_of(directory, entry["instance"]),
            seconds=entry["seconds"],
            seconds_by_phase={},
        )
        for entry in result.get("rounds", [])
    ]


def _spectrum(singular_values: Sequence[float], components: Sequence[float]) -> Array:
    """Directions that were left out have no share of the residual: NaN."""
    n = len(singular_values)
    shares = np.full(n, np.nan)
    shares[: len(components)] = components
    return np.column_stack([np.arange(1, n + 1), np.asarray(singular_values, dtype=float), shares])


def _from_records(spectrum: Sequence[Sequence[float]]) -> Array:
    table = np.array(spectrum, dtype=float).reshape(-1, 3)
    table[:, 0] += 1
    return table


def _fields_of(directory: Path, instance: int) -> dict[str, Array]:
    path = directory / "fields" / f"instance-{instance:05d}.safetensors"
    return read_fields(path) if path.is_file() else {}


def _phases_of(timeline: Sequence[Mapping[str, Any]]) -> list[Phase]:
    return [
        Phase(
            mpi_rank=line["mpi_rank"],
            name=line["phase"],
            begin=line["begin"],
            end=line["end"],
            peak_rss_bytes=line["peak_rss_bytes"],
        )
        for line in timeline
    ]
