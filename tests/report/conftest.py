"""Finished directories of ``refine`` and ``run``, made once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mpi.conftest import REPOSITORY, mpi_environment

PROBLEM = """
import torch
from lsr_hpc import Evaluation, ModelSpec, Problem, ResidualBlock
from lsr_hpc.models import MLP


def build():
    torch.manual_seed(0)
    widths = {"widths": [2, 10, 10, 1]}
    axis = torch.linspace(-1, 1, 21, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    y = torch.sin(2 * x).prod(dim=1, keepdim=True)
    return Problem(
        name="bumps",
        model=MLP(**widths),
        model_spec=ModelSpec(architecture="mlp", arguments=widths),
        blocks=[ResidualBlock(name="fit", residual=lambda u, x, y: u(x) - y, points=x, data=(y,))],
        evaluation=Evaluation(inputs=(x,), reference=y),
    )
"""
CAMPAIGN = """
[problem]
function = "tests.campaign.problem:build"
args.home = "HOME"
[subspace]
rank = 8
[compute]
jacobian = "matrix_free"
[campaign]
combine = "zip"
ranks_per_member = 1
at_once = 1
[campaign.axes]
problem.instance = [0, 1, 0, 1, 2]
subspace.rank = [3, 3, 8, 8, 8]
problem.args.fault = ["", "", "", "", "raise"]
"""
ROUNDS = """
problem = "bumps.py:build"
[subspace]
rank = 40
[iterate]
rounds = 2
steps = 2
tangent_rank = 40
[run]
ranks = 2
"""


def lsr_hpc(
    *words: object, launcher: tuple[str, ...] = (), cwd: Path = REPOSITORY
) -> subprocess.CompletedProcess[str]:
    """The command under a launcher, or by itself."""
    return subprocess.run(
        [*launcher, sys.executable, "-m", "lsr_hpc.cli", *map(str, words)],
        cwd=cwd,
        env=mpi_environment() | {"PYTHONPATH": os.environ.get("PYTHONPATH", str(REPOSITORY))},
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three instances of a family over an interval, on two MPI ranks."""
    out = tmp_path_factory.mktemp("report") / "family"
    words = ("--set", "problem.args.instances=3", "--set", "subspace.rank=20", "--out", out)
    done = lsr_hpc("refine", "jobs/antiderivative.toml", *words, launcher=("mpiexec", "-n", "2"))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="session")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five members: two instances at two ranks of the subspace, and one that fails."""
    home = tmp_path_factory.mktemp("campaign")
    (home / "job.toml").write_text(CAMPAIGN.replace("HOME", str(home)))
    done = lsr_hpc("campaign", home / "job.toml", "--out", home / "out")
    assert done.returncode == 70, done.stdout + done.stderr
    return home / "out"


@pytest.fixture(scope="session")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of a network over a square."""
    home = tmp_path_factory.mktemp("rounds")
    (home / "bumps.py").write_text(PROBLEM)
    (home / "job.toml").write_text(ROUNDS)
    done = lsr_hpc("run", "job.toml", "--out", "run", cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "run"
