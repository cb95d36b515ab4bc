"""Exceptions of lsr_hpc, each tied to the exit code that the command line returns for it.

Numerical outcomes that a careful user expects (rank refused, tolerance not reached) are results with
a status, never exceptions; see :mod:`lsr_hpc.result`.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "AccuracyError",
    "CheckpointReadError",
    "CheckpointWriteError",
    "EnvironmentProblem",
    "ExitCode",
    "JobError",
    "LsrError",
    "RankError",
    "StopRequested",
]


class ExitCode(IntEnum):
    """What the process tells its caller; the command line prints the same in words."""

    DONE = 0
    BAD_INPUT = 2
    CRASH = 70
    RESUME = 75
    ENVIRONMENT = 76


class LsrError(Exception):
    """Base of every error that lsr_hpc raises on purpose.

    Args:
        message: What is wrong and what to do.
        on_every_rank: Whether all MPI ranks raise it together, because it follows from values that are equal
            on all of them. Then no rank waits for another, and none has to be aborted.
    """

    exit_code = ExitCode.CRASH

    def __init__(self, message: str, *, on_every_rank: bool = False) -> None:
        super().__init__(message)
        self.on_every_rank = on_every_rank


class JobError(LsrError, ValueError):
    """The input is wrong: a job file, an argument, a model, a residual, a weights file.

    The message names the field, the value and the remedy. Nothing has been written.

    Args:
        *mistakes: What is wrong and what to do; several where several are found at once.
        on_every_rank: See :class:`LsrError`.

    Attributes:
        mistakes: The same, one by one.
    """

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, *mistakes: str, on_every_rank: bool = False) -> None:
        super().__init__("; ".join(mistakes), on_every_rank=on_every_rank)
        self.mistakes = mistakes


class EnvironmentProblem(LsrError, RuntimeError):
    """The installation or the launcher is broken; ``lsr-hpc doctor`` explains it."""

    exit_code = ExitCode.ENVIRONMENT


class CheckpointReadError(EnvironmentProblem):
    """Checkpoints are there, but none that was asked for is intact."""


class CheckpointWriteError(EnvironmentProblem):
    """A checkpoint could not be written, for example on a full disk; earlier ones are as they were."""


class AccuracyError(LsrError, ArithmeticError):
    """A computation broke a promise that was checked afterwards (orthogonality, finiteness)."""


class StopRequested(LsrError):
    """The computation was asked to stop and has kept its state; it can be resumed. Not a failure."""

    exit_code = ExitCode.RESUME


class RankError(LsrError, RuntimeError):
    """One MPI rank failed; raised on every rank with the failing rank and cause in the message."""
