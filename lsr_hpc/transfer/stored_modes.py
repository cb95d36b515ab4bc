"""Response modes in a run directory: found again there by a later run of the same source, or refused."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from lsr_hpc.checkpoint.manifest import checkpoint_directories
from lsr_hpc.checkpoint.store import CheckpointStore
from lsr_hpc.comm import on_first
from lsr_hpc.errors import CheckpointReadError, JobError
from lsr_hpc.snapshot import SavedState, Snapshot

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["MODES", "find_modes", "store_modes"]

# Directory of the modes inside of a run directory, and the name of what is in it.
MODES = "modes"
_NAME = "source"

log = logging.getLogger("lsr_hpc")


def find_modes(comm: MPI.Comm, run: Path, digest: str, target: Path | None) -> SavedState | None:
    """Take over the modes of an earlier run.

    Args:
        comm: Communicator.
        run: Directory of the earlier run.
        digest: See :func:`lsr_hpc.transfer.digest_of_modes`.
        target: The directory that is being filled, on the first rank.

    Returns:
        The modes, every byte compared with its digest; None if there are none, or they are of another
        source, or damaged, which is said.

    Collective: all ranks; every byte is read once.
    """
    there = run / MODES
    if not on_first(comm, lambda: bool(checkpoint_directories(there))):
        return None
    try:
        found = CheckpointStore(there, digest).load_newest(comm)
    except JobError:
        if comm.rank == 0:
            log.warning(
                "the response modes in %s are of another network, source or subspace: they are computed anew",
                there,
            )
        return None
    except CheckpointReadError as error:
        if comm.rank == 0:
            log.warning("%s: the response modes are computed anew", error)
        return None
    if found is None:
        return None
    name = found[0].name
    place = on_first(comm, lambda: None if target is None else _taken_over(there / name, target / MODES))
    return CheckpointStore(place, digest).load(comm, found[0]) if place is not None else found[1]


def store_modes(comm: MPI.Comm, target: Path | None, digest: str, modes: Snapshot) -> SavedState:
    """Write modes into a directory that is being filled.

    Args:
        comm: Communicator.
        target: The directory, on the first rank.
        digest: See :func:`lsr_hpc.transfer.digest_of_modes`.
        modes: The modes, some cut over the ranks.

    Returns:
        The same, readable by any rank.

    Raises:
        CheckpointWriteError: If a file cannot be written.

    Collective: all ranks write their parts.
    """
    place = comm.bcast(target, root=0)
    store = CheckpointStore(place / MODES, digest)
    return store.load(comm, store.save(comm, _NAME, modes, progress=(0, 0), score=None))


def _taken_over(source: Path, modes: Path) -> Path:
    """Link the files, which nobody changes any more, or copy them where links cannot be."""
    modes.mkdir(mode=0o700)
    (modes / source.name).mkdir(mode=0o700)
    for file in source.iterdir():
        try:
            os.link(file, modes / source.name / file.name)
        except OSError:
            shutil.copy2(file, modes / source.name / file.name)
    return modes
