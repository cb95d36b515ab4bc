"""What ``status`` makes of finished rounds: how long the ones that are left will take at most."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lsr_hpc.commands.overview import _entry, _left_s
from lsr_hpc.commands.status import _duration
from lsr_hpc.pipeline.spec import StepResult


def entry(state, round_, seconds, rounds=10):
    return {"state": state, "round": round_, "rounds": rounds, "seconds": seconds}


@pytest.mark.parametrize(
    ("entries", "at_once", "expected"),
    [
        ([entry("running", 0, 50.0)], 1, None),
        ([entry("running", 4, 80.0)], 1, 120.0),
        ([entry("done", 7, 70.0)], 1, 0.0),
        # One that has not begun takes as long as the others.
        ([entry("done", 10, 100.0), entry("running", 5, 100.0), entry("waiting", 0, 0.0)], 1, 100.0 + 150.0),
        ([entry("running", 5, 100.0), entry("running", 5, 100.0)], 2, 100.0),
        ([entry("running", 5, 100.0)], 4, 100.0),
        ([entry("failed", 5, 100.0), entry("running", 8, 80.0)], 1, 20.0),
        ([entry("running", 5, 100.0, rounds=None)], 1, None),
    ],
)
def test_what_is_left(entries, at_once, expected):
    assert _left_s(entries, at_once) == expected


def test_best_is_the_error_of_the_predictor_that_is_kept():
    """The residual chooses it, so that a round of smaller error may not be the one."""
    figures = [(3e-5, 3e-5), (4e-8, 3e-5), (5e-8, 5e-8), (2e-8, 5e-8)]
    results = [
        StepResult(status="done", round=i, metrics={"error_before": 1e-2, "error": error, "error_best": best})
        for i, (error, best) in enumerate(figures)
    ]
    at = SimpleNamespace(
        instance=0, attempts=(), results=results, last=results[-1], is_finished=True, next_round=4
    )
    entry_of = _entry(at, seconds=1.0, rounds=4, has_controller=False)
    assert (entry_of["before"], entry_of["now"], entry_of["best"]) == (1e-2, 2e-8, 5e-8)


def test_durations_in_words():
    words = [_duration(seconds) for seconds in (None, 0.0, 10.0, 150.0, 3599.0, 7290.0)]
    assert words == ["-", "-", "<= 1 min", "<= 2 min", "<= 1:00 h", "<= 2:02 h"]
