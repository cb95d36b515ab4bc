"""Products go on where an allocator refuses: in smaller tiles, then in a representation that holds less."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lsr_hpc.errors import LsrError
from lsr_hpc.jacobian.retreat import RetreatingJacobian, Rung
from tests.mpi.conftest import REPOSITORY


class Rows:
    """A matrix that complains when it is applied."""

    n_rows, n_parameters = 2, 3

    def __init__(self, complaint: Exception | None) -> None:
        self.complaint = complaint

    def jv(self, v: torch.Tensor) -> torch.Tensor:
        if self.complaint:
            raise self.complaint
        return v[:, :2]

    def jtu(self, u: torch.Tensor) -> torch.Tensor:
        return self.jv(u)


REFUSED = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")


@pytest.mark.parametrize("refusal", [REFUSED, MemoryError(), torch.cuda.OutOfMemoryError("out of memory")])
def test_the_next_one_is_taken_and_kept(refusal, caplog):
    jacobian = RetreatingJacobian([
        Rung("first", lambda: Rows(refusal)),
        Rung("second", lambda: Rows(refusal)),
        Rung("third", lambda: Rows(None)),
    ])
    v = torch.ones(4, 3)
    assert torch.equal(jacobian.jv(v), v[:, :2])
    assert torch.equal(jacobian.jtu(v), v[:, :2])
    assert jacobian.retreats == ["second", "third"]
    assert caplog.text.count("out of memory") == 2


def test_other_errors_are_none_of_its_business():
    jacobian = RetreatingJacobian([
        Rung("a", lambda: Rows(RuntimeError("shape"))),
        Rung("b", lambda: Rows(None)),
    ])
    with pytest.raises(RuntimeError, match="shape"):
        jacobian.jv(torch.ones(1, 3))
    assert jacobian.retreats == []


def test_after_the_last_one_comes_an_error_with_advice():
    jacobian = RetreatingJacobian([Rung("a", lambda: Rows(MemoryError()))])
    with pytest.raises(
        LsrError, match=r"even with the smallest tiles: start more ranks, lower subspace\.rank"
    ):
        jacobian.jv(torch.ones(1, 3))


# A matrix of 490 MiB with 300 MiB of address space to go; matrix-free products need a few.
REAL = """
import resource
import torch
from mpi4py import MPI
from lsr_hpc import Problem, ResidualBlock, refine
from lsr_hpc.oneshot import refine_prepared
from lsr_hpc.phases import Phases
from lsr_hpc.prepare import prepare
from lsr_hpc.settings import ComputeSettings, RefineSettings, SubspaceSettings
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(1, 60), torch.nn.Tanh(), torch.nn.Linear(60, 60), torch.nn.Tanh(),
                          torch.nn.Linear(60, 1)).double()
x = torch.linspace(0, 3, 17000, dtype=torch.float64)[:, None]
problem = Problem(name="fit", model=net,
                  blocks=[ResidualBlock(name="data", residual=lambda u, x: u(x) - torch.sin(x), points=x)])


def refined(kind, limit_bytes=None):
    settings = RefineSettings(subspace=SubspaceSettings(rank=10, width=10),
                              compute=ComputeSettings(jacobian=kind, memory_per_rank="4GiB"))
    prepared = prepare(problem, MPI.COMM_SELF, settings)
    if limit_bytes:
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + limit_bytes,) * 2)
    return refine_prepared(prepared, Phases()).result


# The first time BLAS takes memory of its own, and waits for ever where there is none.
wanted, found = refined("matrix_free"), refined("explicit", 300 * 2**20)
print(f"{wanted.residual_linear:.12e}", f"{found.residual_linear:.12e}", *found.advice, sep="\\n")
"""


@pytest.mark.mpi
def test_a_matrix_for_which_there_is_no_memory_is_applied_without_being_held():
    done = subprocess.run(
        [sys.executable, "-c", REAL], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    wanted, found, *advice = done.stdout.splitlines()
    assert float(found) == pytest.approx(float(wanted), rel=1e-9)
    assert any("memory ran out on 1 of 1 MPI ranks, and J went on matrix_free" in line for line in advice)
