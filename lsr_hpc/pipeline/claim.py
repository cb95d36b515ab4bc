"""A later start of the same SLURM job asks an earlier one to leave the run directory to it.

SLURM gives a node up whose daemon is silent and starts the job again elsewhere, while controller and shell on
the node may live on. Left alone they would hold the lock, and start steps in the new allocation, which has
their job's number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lsr_hpc.publish import publish_text

__all__ = ["JobStart", "claim", "is_claimed"]


@dataclass(frozen=True)
class JobStart:
    """A start of a job.

    Attributes:
        job: Number of the job.
        restarts: How often SLURM had started it before.
    """

    job: str
    restarts: int

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> JobStart | None:
        """The start that an environment belongs to; None outside of jobs."""
        restarts = environ.get("SLURM_RESTART_COUNT", "0")
        if not environ.get("SLURM_JOB_ID") or not restarts.isdigit():
            return None
        return cls(environ["SLURM_JOB_ID"], int(restarts))


def claim(path: Path, start: JobStart) -> None:
    """Ask earlier starts to leave.

    Args:
        path: Where to say so.
        start: Who asks.

    Raises:
        OSError: If it cannot be written.
    """
    publish_text(path, json.dumps(asdict(start)) + "\n")


def is_claimed(path: Path, start: JobStart | None) -> bool:
    """Whether a later start of the same job wants the run directory.

    Args:
        path: Where it would say so.
        start: Who looks.

    Returns:
        False also outside of jobs.
    """
    try:
        other = JobStart(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False
    return start is not None and start.job == other.job and start.restarts < other.restarts
