"""MPI program behind the tests.

usage: program.py ROOT write ROUND [MPI_RANK STEP]    the rank kills itself at the STEPth step of writing
       program.py ROOT steps ROUND                    the ranks print the names of their steps
       program.py ROOT full ROUND MPI_RANK            the rank finds no space left on the device
       program.py ROOT read ROUND                     every rank checks all numbers of the newest checkpoint
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

from mpi4py import MPI

from lsr_hpc.checkpoint import files
from lsr_hpc.checkpoint.store import CheckpointStore
from lsr_hpc.errors import CheckpointWriteError
from tests.checkpoint.states import JOB, check, snapshot

comm = MPI.COMM_WORLD


def kill_at(step: int) -> None:
    """Have this process killed without notice at one step of writing."""
    left = [step]

    def count(_name: str) -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    files.at = count


def main(root: str, action: str, round_: int, *numbers: int) -> None:
    store = CheckpointStore(Path(root), JOB)
    steps: list[str] = []
    if action == "read":
        found = store.load_newest(comm)
        assert found is not None
        check(found[1], round_)
        return
    if action == "steps":
        files.at = steps.append
    elif numbers and numbers[0] == comm.rank:
        if action == "write":
            kill_at(numbers[1])
        else:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            def refuse(_descriptor: int) -> None:
                raise full

            files.os.fsync = refuse
    refusal = ""
    try:
        store.save(comm, f"round-{round_:04d}", snapshot(comm, round_), progress=(round_, 0), score=None)
    except CheckpointWriteError as error:
        refusal = f"{error}; raised on all: {error.on_every_rank}"
    # One rank prints, because lines of several can run into each other.
    for mpi_rank, (taken, said) in enumerate(comm.gather((steps, refusal)) or []):
        print(mpi_rank, *taken, sep=";") if taken else print(f"rank {mpi_rank}: {said}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
