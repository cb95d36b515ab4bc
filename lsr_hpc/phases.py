"""Seconds by phase of a run, and the phase's name on whatever escapes from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lsr_hpc.events import emit
from lsr_hpc.plan import peak_rss_bytes

__all__ = ["Phases"]

log = logging.getLogger(__name__)


@dataclass
class Phases:
    """Clock of one run.

    Attributes:
        started: When the run began, on the clock of ``time.perf_counter``.
        seconds: Seconds by phase so far.
    """

    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a phase.

        Args:
            name: Name of the phase.

        Yields:
            Nothing.

        Raises:
            SystemExit: As called inside, marked with the phase like every exception.
        """
        started, begin = time.perf_counter(), time.time()
        emit("phase began", phase=name)
        try:
            yield
        except (Exception, SystemExit) as error:
            if not hasattr(error, "lsr_phase"):
                error.lsr_phase = name  # type: ignore[union-attr]
            raise
        finally:
            seconds = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            # The end by the clock that does not jump.
            emit(
                "phase ended",
                phase=name,
                begin=begin,
                end=begin + seconds,
                peak_rss_bytes=peak_rss_bytes(),
            )
            log.info("%-9s %7.1f s", name, self.seconds[name])

    def total(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started
