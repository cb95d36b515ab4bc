"""One process with torch alone: neither mpi4py nor PETSc can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
# What an interpreter without these packages answers.
BARE = """
import importlib.machinery, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mpi4py", "petsc4py", "slepc4py"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "mpi4py" else found(name, *rest)
from lsr_hpc.cli import main
sys.exit(main(sys.argv[1:]))
"""
JOB = REPOSITORY / "jobs" / "function_fit.toml"
SMALL = ("--preset", "small", "--set", "subspace.rank=20", "--set", "problem.args.points=400")


def started(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def bare(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return started("-c", BARE, *words, **environment)


def test_a_refinement_needs_neither_mpi_nor_petsc(tmp_path):
    done = bare("refine", JOB, *SMALL, "--out", tmp_path / "bare")
    assert done.returncode == 0, done.stderr
    assert "mpi4py is not installed: one process, directions in torch tensors" in done.stdout
    whole = started("-m", "lsr_hpc.cli", "refine", JOB, *SMALL, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("bare", "whole")]
    assert "torch tensors" in results[0]["detail"]["basis"]
    assert "SLEPc" in results[1]["detail"]["basis"]
    assert not {"mpi", "petsc", "slepc"} & results[0]["versions"].keys()
    assert results[0]["error"]["after"] == pytest.approx(results[1]["error"]["after"], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        (("--set", "subspace.basis=svd"), {}, 'set compute.panels = "torch"'),
        (("--set", "solver.type=lsqr"), {}, 'set compute.panels = "torch"'),
        (("--set", "compute.panels=slepc"), {}, "run `lsr-hpc doctor`"),
        ((), {"OMPI_COMM_WORLD_SIZE": "2"}, "started 2 processes, and mpi4py is not installed"),
    ],
)
def test_what_needs_them_is_refused(tmp_path, words, environment, message):
    done = bare("refine", JOB, *SMALL, *words, "--out", tmp_path / "out", **environment)
    assert done.returncode == 76
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
