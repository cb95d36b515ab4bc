"""A disk that is really full, and one that is really read-only; needs the right to mount."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lsr_hpc.checkpoint.store import CheckpointStore
from lsr_hpc.errors import CheckpointWriteError
from lsr_hpc.snapshot import Snapshot
from tests.checkpoint.states import JOB, check


@pytest.mark.parametrize("pages_left", [-200, -1, 0, 1])
def test_full_disk_costs_nothing_but_the_new_checkpoint(pages_left, small_disk, fill, comm_self) -> None:
    """It runs full in the arrays, in ``state.json`` or in the manifest, which take a page each."""
    store = CheckpointStore(small_disk / "checkpoints", JOB)
    fill(store, 0)
    before = {path.name for path in store.root.iterdir()}

    with pytest.raises(CheckpointWriteError, match="No space left on device; free some of the disk"):
        store.save(comm_self, "round-0001", filling(small_disk, pages_left), progress=(1, 0), score=None)
    assert {path.name for path in store.root.iterdir()} == before
    check(store.load_newest(comm_self)[1], 0)
    fill(store, 1)
    check(store.load_newest(comm_self)[1], 1)


def test_disk_without_room_for_the_hint_is_good_enough(small_disk, fill, comm_self, caplog) -> None:
    store = CheckpointStore(small_disk / "checkpoints", JOB)
    fill(store, 0)
    store.save(comm_self, "round-0001", filling(small_disk, 2), progress=(1, 0), score=None)

    assert "latest could not be renewed: No space left on device" in caplog.text
    assert store.load_newest(comm_self)[0].name == "round-0001"


def filling(disk: Path, pages_left: int) -> Snapshot:
    """One array whose file leaves so many pages of the disk free."""
    state = os.statvfs(disk)
    header_bytes = 1024
    n_bytes = (state.f_bavail - pages_left) * state.f_frsize - header_bytes
    return Snapshot(arrays={"x": np.ones(n_bytes // 8)})


def test_read_only_disk(small_disk, fill, comm_self, caplog) -> None:
    """Writing is refused in words; reading goes on, even past a damaged checkpoint that cannot be moved."""
    store = CheckpointStore(small_disk / "checkpoints", JOB)
    fill(store, 0, 1)
    (store.root / "round-0001" / "state.json").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    with pytest.raises(CheckpointWriteError, match="Read-only file system; make the run directory writable"):
        fill(store, 2)
    check(store.load_newest(comm_self)[1], 0)
    assert "and stays: Read-only file system" in caplog.text
    store.purge()
