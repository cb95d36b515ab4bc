"""MPI program behind the tests of rounds on several ranks.

usage: program.py DIRECTORY ACTION [ACTION ...]
       CASE         all rounds of a case without a stop: DIRECTORY/final-SIZE-CASE.npz
       interrupt    stopped at every boundary and gone on with; checkpoints stay in DIRECTORY/stores/CASE/N
       restore      gone on with from some of these: DIRECTORY/restored-SIZE-CASE-N.npz
       diverge      an alignment that diverges: DIRECTORY/diverged-SIZE.json, what every rank raised
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from lsr_hpc import RefinedPredictor
from lsr_hpc.checkpoint.store import CheckpointStore
from lsr_hpc.errors import LsrError
from lsr_hpc.iterative.rounds import iterate, next_round, with_parameters
from lsr_hpc.iterative.state import IterateState
from lsr_hpc.problem import as_tensor
from lsr_hpc.settings import IterateSettings
from lsr_hpc.snapshot import SavedState, Snapshot
from tests.iterative.problems import cubic, fitted, noise, refinement, wide
from tests.iterative.states import interrupted, same_states

comm = MPI.COMM_WORLD
JOB = "0" * 64
SHORT = {"rounds": 2, "steps": 2, "tangent_rank": 20}
# Problem, section [iterate], subspace.
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "tangent": (cubic, {"warm_share": 0.25, "resample": True, "ranks": (12, 9)}, {"width": 4}),
    "pseudo-time": (cubic, {"objective": "pseudo_time", "pseudo_time": 0.1}, {"basis": "randomized"}),
    "lbfgs": (cubic, {"optimizer": "lbfgs", "steps": 15, "objective": "targets"}, {"width": 6}),
    "adam": (fitted, {"optimizer": "adam", "steps": 60}, {"width": 6}),
    "empty-rank": (wide, {}, {"rank": 10, "width": 4}),
    "empty-rank-lbfgs": (wide, {"optimizer": "lbfgs", "steps": 10, "objective": "targets"}, {"rank": 10}),
    "refused": (noise, {"rounds": 1}, {}),
    "some-parameters": (cubic, {}, {"parameters": ("layers.2.*",)}),
}
STOPPED = ("tangent", "lbfgs", "adam")
# In the refinement of the first round; in the second round's, or in its alignment.
RESTORED = (2, 7)


def parts(case: str) -> tuple[Any, Any, IterateSettings]:
    build, options, subspace = CASES[case]
    return build(), refinement(**subspace), IterateSettings(**(SHORT | options))


def write(path: Path, problem: Any, state: IterateState) -> None:
    """The state, its figures, the predictor's values, and how many arrays differ between the ranks."""
    arrays = {n: a for n, a in state.snapshot().arrays.items() if isinstance(a, np.ndarray)}
    everyone = comm.allgather(arrays)
    unequal = sum(not np.array_equal(other[n], a) for other in everyone for n, a in arrays.items())
    if comm.rank == 0:
        records = [asdict(r) for r in state.records]
        figures = [
            [r[k] for k in sorted(r) if isinstance(r[k], float) and "seconds" not in k] for r in records
        ]
        best = state.predictor
        assert best is not None
        refined = RefinedPredictor(with_parameters(problem, best.theta).model, torch.from_numpy(best.delta))
        field = refined.predict(as_tensor(problem.blocks[0].points)).numpy()
        ranks = [r["rank"] for r in records]
        np.savez(path, **arrays, figures=np.array(figures), unequal=unequal, ranks=ranks, field=field)


def interrupt(case: str, directory: Path) -> None:
    problem, settings, options = parts(case)
    whole = iterate(problem, comm, settings, options)
    n = 0

    def keep(snapshot: Snapshot) -> SavedState:
        nonlocal n
        n += 1
        store = CheckpointStore(directory / "stores" / case / str(n), JOB)
        return store.load(comm, store.save(comm, "here-part", snapshot, progress=(0, 1), score=None))

    same_states(interrupted(problem, comm, settings, options, keep, at=None)[0], whole)
    assert n >= 8, n


def restore(case: str, directory: Path) -> None:
    problem, settings, options = parts(case)
    for n in RESTORED:
        found = CheckpointStore(directory / "stores" / case / str(n), JOB).load_newest(comm)
        assert found is not None
        inside: SavedState | None = found[1]
        state = IterateState.restored(found[1], comm)
        while not state.finished:
            state = next_round(problem, comm, settings, options, state, saved=inside)
            inside = None
        write(directory / f"restored-{comm.size}-{case}-{n}.npz", problem, state)


def diverge(directory: Path) -> None:
    said = ""
    options = IterateSettings(optimizer="adam", learning_rate=1e200, steps=60)
    try:
        iterate(cubic(), comm, refinement(), options)
    except LsrError as error:
        said = f"{type(error).__name__}: {error}; raised on all: {error.on_every_rank}"
    everyone = comm.gather(said)
    if comm.rank == 0:
        (directory / f"diverged-{comm.size}.json").write_text(json.dumps(everyone))


def main(directory: Path, *actions: str) -> None:
    for action in actions:
        if action == "diverge":
            diverge(directory)
        elif action in CASES:
            problem, settings, options = parts(action)
            state = iterate(problem, comm, settings, options)
            write(directory / f"final-{comm.size}-{action}.npz", problem, state)
        else:
            for case in STOPPED:
                (interrupt if action == "interrupt" else restore)(case, directory)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(Path(sys.argv[1]), *sys.argv[2:])
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        comm.Abort(1)
