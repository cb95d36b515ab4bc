"""Identity of a run, ``run.json`` and ``job.toml``: written once, compared with every later start."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lsr_hpc import __version__
from lsr_hpc.errors import EnvironmentProblem, JobError
from lsr_hpc.job import Job, load_job
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.publish import RUN_MARKER, publish_file, publish_text
from lsr_hpc.store import file_digest, read_manifest, write_manifest

__all__ = [
    "RunRecord",
    "check_same_job",
    "differences",
    "identity",
    "read_record",
    "stored_job",
    "write_record",
]

_KIND = "lsr_hpc run"
_SCHEMA = 1
# What may differ between two starts of a run: how it is carried out, not what it computes.
_FREE = ("run.", "slurm.", "campaign.", "name")


@dataclass(frozen=True)
class RunRecord:
    """A run.

    Attributes:
        run_id: Its identity.
        job_sha256: Digest of ``job.toml``.
        problem: Name of the problem or family.
        instances: Number of instances.
    """

    run_id: str
    job_sha256: str
    problem: str
    instances: int


def write_record(layout: RunLayout, job: Job, problem: str, instances: int) -> RunRecord:
    """Give a new run its identity; ``run.json`` comes last, and makes the directory one of ours.

    Args:
        layout: The run directory, which is there.
        job: The resolved job.
        problem: Name of the problem or family.
        instances: Number of instances.

    Returns:
        The record.

    Raises:
        EnvironmentProblem: If writing fails.
    """
    text = job.as_toml()
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    record = RunRecord(secrets.token_hex(8), sha256, problem, instances)
    content = {
        "kind": _KIND,
        "schema": _SCHEMA,
        **asdict(record),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": _versions(),
    }
    try:
        publish_text(layout.job, text)
        with publish_file(layout.run) as temporary:
            write_manifest(temporary, content)
    except OSError as error:
        raise EnvironmentProblem(f"{layout.root} cannot be written: {error.strerror}") from error
    return record


def _versions() -> dict[str, str]:
    # Asked of the installation: loading torch would cost the controller a second.
    found = {"lsr_hpc": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in ("torch", "numpy", "distributed")}


def read_record(layout: RunLayout) -> RunRecord:
    """Read the identity of a run.

    Args:
        layout: The run directory.

    Returns:
        The record.

    Raises:
        JobError: If the directory is not one of ``lsr-hpc run``, or its identity is damaged.
    """
    if not layout.run.is_file():
        raise JobError(_no_run(layout))
    content = read_manifest(layout.run)
    if content.get("kind") != _KIND or content.get("schema") != _SCHEMA:
        raise JobError(
            f"{layout.run} is of another kind or version ({content.get('kind')!r}, schema "
            f"{content.get('schema')!r}): use the lsr_hpc that wrote it"
        )
    return RunRecord(**{name: content[name] for name in RunRecord.__dataclass_fields__})


def _no_run(layout: RunLayout) -> str:
    root = layout.root
    if (root / RUN_MARKER).is_file():
        return (
            f"{root} is of `lsr-hpc refine`, which is done at once and has no rounds: see "
            f"`lsr-hpc report {root}`"
        )
    missing = f"there is no {layout.run.name} in it" if root.is_dir() else "it does not exist"
    return f"{root} is no run directory of `lsr-hpc run` ({missing}): give what was its --out"


def stored_job(layout: RunLayout, record: RunRecord, overrides: list[str]) -> Job:
    """The job that a run was started with.

    Args:
        layout: The run directory.
        record: Its record.
        overrides: Settings of section ``[run]`` that are to differ, as for ``--set``.

    Returns:
        The job.

    Raises:
        JobError: If it is missing or was changed.
    """
    if not layout.job.is_file() or file_digest(layout.job) != record.job_sha256:
        raise JobError(f"{layout.job} is missing or was changed after the run began: restore it")
    return load_job(layout.job, overrides)


def check_same_job(layout: RunLayout, record: RunRecord, job: Job) -> None:
    """Refuse to go on with another job; sections ``[run]`` and ``[slurm]`` may differ.

    Args:
        layout: The run directory.
        record: Its record.
        job: The job of this start.

    Raises:
        JobError: Naming every key that differs.
    """
    before, now = (identity(replace(j, iterate=j.rounds)) for j in (stored_job(layout, record, []), job))
    differing = differences(before, now)
    if differing:
        raise JobError(
            f"{layout.root} holds a run of another job: name another --out. Different are"
            + "".join(f"\n  - {line}" for line in differing)
        )


def identity(job: Job) -> dict[str, Any]:
    """What a job computes, apart from how it is carried out.

    Args:
        job: The job.

    Returns:
        Values by dotted name; what is absent is left out.
    """
    flat = dict(_flat(asdict(job)))
    return {key: value for key, value in flat.items() if value is not None and not key.startswith(_FREE)}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two jobs differ in.

    Args:
        there: Identity of one.
        here: Identity of the other.

    Returns:
        A line for every setting that differs.
    """
    return [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
