"""Launchers that bring no ranks to work: where SLURM may be at fault, the run stops and can go on later."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lsr_hpc.pipeline import advance as module
from lsr_hpc.pipeline.advance import ACTIVE, Control, Outcome, advance
from lsr_hpc.pipeline.journal import Journal
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.record import RunRecord
from lsr_hpc.settings import RunSettings
from tests.pipeline.conftest import events


@dataclass
class Script:
    """In place of a launcher: a line of shell."""

    name: str
    line: str

    def command(self, world_size, spec, label):
        return ["sh", "-c", self.line, "sh", str(spec.parent)]


@pytest.fixture
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(module, "_pause", lambda stop, seconds: found.append(seconds))
    return found


@pytest.mark.parametrize(
    ("launcher", "state", "waited"),
    [
        (Script("srun", "exit 1"), "stopped", [10.0, 20.0]),
        (Script("mpiexec", "exit 1"), "failed", [10.0, 20.0]),
        # The ranks had begun: that is for the run to say, and at once.
        (Script("srun", 'echo {} >"$1/lease"; exit 1'), "failed", []),
    ],
)
def test_what_becomes_of_a_launch_that_fails(tmp_path, pauses, launcher, state, waited):
    layout = RunLayout(tmp_path)
    control = Control(
        layout=layout,
        record=RunRecord("0123", "0" * 64, "toy", 1),
        settings=RunSettings(ranks=2),
        launcher=launcher,
        environment={"PATH": "/usr/bin:/bin"},
        journal=Journal(layout.metrics),
    )
    ACTIVE["0123"] = control
    try:
        outcome = advance("0123", 0, 0, Outcome(number=-1, state="going", result=None))
    finally:
        del ACTIVE["0123"]
        control.journal.close()
    assert (outcome.state, pauses) == (state, waited)
    assert control.stop.is_set == (state == "stopped")
    assert len(events(layout, "step")) == 3
