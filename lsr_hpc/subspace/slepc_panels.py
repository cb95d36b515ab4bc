"""Panels of a growing space as SLEPc basis vectors, multiplied by J as a PETSc matrix.

Directions and block are distributed over the parameters, images of the block over the rows. A product with J
or J^T is one block product of the MATPYTHON of :mod:`lsr_hpc.jacobian.petsc_matrix`; the block is
orthonormalised by SLEPc's TSQR or Cholesky QR.
"""

# Legend: P parameters, b columns of a block; _local = this rank's share.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.jacobian.petsc_matrix import jacobian_matrix
from lsr_hpc.petsc import destroying, libraries, local_panel, translated_errors
from lsr_hpc.subspace.panels import Panels

__all__ = ["slepc_panels"]

Array = NDArray[np.float64]


@contextmanager
def slepc_panels(
    jacobian: DistributedJacobian, rank: int, width: int, orthogonalization: str
) -> Iterator[Panels]:
    """Make room in SLEPc basis vectors, and give it back.

    Args:
        jacobian: J.
        rank: Most directions.
        width: Most columns of a block.
        orthogonalization: ``"auto"`` (TSQR, and a Cholesky QR where the block is well conditioned),
            ``"tsqr"`` or ``"cholesky_qr2"``.

    Yields:
        The panels.

    Collective: all ranks of ``jacobian.comm``.
    """
    PETSc, _ = libraries()
    mat = jacobian_matrix(jacobian)
    # Virtual: its product with a block of vectors is one block product with J^T.
    transposed = PETSc.Mat().createTranspose(mat)
    factor = PETSc.Mat().createDense((width, width), comm=PETSc.COMM_SELF)
    factor.setUp()
    with (
        destroying(transposed, mat, factor),
        translated_errors("block Krylov"),
        _basis_vectors(mat.createVecRight(), rank) as directions,
        _basis_vectors(mat.createVecRight(), width) as fresh,
        _basis_vectors(mat.createVecLeft(), width) as images,
    ):
        yield _SlepcPanels(jacobian, mat, transposed, directions, fresh, images, factor, orthogonalization)


class _SlepcPanels:
    """See :class:`~lsr_hpc.subspace.panels.Panels`."""

    name = "SLEPc basis vectors"

    def __init__(
        self,
        jacobian: DistributedJacobian,
        mat: Any,
        transposed: Any,
        directions: Any,
        fresh: Any,
        images: Any,
        factor: Any,
        orthogonalization: str,
    ) -> None:
        lo, hi = jacobian.my_parameters
        self._n_parameters, self._n_rows = hi - lo, jacobian.local.n_rows
        self._mat, self._transposed = mat, transposed
        self._directions, self._fresh, self._images = directions, fresh, images
        self._factor = factor
        self._orthogonalization = orthogonalization

    @contextmanager
    def directions(self, columns: slice) -> Iterator[Tensor]:
        with _columns(self._directions, columns) as panel:
            yield panel[: self._n_parameters].T

    @contextmanager
    def fresh(self, n: int) -> Iterator[Tensor]:
        with _columns(self._fresh, slice(0, n)) as panel:
            yield panel[: self._n_parameters].T

    def pull(self, source: Array) -> None:
        n = len(source)
        with _columns(self._images, slice(0, n)) as panel:
            panel.zero_()
            panel[: self._n_rows].numpy()[:] = source.T
        for vectors in (self._images, self._fresh):
            vectors.setActiveColumns(0, n)
        self._images.matMult(self._transposed, self._fresh)

    def push(self, columns: slice) -> Array:
        n = columns.stop - columns.start
        self._images.setActiveColumns(0, n)
        self._directions.setActiveColumns(columns.start, columns.stop)
        self._directions.matMult(self._mat, self._images)
        with _columns(self._images, slice(0, n)) as panel:
            return panel[: self._n_rows].T.numpy().copy()

    def factorise(self, n: int, *, is_well_conditioned: bool) -> Array:
        _, SLEPc = libraries()
        kinds, way = SLEPc.BV.OrthogBlockType, self._orthogonalization
        is_cheap = way == "cholesky_qr2" or (way == "auto" and is_well_conditioned)
        self._fresh.setOrthogonalization(block=kinds.CHOL if is_cheap else kinds.TSQR)
        self._fresh.setActiveColumns(0, n)
        self._fresh.orthogonalize(self._factor)
        return np.triu(self._factor.getDenseArray()[:n, :n])


@contextmanager
def _basis_vectors(template: Any, columns: int) -> Iterator[Any]:
    """SLEPc basis vectors distributed like a vector, which is used up."""
    _, SLEPc = libraries()
    vectors = SLEPc.BV().create(comm=template.getComm())
    with destroying(vectors, template):
        vectors.setSizesFromVec(template, columns)
        vectors.setOptionsPrefix("lsr_")
        vectors.setFromOptions()
        yield vectors


@contextmanager
def _columns(vectors: Any, columns: slice) -> Iterator[Tensor]:
    """This rank's rows of some columns, shape (rows, columns), sharing memory with the basis vectors."""
    vectors.setActiveColumns(columns.start, columns.stop)
    view = vectors.getMat()
    panel: Tensor = local_panel(view)
    try:
        yield panel
    finally:
        del panel
        vectors.restoreMat(view)
