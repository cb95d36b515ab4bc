"""MPI program: known patterns of messages in phases of their own, and a refinement with and without counting.

usage: traffic_program.py OUTPUT_DIRECTORY
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

from lsr_hpc.comm import even_ranges, gather_panel, reduce_panel
from lsr_hpc.events import listening
from lsr_hpc.least_squares.tsqr import tsqr
from lsr_hpc.oneshot import refine
from lsr_hpc.petsc import libraries
from lsr_hpc.phase_record import PhaseRecorder, append_timeline
from lsr_hpc.phases import Phases
from lsr_hpc.traffic import counted, traffic_of
from tests.test_phase_costs import problem

out = Path(sys.argv[1])
world = MPI.COMM_WORLD
comm = counted(world)
ranges = even_ranges(101, comm.size)
lo, hi = ranges[comm.rank]
PETSc, _ = libraries()
vector = PETSc.Vec().createMPI(1000, comm=comm)
vector.set(1.0)

plain = refine(problem(), world, rank=30)
recorder, phases = PhaseRecorder(traffic_of(comm)), Phases()
with listening(recorder):
    watched = refine(problem(), comm, rank=30)
    recorder.take()
    with phases("gather"):
        gather_panel(comm, np.ones((10, hi - lo)), ranges)
    with phases("reduce"):
        reduce_panel(comm, np.ones((10, 101)), ranges)
    with phases("tsqr"):
        tsqr(comm, np.random.default_rng(comm.rank).standard_normal((20, 5)))
    with phases("petsc"):
        vector.dot(vector)
    world.Barrier()
    with phases("late"):
        time.sleep(0.3 * (comm.rank == comm.size - 1))
        comm.Barrier()
ended = world.gather(recorder.take())
vector.destroy()
if ended is not None:
    append_timeline(out / "timeline.jsonl", ended)
    np.savez(out / "deltas.npz", plain=plain.delta, counted=watched.delta)
