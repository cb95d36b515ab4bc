"""What the controller asks of a step and what the step answers: two signed JSON files, each written once.

A step is one MPI program that carries one instance forward by some rounds. Reading and writing here needs the
standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lsr_hpc.checkpoint.manifest import CheckpointId
from lsr_hpc.errors import JobError
from lsr_hpc.publish import publish_file
from lsr_hpc.store import read_manifest, write_manifest

__all__ = [
    "CheckpointId",
    "Status",
    "StepResult",
    "StepSpec",
    "read_result",
    "read_spec",
    "write_result",
    "write_spec",
]

_SCHEMA = 1
# done: rounds were finished; yielded: asked to stop, what was reached is in the checkpoint; diverged: the
# stop rule gave the instance up, its best checkpoint stays; failed: an error that all ranks know.
Status = Literal["done", "yielded", "diverged", "failed"]


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """What one attempt at a step has to do. A replay needs nothing else.

    Attributes:
        run_id: Identity of the run.
        instance: Number of the instance, from 0.
        round: Number of the round to do, or to go on with, from 0.
        rounds: How many rounds to do at most before leaving.
        attempt: Which attempt at this round it is, from 1.
        sequence: Which attempt of this instance it is, whatever the round, from 1.
        world_size: MPI ranks that the step must find itself on.
        job_sha256: Digest of the run's ``job.toml``.
        run_directory: Absolute path of the run directory.
        checkpoint: State to start from, or None at the very beginning.
        checkpoint_seconds: Seconds after which a state inside a round is worth writing.
        keep: How many checkpoints to keep besides the best.
        body: The function that does the step, ``package.module:function``; see :mod:`lsr_hpc.pipeline.step`.
        kind: ``"round"``, or another kind of step that the body knows.
        tries: For a step of a campaign: its members in order, and which try at each of them it is.
    """

    run_id: str
    instance: int
    round: int
    rounds: int
    attempt: int
    sequence: int
    world_size: int
    job_sha256: str
    run_directory: str
    checkpoint: CheckpointId | None
    checkpoint_seconds: float
    keep: int
    body: str
    kind: str = "round"
    tries: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step came to; equal on all ranks.

    Attributes:
        status: See :data:`Status`.
        round: Last round that was finished; for a step that yielded or failed the round it was in.
        is_finished: Whether nothing is left to do for the instance.
        why: Reason of the stop rule, where it is finished.
        metrics: Measures for ``metrics.jsonl``, ``result.json`` and ``status``: JSON without NaN. ``status``
            shows ``error_before``, ``error``, ``error_best`` and ``seconds`` where they are there.
        checkpoint: The newest checkpoint, or None if there is none yet.
        message: What went wrong, for ``failed``; otherwise a remark or nothing.
        exit_code: Exit code that goes with the message, for ``failed``; otherwise 0.
    """

    status: Status
    round: int
    is_finished: bool = False
    why: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: CheckpointId | None = None
    message: str = ""
    exit_code: int = 0

    @property
    def next_round(self) -> int:
        """The round that comes next."""
        return self.round + (self.status in {"done", "diverged"})


def write_spec(path: Path, spec: StepSpec) -> None:
    """Write a step's specification.

    Args:
        path: File, not yet there.
        spec: The specification.

    Raises:
        FileExistsError: If the file is there: specifications are never changed.
    """
    _write_once(path, spec)


def read_spec(path: Path) -> StepSpec:
    """Read a step's specification.

    Args:
        path: File.

    Returns:
        The specification.

    Raises:
        JobError: If it is missing, damaged, or of another version.
    """
    content = _read(path, StepSpec)
    return StepSpec(**content)


def write_result(path: Path, result: StepResult) -> None:
    """Write a step's result.

    Args:
        path: File, not yet there.
        result: The result.

    Raises:
        FileExistsError: If the file is there: results are never changed.
        ValueError: If a metric is NaN or infinite.
    """
    _write_once(path, result)


def read_result(path: Path) -> StepResult:
    """Read a step's result.

    Args:
        path: File.

    Returns:
        The result.

    Raises:
        JobError: If it is missing, damaged, or of another version.
    """
    content = _read(path, StepResult)
    if content.get("status") not in get_args(Status):
        raise JobError(f"{path}: status {content.get('status')!r} is not known: is it of another version?")
    return StepResult(**content)


def _write_once(path: Path, content: StepSpec | StepResult) -> None:
    if path.exists():
        raise FileExistsError(f"{path} is there already, and is never replaced")
    with publish_file(path) as temporary:
        write_manifest(temporary, {"schema": _SCHEMA, **asdict(content)})


def _read(path: Path, kind: type[StepSpec | StepResult]) -> dict[str, Any]:
    content = read_manifest(path)
    schema = content.pop("schema", None)
    fields = dataclasses.fields(kind)
    required = {f.name for f in fields if f.default is f.default_factory}
    if schema != _SCHEMA or not required <= set(content) <= {f.name for f in fields}:
        raise JobError(
            f"{path} is no {kind.__name__} of schema {_SCHEMA} (schema {schema!r}): it was written by "
            "another version of lsr_hpc; use that one"
        )
    if content.get("checkpoint") is not None:
        content["checkpoint"] = CheckpointId(**content["checkpoint"])
    return content
