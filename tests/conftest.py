"""Fixtures that several test files share: a serial communicator, dense Jacobians, a small disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Read when numpy and PETSc load. On matrices as small as these, threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.jacobian.operator import DistributedJacobian

Array = NDArray[np.float64]


class DenseOperator:
    """A matrix that is known entry by entry, behind the protocol that real Jacobians follow."""

    def __init__(self, matrix: Array) -> None:
        self.matrix = torch.from_numpy(np.ascontiguousarray(matrix))

    @property
    def n_rows(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def n_parameters(self) -> int:
        return int(self.matrix.shape[1])

    def jv(self, v: Tensor) -> Tensor:
        return v @ self.matrix.T.to(v.dtype)

    def jtu(self, u: Tensor) -> Tensor:
        return u @ self.matrix.to(u.dtype)


@pytest.fixture(scope="session")
def comm_self() -> Any:
    from mpi4py import MPI

    return MPI.COMM_SELF


@pytest.fixture
def petsc_option() -> Iterator[Callable[[str, str], None]]:
    """Sets options of PETSc for the length of a test."""
    from lsr_hpc.petsc import libraries

    options = libraries()[0].Options()
    names: list[str] = []

    def put(name: str, value: str) -> None:
        names.append(name)
        options[name] = value

    yield put
    for name in names:
        del options[name]


@pytest.fixture
def as_jacobian(comm_self: Any) -> Callable[..., DistributedJacobian]:
    """Wraps a dense matrix; the chunk is small, so that products of more columns take several."""

    def wrap(matrix: Array, columns_per_chunk: int = 7) -> DistributedJacobian:
        return DistributedJacobian(comm_self, DenseOperator(matrix), columns_per_chunk)

    return wrap


@pytest.fixture
def with_spectrum() -> Callable[[int, int, Array, int], tuple[Array, Array, Array]]:
    """Makes ``U diag(sigma) V^T`` of shape (n, p) from random orthonormal U and V; returns all three."""

    def make(n: int, p: int, sigma: Array, seed: int = 0) -> tuple[Array, Array, Array]:
        rng = np.random.default_rng(seed)
        u = np.linalg.qr(rng.standard_normal((n, len(sigma))))[0]
        v = np.linalg.qr(rng.standard_normal((p, len(sigma))))[0]
        return (u * sigma) @ v.T, u, v

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no right to mount a small disk: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)
