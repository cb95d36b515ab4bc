"""What ``status`` makes of finished rounds: how long the ones that are left will take at most."""

from __future__ import annotations

import pytest

from lsr_hpc.commands.overview import _left_s
from lsr_hpc.commands.status import _duration


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


def test_durations_in_words():
    words = [_duration(seconds) for seconds in (None, 0.0, 10.0, 150.0, 3599.0, 7290.0)]
    assert words == ["-", "-", "<= 1 min", "<= 2 min", "<= 1:00 h", "<= 2:02 h"]
