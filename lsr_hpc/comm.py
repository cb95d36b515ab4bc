"""Communication patterns that the method needs, on an mpi4py communicator that is always an argument.

Importing this module does not start MPI. Panels are blocks of b vectors, one vector per row, of shape
(b, n); distributed vectors are cut along n.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.errors import JobError, LsrError, RankError

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = [
    "OneProcess",
    "agree",
    "all_sum",
    "even_ranges",
    "gather_panel",
    "on_first",
    "reduce_panel",
    "sum_over_tree",
]

T = TypeVar("T")
Array = NDArray[np.float64]


class OneProcess:
    """What a process without MPI passes where a communicator is asked for: a world of itself."""

    rank = 0
    size = 1

    def allgather(self, value: T) -> list[T]:
        """The value alone."""
        return [value]

    def gather(self, value: T, root: int = 0) -> list[T]:
        """The value alone."""
        return [value]

    def bcast(self, value: T, root: int = 0) -> T:
        """The value itself."""
        return value


def even_ranges(n: int, n_parts: int) -> list[tuple[int, int]]:
    """Cut [0, n) into contiguous ranges whose sizes differ by at most one, PETSc's own layout.

    Args:
        n: Length.
        n_parts: Number of parts.

    Returns:
        ``(first, behind last)`` per part.
    """
    base, extra = divmod(n, n_parts)
    edges = [part * base + min(part, extra) for part in range(n_parts + 1)]
    return list(pairwise(edges))


def gather_panel(comm: MPI.Comm, local: Array, ranges: list[tuple[int, int]]) -> Array:
    """Give every rank the whole panel of which each owns a range of columns.

    Args:
        comm: Communicator.
        local: This rank's part, shape (b, n_local), b equal on all ranks.
        ranges: Column range of every rank.

    Returns:
        The whole panel, shape (b, n), equal on all ranks bit for bit.

    Collective: one allgatherv of b*n*8 bytes.
    """
    b = local.shape[0]
    n = ranges[-1][1]
    if comm.size == 1:
        return local
    received = np.empty(b * n)
    comm.Allgatherv(np.ascontiguousarray(local), (received, [b * (hi - lo) for lo, hi in ranges]))
    whole = np.empty((b, n))
    for lo, hi in ranges:
        whole[:, lo:hi] = received[b * lo : b * hi].reshape(b, hi - lo)
    return whole


def reduce_panel(comm: MPI.Comm, partial: Array, ranges: list[tuple[int, int]]) -> Array:
    """Sum the ranks' panels and leave each rank its own range of columns.

    Args:
        comm: Communicator.
        partial: This rank's contribution, shape (b, n).
        ranges: Column range of every rank.

    Returns:
        This rank's columns of the sum, shape (b, n_local).

    Collective: one reduce_scatter of b*n*8 bytes; the order of the sum depends on the number of ranks only.
    """
    b = partial.shape[0]
    if comm.size == 1:
        return partial
    send = np.concatenate([partial[:, lo:hi].ravel() for lo, hi in ranges])
    lo, hi = ranges[comm.rank]
    received = np.empty(b * (hi - lo))
    comm.Reduce_scatter(send, received, [b * (h - a) for a, h in ranges])
    return received.reshape(b, hi - lo)


def all_sum(comm: MPI.Comm, values: Array) -> Array:
    """Sum small arrays over the ranks, equal on all ranks bit for bit.

    Args:
        comm: Communicator.
        values: Array of equal shape on every rank.

    Returns:
        The sum.

    Collective: one reduction and one broadcast. Not an allreduce, which may add in another order on every
    rank.
    """
    values = np.ascontiguousarray(values, dtype=np.float64)
    if comm.size == 1:
        return values.copy()
    total = np.empty_like(values)
    comm.Reduce(values, total, root=0)
    comm.Bcast(total, root=0)
    return total


def sum_over_tree(comm: MPI.Comm, value: T, combine: Callable[[T, T], T]) -> T:
    """Combine one value per rank up a binary tree and hand the result to all.

    Args:
        comm: Communicator.
        value: This rank's value; any picklable object or array.
        combine: ``combine(lower rank's, higher rank's)``, associative.

    Returns:
        The combined value, equal on all ranks bit for bit.

    Collective: ceil(log2 p) messages up, one broadcast down.
    """
    step = 1
    while step < comm.size:
        if comm.rank % (2 * step) == step:
            comm.send(value, dest=comm.rank - step, tag=17)
            break
        if comm.rank + step < comm.size:
            value = combine(value, comm.recv(source=comm.rank + step, tag=17))
        step *= 2
    result: T = comm.bcast(value, root=0)
    return result


def agree(comm: MPI.Comm, action: Callable[[], T]) -> T:
    """Run a local action on every rank and raise on all of them if it failed on one.

    Args:
        comm: Communicator.
        action: What to do; must not communicate.

    Returns:
        What the action returned on this rank.

    Raises:
        LsrError: The failing rank's own error, re-raised on every rank (an :class:`LsrError` keeps its type
            and so its exit code; anything else becomes a :class:`RankError` that names rank and cause).

    Collective: one allgather of error messages.
    """
    error: BaseException | None = None
    result: T | None = None
    try:
        result = action()
    except (Exception, SystemExit) as caught:
        error = caught
    failures = [(rank, d) for rank, d in enumerate(comm.allgather(_described(error))) if d is not None]
    if failures:
        rank, (kind, message) = failures[0]
        everywhere = len(failures) == comm.size
        raise kind(message if everywhere else f"MPI rank {rank}: {message}", on_every_rank=True) from error
    return result  # type: ignore[return-value]


def _described(error: BaseException | None) -> tuple[type[LsrError], str] | None:
    """Class and message to re-raise on every rank; exceptions themselves need not survive pickling."""
    if error is None:
        return None
    if isinstance(error, LsrError):
        return type(error), str(error)
    if isinstance(error, SystemExit):
        return JobError, f"your code called sys.exit({error.code!r}): raise an exception instead"
    return RankError, f"{type(error).__name__}: {error}"


def on_first(comm: MPI.Comm, action: Callable[[], T]) -> T:
    """Compute something small on the first rank and hand the result to all.

    Redundant computation could differ between processors of different make, down to the sign of a singular
    vector; one broadcast is cheap against that.

    Args:
        comm: Communicator.
        action: What to compute; must not communicate. Called on the first rank only.

    Returns:
        Its result, equal on all ranks bit for bit.

    Raises:
        Exception: What the action raised, on every rank.

    Collective: one broadcast.
    """
    outcome: tuple[T | None, Exception | None] = (None, None)
    if comm.rank == 0:
        try:
            outcome = (action(), None)
        except Exception as error:
            outcome = (None, error)
    result, failure = comm.bcast(outcome, root=0)
    if failure is not None:
        failure.on_every_rank = True
        raise failure
    return result  # type: ignore[no-any-return]
