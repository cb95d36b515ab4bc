"""Real MPI ranks for tests: every program runs under a time limit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LSR_HPC = Path(sys.executable).parent / "lsr-hpc"

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def mpi_environment() -> dict[str, str]:
    extra = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        # More ranks than cores must not spin.
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    return {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI"))} | extra


@pytest.fixture(scope="session")
def mpiexec() -> Run:
    """Start a command on n ranks; the test fails if it does not end in time."""

    def run(
        n: int, *command: str | Path, limit_s: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["mpiexec", "-n", str(n), *map(str, command)],
            cwd=REPOSITORY,
            env=mpi_environment() | environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            stdin=subprocess.DEVNULL,
        )

    return run


@pytest.fixture(scope="session")
def lsr(mpiexec: Run) -> Run:
    """Start ``lsr-hpc`` on n ranks."""

    def run(n: int, *words: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
        return mpiexec(n, LSR_HPC, *words, **options)

    return run
