"""What a run is doing, in one line: live on a terminal, now and then in a log.

    basis  sweep 37 of 52  1.2e+06 rows/s  ETA 4 s  residual 3.1e-05  412 MiB

A sweep is one product of J or its transpose with a block of vectors, on the fitted rows; rows/s counts every
row once for each vector. The residual is the square root of the loss, as far as it is known.
"""

from __future__ import annotations

import time
from typing import Any

from lsr_hpc.console import clear_live, is_terminal, say_aside, show_live
from lsr_hpc.events import Event
from lsr_hpc.plan import peak_rss_bytes

__all__ = ["LiveProgress"]

# Seconds between two lines on a terminal, and in a log.
_LIVE_S, _LOG_S = 0.1, 30.0


class LiveProgress:
    """A listener of :mod:`lsr_hpc.events` on the first MPI rank.

    Args:
        every_s: Seconds between two lines; None takes 0.1 on a terminal, where the line is redrawn in place,
            and 30 elsewhere.
    """

    def __init__(self, every_s: float | None = None) -> None:
        self._is_live = is_terminal()
        self._every_s = every_s if every_s is not None else _LIVE_S if self._is_live else _LOG_S
        self._shown = time.monotonic()
        self._instance = self._phase = self._step = ""
        self._residual: float | None = None
        self._sweeps = self._planned_sweeps = 0
        self._work = self._planned_work = 0.0
        self._began = self._phase_began = time.monotonic()
        self._share = 0.0
        self._work_of_phase = 0.0

    def __call__(self, event: Event) -> None:
        """Take an event in, and show the line if it is time."""
        taken: Any = getattr(self, f"_on_{event['event'].replace(' ', '_')}", None)
        if taken is None:
            return
        taken(event)
        if event["event"] == "phase ended":
            clear_live()
        elif time.monotonic() - self._shown >= self._every_s:
            self._shown = time.monotonic()
            if self._is_live:
                show_live(self.line())
            else:
                say_aside(f"{time.strftime('%H:%M:%S')} {self.line()}")

    def line(self) -> str:
        """The line as it is now.

        Returns:
            Text without a line break.
        """
        parts = [self._instance, self._phase]
        if self._step:
            parts.append(self._step)
        elif self._planned_sweeps and self._sweeps:
            parts.append(f"sweep {self._sweeps} of {max(self._sweeps, self._planned_sweeps)}")
        elapsed = time.monotonic() - self._phase_began
        if self._work_of_phase and elapsed > 0:
            parts.append(f"{self._work_of_phase / elapsed:.1e} rows/s")
        if self._share > 0:
            left = (time.monotonic() - self._began) * (1 - self._share) / self._share
            parts.append(f"ETA {left:.0f} s")
        if self._residual is not None:
            parts.append(f"residual {self._residual:.2e}")
        parts.append(f"{peak_rss_bytes() / 2**20:.0f} MiB")
        return "  ".join(part for part in parts if part)

    def _on_instance(self, event: Event) -> None:
        self._instance = f"instance {event['number']} of {event['of']}" if event["of"] > 1 else ""

    def _on_phase_began(self, event: Event) -> None:
        self._phase, self._step = event["phase"], ""
        self._phase_began, self._work_of_phase, self._share = time.monotonic(), 0.0, 0.0

    def _on_phase_ended(self, event: Event) -> None:
        self._share = 0.0

    def _on_work(self, event: Event) -> None:
        self._planned_sweeps, self._planned_work = event["sweeps"], event["rows"]
        self._sweeps, self._work, self._began = 0, 0.0, time.monotonic()

    def _on_product(self, event: Event) -> None:
        rows = float(event["columns"] * event["rows"])
        self._work += rows
        self._work_of_phase += rows
        self._sweeps += not event["is_held_out"]
        if self._phase == "basis" and self._planned_work:
            self._share = min(self._work / self._planned_work, 1.0)

    def _on_step(self, event: Event) -> None:
        self._step = f"step {event['done']} of {event['of']}"
        self._residual = event["residual"]
        self._share, self._began = event["done"] / event["of"], self._phase_began

    def _on_residual(self, event: Event) -> None:
        self._residual = event["value"]
