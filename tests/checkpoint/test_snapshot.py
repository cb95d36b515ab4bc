"""What can be kept and what is refused before anything is written."""

from __future__ import annotations

import numpy as np
import pytest

from lsr_hpc.snapshot import Cut, MemoryState, Snapshot
from tests.checkpoint.states import check, snapshot


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"loss": float("nan")}, "finite"),
        ({"loss": [1.0, float("inf")]}, "finite"),
        ({"shape": (2, 3)}, "shape.*tuples"),
        ({"scores": {1: 2.0}}, "scores.*text keys"),
        ({1: 2.0}, "text keys"),
        ({"rows": np.int64(3)}, "JSON"),
    ],
)
def test_values_that_would_come_back_as_something_else_are_refused(values, expected) -> None:
    with pytest.raises(ValueError, match=expected):
        Snapshot(values=values)


@pytest.mark.parametrize("array", [np.zeros(3, dtype=np.complex128), np.array(["a"]), [1.0, 2.0]])
def test_arrays_of_another_kind_are_refused(array) -> None:
    with pytest.raises(ValueError, match=r"array 'x'.*float64, float32, int64"):
        Snapshot(arrays={"x": array})
    with pytest.raises(ValueError, match="cut array"):
        Cut(array, 0, 3)


@pytest.mark.parametrize(("first", "n_global"), [(-1, 9), (0, 2), (7, 9)])
def test_range_outside_the_array_is_refused(first: int, n_global: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        Cut(np.zeros((2, 3)), first, n_global)


def test_memory_state_gives_back_what_it_was_given(comm_self) -> None:
    state = MemoryState(snapshot(comm_self, 3))

    check(state, 3)
    state.whole("panel")[:] = 0
    check(state, 3)
    with pytest.raises(ValueError, match="outside"):
        state.part("panel", 20, 24)


def test_memory_state_needs_the_whole_array() -> None:
    with pytest.raises(ValueError, match="from 2 to 5 only"):
        MemoryState(Snapshot(arrays={"x": Cut(np.zeros(3), 2, 9)}))
