"""A kill at any step of writing costs the checkpoint in hand and nothing else; on one rank and on three."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lsr_hpc.checkpoint.store import CheckpointStore
from tests.checkpoint.states import JOB, check
from tests.mpi.conftest import REPOSITORY, mpi_environment

PROGRAM = Path(__file__).parent / "program.py"
# From here on the new checkpoint is in place.
PUBLISHED = "flush parent"


def steps_of(output: str) -> dict[int, list[str]]:
    """Names of the steps of every rank."""
    lines = [line.split(";") for line in output.splitlines() if ";" in line]
    return {int(line[0]): line[1:] for line in lines}


def program(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.checkpoint.program", *map(str, words)],
        cwd=REPOSITORY,
        env=mpi_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_survived(root: Path, step: str, newest: int, comm_self) -> None:
    """The newest whole checkpoint loads, and after a purge nothing is left of the other."""
    store = CheckpointStore(root, JOB)
    found = store.load_newest(comm_self)
    assert found is not None, step
    check(found[1], newest)
    assert not (root / "quarantine").exists(), step
    store.purge()
    assert {path.name.split("-")[0] for path in root.iterdir()} == {"round", "latest"}, step


def test_kill_at_every_step_on_one_rank(tmp_path, store, fill, comm_self) -> None:
    """Two rounds are there, so that the third also deletes one."""
    fill(store, 0, 1)
    shutil.copytree(store.root, tmp_path / "whole")
    done = program(tmp_path / "whole", "steps", 2)
    steps = steps_of(done.stdout)[0]
    assert {"make directory", "array panel", "manifest", "rename", PUBLISHED, "latest", "delete"} < set(steps)

    for index, step in enumerate(steps):
        root = tmp_path / str(index)
        shutil.copytree(store.root, root)
        killed = program(root, "write", 2, 0, index)
        assert killed.returncode == -9, killed.stderr
        assert_survived(root, step, 2 if index >= steps.index(PUBLISHED) else 1, comm_self)


@pytest.mark.mpi
def test_kill_of_one_rank_of_three(tmp_path, mpiexec, store, fill, comm_self) -> None:
    """The other ranks are ended by the launcher, wherever they are."""
    fill(store, 0, 1)
    command = [sys.executable, "-m", "tests.checkpoint.program"]
    shutil.copytree(store.root, tmp_path / "whole")
    done = mpiexec(3, *command, tmp_path / "whole", "steps", "2")
    steps = steps_of(done.stdout)
    assert len(steps) == 3
    # Every step of the first rank was tried on one; here a sample, with others waiting.
    for mpi_rank, chosen in ((0, range(0, len(steps[0]), 4)), (2, range(0, len(steps[2]), 3))):
        for index in chosen:
            root = tmp_path / f"{mpi_rank}-{index}"
            shutil.copytree(store.root, root)
            killed = mpiexec(3, *command, root, "write", "2", str(mpi_rank), str(index), limit_s=60)
            assert killed.returncode != 0
            is_published = mpi_rank == 0 and index >= steps[0].index(PUBLISHED)
            assert_survived(root, steps[mpi_rank][index], 2 if is_published else 1, comm_self)
