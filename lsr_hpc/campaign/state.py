"""How far a member is, from its files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lsr_hpc.campaign.layout import MemberFiles
from lsr_hpc.errors import JobError
from lsr_hpc.integrity import Fault, file_fault, read_seal
from lsr_hpc.pipeline.attempt import read_outcome
from lsr_hpc.pipeline.spec import StepResult
from lsr_hpc.publish import RUN_MARKER

__all__ = ["End", "MemberState", "is_intact", "read_member_result", "read_state"]

# missing: not yet carried out, or ended from outside.
End = Literal["done", "failed", "missing"]


@dataclass(frozen=True, kw_only=True)
class MemberState:
    """How far a member is.

    Attributes:
        end: See :data:`End`.
        message: Cause of a failure.
        exit_code: Exit code that goes with it.
        metrics: Figures of one that is done, as its step told them.
    """

    end: End
    message: str = ""
    exit_code: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)


def read_state(files: MemberFiles, *, thoroughly: bool = True) -> MemberState:
    """Read how far a member is.

    Args:
        files: Its files.
        thoroughly: Whether every byte of a finished one is compared with its digest.

    Returns:
        Its state; one whose directory is damaged is missing.

    Raises:
        EnvironmentProblem: If a file may be intact but cannot be read.
    """
    attempts = files.attempts()
    outcome = read_outcome(attempts[-1][1]) if attempts else None
    is_there = read_member_result(files.directory) is not None
    if is_there and (not thoroughly or is_intact(files.directory)):
        return MemberState(end="done", metrics=outcome.metrics if isinstance(outcome, StepResult) else {})
    if isinstance(outcome, StepResult) and outcome.status == "failed":
        return MemberState(end="failed", message=outcome.message, exit_code=outcome.exit_code)
    return MemberState(end="missing")


def read_member_result(directory: Path) -> dict[str, Any] | None:
    """The result of a finished member.

    Args:
        directory: Its directory.

    Returns:
        The content of ``result.json``; None where there is none, or none of a member that is done.
    """
    try:
        content = json.loads((directory / RUN_MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("status") == "done" else None


def is_intact(directory: Path) -> bool:
    """Compare every byte of a finished run directory with its seal.

    Args:
        directory: The directory.

    Returns:
        Whether all is as it was written.

    Raises:
        EnvironmentProblem: If a file may be intact but cannot be read.
    """
    try:
        records = read_seal(directory)
    except JobError:
        return False
    if isinstance(records, Fault):
        return False
    return not any(file_fault(directory / name, record) for name, record in records.items())
