"""The real step with one rank that raises, exits, vanishes or computes NaN in each of its phases."""

from __future__ import annotations

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
# One way to fail is tried in every phase by every run of the tests, the others in four phases.
SOME = [
    pytest.param(phase, marks=() if phase in {"start", "basis", "align", "checkpoint"} else pytest.mark.slow)
    for phase in PHASES
]
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
    printed = runs.lsr("resume", layout.root, code=code)
    steps = events(layout, "step")
    assert [s["status"] for s in steps] == ["failed"], printed
    assert ended_after_s(layout) < 20
    message = result(layout)["instances"][0]["message"]
    assert printed.count(message) == 1
    assert "Traceback" not in printed
    return message


def ended_after_s(layout: RunLayout) -> float:
    """Seconds from what went wrong, the last time, to the end of all ranks."""
    went_wrong = layout.root.with_name("wrong").stat().st_mtime
    return events(layout, "step")[-1]["time"] - went_wrong


def test_nothing_goes_wrong_unasked(runs):
    layout = begun(runs)
    runs.lsr("resume", layout.root)
    assert result(layout)["residual"]["true"] < 1e-3 * result(layout)["residual"]["before"]


@pytest.mark.parametrize("phase", PHASES)
def test_an_exception_on_one_rank_ends_all_and_names_rank_phase_and_cause(runs, phase):
    message = failed(runs, begun(runs, phase, "raise"))
    assert f"MPI rank 1 failed in phase '{phase}': ZeroDivisionError: deliberate" in message


@pytest.mark.parametrize("phase", SOME)
def test_sys_exit_on_one_rank_ends_all_and_names_rank_phase_and_cause(runs, phase):
    message = failed(runs, begun(runs, phase, "exit"))
    assert f"MPI rank 1 failed in phase '{phase}': sys.exit(1) was called" in message


@pytest.mark.parametrize("phase", SOME)
def test_a_rank_that_vanishes_ends_all_and_is_tried_once_more(runs, phase):
    layout = begun(runs, phase, "vanish")
    printed = runs.lsr("resume", layout.root, code=70)
    steps = events(layout, "step")
    assert [s["status"] for s in steps] == ["ended from outside"] * 2
    assert ended_after_s(layout) < 20
    assert "the last of 2 in a row without a result: ended from outside, with exit status 1" in printed


# Products of J at hand from the basis are not formed again; the reduced problem needs no network.
@pytest.mark.parametrize(
    ("phase", "code", "cause"),
    [
        ("prepare", 2, "MPI rank 1: residual block 'equation' is nan at point"),
        ("basis", 70, "holds NaN or Inf: check the model's derivatives at the points"),
        ("align", 70, "the residual of the alignment is NaN or Inf at its start"),
        ("network", 70, "the residual of problem 'faulty' is nan at the aligned network"),
    ],
)
def test_nan_on_one_rank_ends_all_and_is_named(runs, phase, code, cause):
    assert cause in failed(runs, begun(runs, phase, "nan"), code)


@pytest.mark.parametrize("phase", ["resolve", "check"])
def test_nan_of_the_refined_field_on_one_rank_refuses_the_refinement(runs, phase):
    layout = begun(runs, phase, "nan")
    runs.lsr("resume", layout.root)
    [step] = events(layout, "step")
    assert step["metrics"]["predictor_error"] == step["metrics"]["network_error_before"]
