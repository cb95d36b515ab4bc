"""Rounds that are interrupted on purpose, and states compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from lsr_hpc.errors import StopRequested
from lsr_hpc.iterative.rounds import next_round
from lsr_hpc.iterative.state import IterateState
from lsr_hpc.problem import Problem
from lsr_hpc.settings import IterateSettings, RefineSettings
from lsr_hpc.snapshot import SavedState, Snapshot


def interrupted(
    problem: Problem,
    comm: Any,
    settings: RefineSettings,
    options: IterateSettings,
    keep: Callable[[Snapshot], SavedState],
    at: int | None,
) -> tuple[IterateState, bool]:
    """All rounds, interrupted at one boundary, or at every one with None; and whether there was such."""
    count = 0
    kept: SavedState | None = None

    def boundary(snapshot: Callable[[], Snapshot]) -> None:
        nonlocal count, kept
        count += 1
        if at in {None, count}:
            kept = keep(snapshot())
            raise StopRequested("now", on_every_rank=True)

    state = IterateState.start(problem)
    inside: SavedState | None = None
    while not state.finished:
        try:
            state = next_round(problem, comm, settings, options, state, boundary=boundary, saved=inside)
            inside = None
        except StopRequested:
            assert kept is not None
            inside = kept
            # Nothing but what was kept is known any more.
            state = IterateState.restored(kept, comm)
    return state, at is None or count >= at


def figures(state: IterateState) -> dict[str, Any]:
    """All values but the seconds."""
    snapshot = state.snapshot()
    values = dict(snapshot.values)
    values["records"] = [{k: v for k, v in asdict(r).items() if "seconds" not in k} for r in state.records]
    return values


def same_states(one: IterateState, other: IterateState) -> None:
    """Bit for bit, but for the seconds."""
    assert figures(one) == figures(other)
    mine, theirs = one.snapshot().arrays, other.snapshot().arrays
    assert mine.keys() == theirs.keys()
    for name, array in mine.items():
        np.testing.assert_array_equal(
            getattr(array, "local", array), getattr(theirs[name], "local", theirs[name]), err_msg=name
        )
