"""Block Krylov space of J^T J, seeded with the residual: the directions in which the loss can still fall.

    V_1     = orth(J^T [chi_1 r0, ..., chi_b r0])     chi_i: every b-th row; the sum is J^T r0
    V_{j+1} = orth((I - K K^T) J^T J V_j)             K = [V_1, ..., V_j]

Training has removed the residual along J's dominant singular vectors, so that a basis of those alone can be
blind to what is left; a space grown from J^T r0 is not, and LSQR minimises over the same space with b = 1.
Every product is used: J V_j is the reduced matrix of the least-squares problem itself.

Panels are SLEPc basis vectors: K is distributed over the parameters, J V_j over the rows, and J multiplies a
whole block at once. Theory: Golub and Kahan 1965; Musco and Musco 2015 (blocks, against power iteration).
"""

# Legend: N rows, P parameters, b block width, m columns of K so far; _local = this rank's share.

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.comm import on_first
from lsr_hpc.dense_svd import dense_svd
from lsr_hpc.errors import AccuracyError
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.jacobian.petsc_matrix import jacobian_matrix
from lsr_hpc.petsc import destroying, libraries, local_panel, translated_errors
from lsr_hpc.rows import FitAndHeld
from lsr_hpc.subspace.basis import Basis, check_orthonormal

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["GrownSpace", "krylov_basis"]

Array = NDArray[np.float64]
# What is left of a block outside the space, relative to the block, below which it is rounding noise.
_NOISE = 1e-10
# Components of unit vectors along K that one pass removes to rounding.
_SMALL = 1e-3
_MOST_PASSES = 4


@dataclass(frozen=True)
class GrownSpace:
    """A Krylov space while it grows, between two blocks.

    Attributes:
        v_local: This rank's parameters of every direction so far, shape (m, P_local).
        image: J K so far, m vectors.
        depth: Blocks grown, given directions not counted.
        last: First direction of the last block.
    """

    v_local: Array
    image: FitAndHeld
    depth: int
    last: int


def krylov_basis(
    jacobian: DistributedJacobian,
    held_jacobian: DistributedJacobian,
    r0: FitAndHeld,
    *,
    first_row: int,
    rank: int,
    width: int,
    orthogonalization: str,
    given: Array | None = None,
    is_enough: Callable[[FitAndHeld], bool] = lambda image: False,
    grown: GrownSpace | None = None,
    on_block: Callable[[Callable[[], GrownSpace]], None] = lambda space: None,
) -> Basis:
    """Grow the space block by block until it is large enough.

    Args:
        jacobian: J of the fitted rows.
        held_jacobian: J of the held-out rows.
        r0: Residual at the start.
        first_row: Global number of this rank's first fitted row.
        rank: Largest number of directions m <= P; fewer are returned where J has no more.
        width: Block width b.
        orthogonalization: ``"auto"`` or ``"tsqr"`` (both TSQR: a new block is nearly dependent on K), or
            ``"cholesky_qr2"``.
        given: Nearly orthonormal directions to start from, (g, P_local), g < rank; they come first.
        is_enough: Asked between two blocks with J K on all rows; True ends the growth. Collective.
        grown: What an interrupted call with the same arguments has grown, to go on from.
        on_block: Called after every block with what makes a copy of the space so far; collective. What it
            raises ends the growth.

    Returns:
        The basis with its image J K.

    Raises:
        AccuracyError: If orthogonality is lost.

    Collective: all ranks; per step one J and one J^T block product of b columns, and two block
    orthogonalisations.
    """
    comm = jacobian.comm
    lo, hi = jacobian.my_parameters
    given = np.empty((0, hi - lo)) if given is None else given
    n_given = len(given)
    width = min(width, rank - n_given)
    PETSc, _ = libraries()
    mat = jacobian_matrix(jacobian)
    # Virtual: its product with a block of vectors is one block product with J^T.
    transposed = PETSc.Mat().createTranspose(mat)
    factor = PETSc.Mat().createDense((rank, rank), comm=PETSc.COMM_SELF)
    factor.setUp()
    image = FitAndHeld(np.empty((rank, jacobian.local.n_rows)), np.empty((rank, held_jacobian.local.n_rows)))
    with (
        destroying(transposed, mat, factor),
        translated_errors("block Krylov"),
        _basis_vectors(mat.createVecRight(), rank, orthogonalization) as directions,
        _basis_vectors(mat.createVecLeft(), width, orthogonalization) as images,
    ):

        def take_in(block: slice) -> None:
            """Multiply a finished block by J."""
            if block.stop == block.start:
                return
            images.setActiveColumns(0, block.stop - block.start)
            directions.setActiveColumns(block.start, block.stop)
            directions.matMult(mat, images)
            with _columns(images, slice(0, block.stop - block.start)) as panel:
                image.fit[block] = panel[: jacobian.local.n_rows].T
            with _columns(directions, block) as panel:
                image.held[block] = held_jacobian.jv(panel[: hi - lo].T)

        def space() -> GrownSpace:
            with _columns(directions, slice(0, start)) as panel:
                copied = panel[: hi - lo].T.copy()
            return GrownSpace(copied, image.first(start), depth, last)

        start = depth = last = 0
        for first in range(0, n_given if grown is None else 0, width):
            some = given[first : first + width]
            block = slice(start, start + len(some))
            with _columns(directions, block) as panel:
                panel[:] = 0.0
                panel[: hi - lo] = some.T
            # Singular vectors of small singular values are orthonormal to fewer digits.
            block = _orthonormalise(comm, directions, factor, block)
            take_in(block)
            start = block.stop
        source = _split_residual(r0.fit, first_row, width)
        if grown is not None:
            start, depth, last = len(grown.v_local), grown.depth, grown.last
            with _columns(directions, slice(0, start)) as panel:
                panel[:] = 0.0
                panel[: hi - lo] = grown.v_local.T
            image.fit[:start], image.held[:start] = grown.image.fit, grown.image.held
            source = image.fit[last:start]
        # Before a block, so that a growth taken up where it was large enough ends there too.
        while start < rank and not (depth and is_enough(image.first(start))):
            block = slice(start, min(start + len(source), rank))
            n_columns = block.stop - block.start
            # J^T (J V_j), or J^T of the residual's parts in the first step.
            with _columns(images, slice(0, n_columns)) as panel:
                panel[:] = 0.0
                panel[: jacobian.local.n_rows] = source[:n_columns].T
            images.setActiveColumns(0, n_columns)
            directions.setActiveColumns(*_range(block))
            images.matMult(transposed, directions)
            block = _orthonormalise(comm, directions, factor, block)
            if block.stop == block.start:
                break
            take_in(block)
            source, start, depth, last = image.fit[block], block.stop, depth + 1, block.start
            on_block(space)
        v_local = space().v_local
    detail = f"block Krylov from J^T r0 in SLEPc basis vectors, {depth} blocks of {width}"
    if n_given:
        detail += f" behind {n_given} given directions"
    return Basis(v_local, None, check_orthonormal(comm, v_local), detail, image.first(start))


def _orthonormalise(comm: MPI.Comm, directions: Any, factor: Any, block: slice) -> slice:
    """Orthonormalise a block against all columns before it and in itself, without what depends on them.

    Where the space holds all of J, nothing but rounding is left of a block. Where it holds most of it, what
    is left has new components along K, and takes further passes.

    Args:
        comm: Communicator.
        directions: Basis vectors, the block's columns not yet orthonormal.
        factor: Room for the triangular factor.
        block: Columns of the block.

    Returns:
        The columns that were kept, from the same start; at least one where the basis is empty.

    Raises:
        AccuracyError: If the block holds NaN or Inf.
    """
    directions.setActiveColumns(*_range(block))
    directions.orthogonalize(factor)
    r = factor.getDenseArray()
    largest = np.linalg.norm(r[: block.stop, block], axis=0).max()
    if not np.isfinite(largest):
        # The factor is equal on all ranks.
        raise AccuracyError(
            "J^T r0, or J^T J times it, holds NaN or Inf: check the model's derivatives at the points",
            on_every_rank=True,
        )
    rotation, left = on_first(comm, lambda: dense_svd(np.triu(r[block, block]))[:2])
    kept = int(np.sum(left > _NOISE * largest))
    if block.start == 0:
        kept = max(kept, 1)
    if kept < len(left):
        # Leading columns: what stands out of the space, largest first.
        with _columns(directions, block) as panel:
            panel[:] = panel @ rotation
        block = slice(block.start, block.start + kept)
    if kept == 0:
        return block
    directions.setActiveColumns(*_range(block))
    for _ in range(_MOST_PASSES):
        # From here on the columns have unit length.
        directions.orthogonalize(factor)
        along_k = factor.getDenseArray()[: block.start, block]
        if np.abs(along_k).max(initial=0.0) <= _SMALL:
            break
    return block


def _split_residual(r0_local: Array, first_row: int, width: int) -> Array:
    """The residual cut into ``width`` groups of rows, shape (width, N_local); the groups sum to it."""
    groups = np.arange(first_row, first_row + len(r0_local)) % width
    return np.where(groups == np.arange(width)[:, np.newaxis], r0_local, 0.0)


@contextmanager
def _basis_vectors(template: Any, columns: int, orthogonalization: str) -> Iterator[Any]:
    """SLEPc basis vectors distributed like a vector, which is used up."""
    _, SLEPc = libraries()
    kinds = SLEPc.BV.OrthogBlockType
    vectors = SLEPc.BV().create(comm=template.getComm())
    with destroying(vectors, template):
        vectors.setSizesFromVec(template, columns)
        vectors.setOptionsPrefix("lsr_")
        vectors.setFromOptions()
        vectors.setOrthogonalization(block=kinds.CHOL if orthogonalization == "cholesky_qr2" else kinds.TSQR)
        yield vectors


@contextmanager
def _columns(vectors: Any, columns: slice) -> Iterator[Array]:
    """This rank's rows of some columns, shape (rows, columns), sharing memory with the basis vectors."""
    vectors.setActiveColumns(*_range(columns))
    view = vectors.getMat()
    panel = local_panel(view).numpy()
    try:
        yield panel
    finally:
        del panel
        vectors.restoreMat(view)


def _range(columns: slice) -> tuple[int, int]:
    return columns.start, columns.stop
