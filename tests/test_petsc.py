"""What every use of PETSc owes: errors in words, and memory given back when the work is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lsr_hpc.errors import AccuracyError, JobError
from lsr_hpc.least_squares.ksp import solve_full, solve_reduced
from lsr_hpc.petsc import libraries, translated_errors
from lsr_hpc.plan import rss_bytes
from lsr_hpc.subspace.orthonormal import orthonormalise
from lsr_hpc.subspace.sketched import range_finder_basis
from lsr_hpc.subspace.svd import svd_basis

N, P = 8_000, 20
MATRIX = np.random.default_rng(0).standard_normal((N, P))
TASKS = ["orthonormalise", "range finder", "randomized", "trlanczos", "cross", "lsqr reduced", "cgls reduced",
         "lsqr full", "cgls full"]  # fmt: skip


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_memory_is_given_back(task: str, wide: bool, comm_self: Any, as_jacobian: Callable[..., Any]) -> None:
    # A family of a thousand instances repeats each of these a thousand times in one process.
    a = np.ascontiguousarray(MATRIX.T) if wide else MATRIX
    r0 = np.ones(len(a))
    limits: dict[str, Any] = {"tolerance": 1e-30, "max_iterations": 12}

    def work() -> None:
        if task == "orthonormalise":
            orthonormalise(comm_self, np.ascontiguousarray(MATRIX.T), "tsqr" if wide else "cholesky_qr2")
        elif task == "range finder":
            range_finder_basis(as_jacobian(a), rank=5, oversampling=5, test_matrix="gaussian",
                               orthogonalization="auto", seed=0)  # fmt: skip
        elif "reduced" in task:
            solve_reduced(
                comm_self, np.ascontiguousarray(MATRIX.T), np.ones(N), method=task.split()[0], **limits
            )
        elif "full" in task:
            solve_full(as_jacobian(a), r0, method=task.split()[0], **limits)
        else:
            svd_basis(as_jacobian(a), first_row=0, n_rows=len(a), rank=5, oversampling=5, seed=0, solver=task,
                      iterations=2 if task == "randomized" else 10, orthogonalization="auto")  # fmt: skip

    def growth(repeats: int) -> float:
        before = rss_bytes()
        for _ in range(repeats):
            work()
        return (rss_bytes() - before) / repeats

    growth(5)
    # A long vector kept is 64 kB per call, a panel up to twenty times that, in every round; the allocator's
    # own moods show in one round and not in the next.
    assert min(growth(10) for _ in range(4)) < N * 8 / 2


def test_error_of_petsc_itself_is_put_in_words() -> None:
    PETSc, _ = libraries()

    with pytest.raises(AccuracyError, match="a test failed inside PETSc/SLEPc"), translated_errors("a test"):
        PETSc.Vec().createSeq(3).axpy(1.0, PETSc.Vec().createSeq(4))


@pytest.mark.parametrize("error", [JobError("wrong"), KeyError("a name")])
def test_our_own_and_python_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, translated_errors("a test"):
        raise error

    assert caught.value is error
