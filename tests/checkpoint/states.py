"""States whose every number is known from a closed form, cut over any number of ranks."""

from __future__ import annotations

import numpy as np

from lsr_hpc.comm import even_ranges
from lsr_hpc.snapshot import Cut, SavedState, Snapshot

JOB = "ab" * 32
COLUMNS = 23
ROWS = 4


def panel(round_: int) -> np.ndarray:
    """Entry (i, j) is i + j / 64 + 1000 r, exact in float64."""
    i, j = np.indices((3, COLUMNS))
    return i + j / 64 + 1000.0 * round_


def rows(round_: int) -> np.ndarray:
    """Integers, cut differently; four of them, so that five ranks leave one without any."""
    return np.arange(ROWS, dtype=np.int64) * 10 + round_


def plain(round_: int) -> np.ndarray:
    return np.linspace(0, 1, 7, dtype=np.float32) * np.float32(round_)


def snapshot(comm, round_: int) -> Snapshot:
    """A panel, a vector on the same columns, a vector of rows, a plain array, a number without axes."""
    lo, hi = even_ranges(COLUMNS, comm.size)[comm.rank]
    first, behind = even_ranges(ROWS, comm.size)[comm.rank]
    return Snapshot(
        arrays={
            "panel": Cut(panel(round_)[:, lo:hi], lo, COLUMNS),
            "momentum": Cut(panel(round_)[1, lo:hi].astype(np.float32), lo, COLUMNS),
            "rows": Cut(rows(round_)[first:behind], first, ROWS),
            "theta": plain(round_),
            "step size": np.array(0.1 * round_),
        },
        values={"round": round_, "losses": [1.5, None], "rule": {"name": "décroît", "is_met": False}},
    )


def check(state: SavedState, round_: int) -> None:
    """Every number and every text is that of the round, on this rank."""
    expected = {
        "panel": panel(round_),
        "momentum": panel(round_)[1].astype(np.float32),
        "rows": rows(round_),
        "theta": plain(round_),
        "step size": np.array(0.1 * round_),
    }
    assert state.names == expected.keys()
    for name, array in expected.items():
        whole = state.whole(name)
        assert whole.dtype == array.dtype
        np.testing.assert_array_equal(whole, array)
        assert whole.flags.writeable
        for first, behind in [(0, 4), (1, 3), (2, 2), (0, 0)] if array.ndim else []:
            np.testing.assert_array_equal(state.part(name, first, behind), array[..., first:behind])
    np.testing.assert_array_equal(state.part("panel", 5, 19), expected["panel"][:, 5:19])
    assert state.values == {
        "round": round_,
        "losses": [1.5, None],
        "rule": {"name": "décroît", "is_met": False},
    }
