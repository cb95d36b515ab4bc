"""How blocks travel between ranks, on real ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi
PROGRAM = Path(__file__).parent / "exchange_program.py"


@pytest.mark.parametrize("n", [2, 3])
def test_every_kind_brings_and_sums_the_same_blocks(mpiexec, n):
    done = mpiexec(n, sys.executable, PROGRAM, limit_s=90)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all blocks arrived\n"
