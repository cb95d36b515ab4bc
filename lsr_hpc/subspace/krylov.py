"""Block Krylov space of J^T J, seeded with the residual: the directions in which the loss can still fall.

    V_1     = orth(J^T [chi_1 r0, ..., chi_b r0])     chi_i: every b-th row; the sum is J^T r0
    V_{j+1} = orth((I - K K^T) J^T J V_j)             K = [V_1, ..., V_j]

Training has removed the residual along J's dominant singular vectors, so that a basis of those alone can be
blind to what is left; a space grown from J^T r0 is not, and LSQR minimises over the same space with b = 1.
Every product is used: J V_j is the reduced matrix of the least-squares problem itself, and stays in float64.
The products with J^T only draw directions, so that their precision may be lower: it moves the space by as
much as a step of it is perturbed, and neither its orthonormality nor J V_j.

K, the block in work, and J between them are :mod:`lsr_hpc.subspace.panels`: SLEPc basis vectors, or torch
tensors on a GPU. Theory: Golub and Kahan 1965; Musco and Musco 2015 (blocks, against power iteration).
"""

# Legend: N rows, P parameters, b block width, m columns of K so far; _local = this rank's share.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lsr_hpc.comm import on_first
from lsr_hpc.dense_svd import dense_svd
from lsr_hpc.errors import AccuracyError
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.rows import FitAndHeld
from lsr_hpc.subspace.basis import Basis, check_orthonormal
from lsr_hpc.subspace.panels import Panels, open_panels, project_out

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
    panels: str = "auto",
    given: Array | None = None,
    is_enough: Callable[[FitAndHeld], bool] = lambda image: False,
    grown: GrownSpace | None = None,
    on_block: Callable[[Callable[[], GrownSpace]], None] = lambda space: None,
) -> Basis:
    """Grow the space block by block until it is large enough.

    Args:
        jacobian: J of the fitted rows; the precision of its products with J^T draws the directions.
        held_jacobian: J of the held-out rows.
        r0: Residual at the start.
        first_row: Global number of this rank's first fitted row.
        rank: Largest number of directions m <= P; fewer are returned where J has no more.
        width: Block width b.
        orthogonalization: Of a block among itself: ``"auto"`` (TSQR, for a new block may be nearly dependent,
            then Cholesky QR), ``"tsqr"``, or ``"cholesky_qr2"``.
        panels: ``"auto"``, ``"slepc"`` or ``"torch"``.
        given: Nearly orthonormal directions to start from, (g, P_local), g < rank; they come first.
        is_enough: Asked between two blocks with J K on all rows; True ends the growth. Collective.
        grown: What an interrupted call with the same arguments has grown, to go on from.
        on_block: Called after every block with what makes a copy of the space so far; collective. What it
            raises ends the growth.

    Returns:
        The basis with its image J K.

    Raises:
        AccuracyError: If orthogonality is lost.

    Collective: all ranks; per step one J and one J^T block product of b columns, and two to four passes of
    Gram-Schmidt and QR.
    """
    comm = jacobian.comm
    given = np.empty((0, _n_local(jacobian))) if given is None else given
    n_given = len(given)
    width = min(width, rank - n_given)
    image = FitAndHeld(np.empty((rank, jacobian.local.n_rows)), np.empty((rank, held_jacobian.local.n_rows)))
    with open_panels(panels, jacobian, rank, width, orthogonalization) as room:

        def take_in(n: int) -> slice:
            """Make the fresh block the next directions, without what depends on K, and multiply it by J."""
            block = slice(start, start + _orthonormalise(comm, room, start, n))
            if block.stop > block.start:
                image.fit[block] = room.push(block)
                image.held[block] = held_jacobian.push(_directions(room, block)).cpu().numpy()
            return block

        def space() -> GrownSpace:
            return GrownSpace(_copy(room, start), image.first(start), depth, last)

        start = depth = last = 0
        for first in range(0, n_given if grown is None else 0, width):
            some = given[first : first + width]
            _fill(room, some)
            # Singular vectors of small singular values are orthonormal to fewer digits.
            start = take_in(len(some)).stop
        source = _split_residual(r0.fit, first_row, width)
        if grown is not None:
            start, depth, last = len(grown.v_local), grown.depth, grown.last
            _restore(room, grown.v_local)
            image.fit[:start], image.held[:start] = grown.image.fit, grown.image.held
            source = image.fit[last:start]
        # Before a block, so that a growth taken up where it was large enough ends there too.
        while start < rank and not (depth and is_enough(image.first(start))):
            # J^T (J V_j), or J^T of the residual's parts in the first step.
            source = source[: rank - start]
            room.pull(source)
            block = take_in(len(source))
            if block.stop == block.start:
                break
            source, start, depth, last = image.fit[block], block.stop, depth + 1, block.start
            on_block(space)
        v_local, made_of = _copy(room, start), room.name
    detail = f"block Krylov from J^T r0 in {made_of}, {depth} blocks of {width}"
    if jacobian.jtu_dtype != torch.float64:
        detail += ", drawn in float32"
    if n_given:
        detail += f" behind {n_given} given directions"
    return Basis(v_local, None, check_orthonormal(comm, v_local), detail, image.first(start))


def _orthonormalise(comm: MPI.Comm, room: Panels, start: int, n: int) -> int:
    """Orthonormalise the fresh block against all directions and in itself, and put it behind them.

    Where the space holds all of J, nothing but rounding is left of a block. Where it holds most of it, what
    is left has new components along K, and takes further passes.

    Args:
        comm: Communicator.
        room: The panels.
        start: Number of directions so far.
        n: Vectors of the block.

    Returns:
        How many of the block were kept; at least one where there was no direction.

    Raises:
        AccuracyError: If the block holds NaN or Inf.
    """
    along = _project_out(comm, room, start, n)
    r = room.factorise(n, is_well_conditioned=False)
    largest = np.sqrt(np.sum(along**2, axis=1) + np.sum(r**2, axis=0)).max()
    if not np.isfinite(largest):
        # The factors are equal on all ranks.
        raise AccuracyError(
            "J^T r0, or J^T J times it, holds NaN or Inf: check the model's derivatives at the points",
            on_every_rank=True,
        )
    rotation, left = on_first(comm, lambda: dense_svd(r)[:2])
    kept = int(np.sum(left > _NOISE * largest))
    if start == 0:
        kept = max(kept, 1)
    if kept == 0:
        return 0
    if kept < n:
        # Leading columns: what stands out of the space, largest first.
        _rotate(room, n, rotation)
    for _ in range(_MOST_PASSES):
        # From here on the vectors have unit length.
        along = _project_out(comm, room, start, kept)
        room.factorise(kept, is_well_conditioned=True)
        if np.abs(along).max(initial=0.0) <= _SMALL:
            break
    _append(room, start, kept)
    return kept


# Views of panels must not outlive the panels (see lsr_hpc.petsc), so each lives in a function of its own.


def _project_out(comm: MPI.Comm, room: Panels, start: int, n: int) -> Array:
    if start == 0:
        return np.zeros((n, 0))
    with room.directions(slice(0, start)) as directions, room.fresh(n) as block:
        return project_out(comm, directions, block)


def _rotate(room: Panels, n: int, rotation: Array) -> None:
    with room.fresh(n) as block:
        block.copy_(torch.from_numpy(rotation.T.copy()).to(block) @ block)


def _append(room: Panels, start: int, n: int) -> None:
    with room.directions(slice(start, start + n)) as directions, room.fresh(n) as block:
        directions.copy_(block)


def _fill(room: Panels, vectors: Array) -> None:
    with room.fresh(len(vectors)) as block:
        block.copy_(torch.from_numpy(vectors))


def _restore(room: Panels, vectors: Array) -> None:
    with room.directions(slice(0, len(vectors))) as directions:
        directions.copy_(torch.from_numpy(vectors))


def _directions(room: Panels, columns: slice) -> torch.Tensor:
    with room.directions(columns) as directions:
        return directions.clone()


def _copy(room: Panels, n: int) -> Array:
    return _directions(room, slice(0, n)).cpu().numpy()


def _n_local(jacobian: DistributedJacobian) -> int:
    lo, hi = jacobian.my_parameters
    return hi - lo


def _split_residual(r0_local: Array, first_row: int, width: int) -> Array:
    """The residual cut into ``width`` groups of rows, shape (width, N_local); the groups sum to it."""
    groups = np.arange(first_row, first_row + len(r0_local)) % width
    return np.where(groups == np.arange(width)[:, np.newaxis], r0_local, 0.0)
