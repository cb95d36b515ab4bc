"""Real MPI ranks, and stores on one rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lsr_hpc.checkpoint.store import CheckpointId, CheckpointStore
from tests.checkpoint.states import JOB, snapshot
from tests.mpi.conftest import mpiexec

__all__ = ["mpiexec"]

Fill = Callable[..., list[CheckpointId]]


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints" / "instance-0000", JOB)


@pytest.fixture
def fill(comm_self: Any) -> Fill:
    """Saves finished rounds; the state of round r is ``states.snapshot(r)``."""

    def save(store: CheckpointStore, *rounds: int, scores: dict[int, float] | None = None):
        return [
            store.save(
                comm_self,
                f"round-{r:04d}",
                snapshot(comm_self, r),
                progress=(r, 9),
                score=(scores or {}).get(r),
            )
            for r in rounds
        ]

    return save
