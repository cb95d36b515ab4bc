"""Messages, bytes, flops and waiting by phase on several ranks, against counts by hand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from lsr_hpc.phase_record import read_timelines
from lsr_hpc.phase_table import phase_costs
from tests.mpi.conftest import REPOSITORY, Run

PROGRAM = Path(__file__).parent / "traffic_program.py"


@pytest.mark.mpi
@pytest.mark.parametrize("n", [2, 3])
def test_messages_of_known_patterns_and_bits_on_several_ranks(n: int, mpiexec: Run, tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    done = mpiexec(n, sys.executable, PROGRAM, tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    lines = read_timelines([tmp_path / "timeline.jsonl"])
    costs = {cost.phase: cost for cost in phase_costs(lines)}
    # Of 10 vectors of 101 numbers each rank lacks what the others own; all together lack n - 1 times all.
    assert costs["gather"].received_bytes == (n - 1) * 8 * 10 * 101
    assert costs["reduce"].received_bytes == (n - 1) * 8 * 10 * 101
    assert costs["gather"].messages == costs["reduce"].messages == n * (n - 1)
    # R factors of 5 columns: one less than ranks go up, and as many copies down.
    assert costs["tsqr"].received_bytes == 2 * (n - 1) * 8 * 5**2
    assert costs["petsc"].reductions == 1
    assert costs["petsc"].flops == pytest.approx(2 * 1000, abs=n)
    # The last rank sleeps, the others wait for it.
    assert costs["late"].seconds >= 0.3
    assert costs["late"].wait_s == pytest.approx(0.3 * (n - 1) / n, abs=0.15)
    assert costs["late"].balance is not None
    assert costs["late"].balance < 0.8
    with np.load(tmp_path / "deltas.npz") as deltas:
        assert deltas["plain"].tobytes() == deltas["counted"].tobytes()
