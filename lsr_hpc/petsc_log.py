"""PETSc's own log by phase: every phase is a stage of ``-log_view``, and an event whose counts are read here.

PETSc counts the flops of its vectors and of SLEPc's bases, messages, and reductions. Flops that torch does
are handed to it, so that its table shows both.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from lsr_hpc.petsc import libraries

__all__ = ["PetscCounts", "PetscLog"]


@dataclass(frozen=True)
class PetscCounts:
    """What PETSc has counted on this rank.

    Attributes:
        flops: Flops of PETSc, SLEPc, and those handed to them.
        messages: Messages between two ranks, each counted half where it was sent and half where it came in.
        message_bytes: Their bytes, counted alike.
        reductions: Collective calls.
    """

    flops: float = 0.0
    messages: float = 0.0
    message_bytes: float = 0.0
    reductions: float = 0.0


class PetscLog:
    """Brackets phases for PETSc's log. Where PETSc has not been started, nothing happens.

    Phases may lie within each other; the outer one then counts the inner one as well. Not collective.
    """

    def __init__(self) -> None:
        self._open: list[tuple[Any, Any, PetscCounts] | None] = []

    def begin(self, phase: str) -> None:
        """Begin a phase.

        Args:
            phase: Its name.
        """
        if not _is_started():
            self._open.append(None)
            return
        log = libraries()[0].Log
        # Sets function pointers; a second time, or after -log_view, it has no effect.
        log.begin()
        stage, event = log.Stage(phase), log.Event(f"lsr_{phase}")
        stage.push()
        before = _counts(event, stage)
        event.begin()
        self._open.append((stage, event, before))

    def end(self) -> PetscCounts | None:
        """End the phase that was begun last.

        Returns:
            What was counted in it; None where PETSc was not there at its begin.
        """
        found = self._open.pop() if self._open else None
        if found is None:
            return None
        stage, event, before = found
        event.end()
        stage.pop()
        after = _counts(event, stage)
        return PetscCounts(
            after.flops - before.flops,
            after.messages - before.messages,
            after.message_bytes - before.message_bytes,
            after.reductions - before.reductions,
        )

    def add_flops(self, flops: float) -> None:
        """Hand on flops that PETSc cannot see.

        Args:
            flops: Their number.
        """
        if _is_started():
            libraries()[0].Log.logFlops(flops)


def _is_started() -> bool:
    return "petsc4py.PETSc" in sys.modules


def _counts(event: Any, stage: Any) -> PetscCounts:
    """Counts of all times that the event took place within the stage."""
    info = event.getPerfInfo(stage.id)
    return PetscCounts(
        info["flops"], info["numMessages"] / 2, info["messageLength"] / 2, info["numReductions"]
    )
