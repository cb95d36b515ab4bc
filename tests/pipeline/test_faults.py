"""The real step with one rank that raises, exits, vanishes or computes NaN in each of its phases."""

from __future__ import annotations

import time

import pytest

from lsr_hpc.job import load_job
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.record import write_record
from tests.pipeline.conftest import Runs, events, result

pytestmark = pytest.mark.mpi
PHASES = (
    *("start", "restore", "prepare", "basis", "jacobian", "solve", "resolve", "check"),
    *("targets", "align", "network", "checkpoint"),
)
JOB = """
[problem]
function = "tests.pipeline.faulty:build"
args = {{ fault = "{fault}", kind = "{kind}" }}
[subspace]
rank = 20
[compute]
jacobian = "matrix_free"
[iterate]
rounds = 1
steps = 2
objective = "{objective}"
tangent_rank = 15
[run]
body = "tests.pipeline.faulty:step"
ranks = 2
max_attempts = 2
"""


def begun(runs: Runs, fault: str = "", kind: str = "", objective: str = "residual") -> RunLayout:
    layout = RunLayout(runs.home / "run")
    layout.root.mkdir(mode=0o700)
    path = runs.home / "job.toml"
    path.write_text(JOB.format(fault=fault, kind=kind, objective=objective))
    write_record(layout, load_job(path), "faulty", 1)
    return layout


def failed(runs: Runs, layout: RunLayout, code: int = 70) -> str:
    """Let a run fail; returns the only message of its only step."""
    started = time.monotonic()
    printed = runs.lsr("resume", layout.root, code=code)
    steps = events(layout, "step")
    assert [s["status"] for s in steps] == ["failed"], printed
    assert steps[0]["wall_s"] < 20
    assert time.monotonic() - started < 40
    message = result(layout)["instances"][0]["message"]
    assert printed.count(message) == 1
    assert "Traceback" not in printed
    return message


def test_nothing_goes_wrong_unasked(runs):
    layout = begun(runs)
    runs.lsr("resume", layout.root)
    assert result(layout)["error"]["after"] < 1e-2


@pytest.mark.parametrize("phase", PHASES)
def test_an_exception_on_one_rank_ends_all_and_names_rank_phase_and_cause(runs, phase):
    message = failed(runs, begun(runs, phase, "raise"))
    assert f"MPI rank 1 failed in phase '{phase}': ZeroDivisionError: deliberate" in message


@pytest.mark.parametrize("phase", PHASES)
def test_sys_exit_on_one_rank_ends_all_and_names_rank_phase_and_cause(runs, phase):
    message = failed(runs, begun(runs, phase, "exit"))
    assert f"MPI rank 1 failed in phase '{phase}': sys.exit(1) was called" in message


@pytest.mark.parametrize("phase", PHASES)
def test_a_rank_that_vanishes_ends_all_and_is_tried_once_more(runs, phase):
    layout = begun(runs, phase, "vanish")
    printed = runs.lsr("resume", layout.root, code=70)
    steps = events(layout, "step")
    assert [s["status"] for s in steps] == ["ended from outside"] * 2
    assert all(s["wall_s"] < 20 for s in steps)
    assert "the last of 2 in a row without a result: ended from outside, with exit status 1" in printed


@pytest.mark.parametrize("phase", ["prepare", "basis", "jacobian", "resolve", "check", "align", "network"])
def test_nan_on_one_rank_ends_all_and_names_the_phase(runs, phase):
    message = failed(runs, begun(runs, phase, "nan"))
    assert "nan" in message.lower()
