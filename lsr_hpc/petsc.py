"""Starting PETSc and SLEPc, and the few places where versions 3.18 to 3.26 differ.

Nothing else in the project tests versions. Importing this module starts nothing; :func:`libraries` does,
in the only order that works: mpi4py, then slepc4py, then petsc4py.

What Python's collector frees as the last owner, PETSc keeps for a collective clean-up that nobody calls. So
objects are destroyed in so many words, and handles and views of them (``getBV``, :func:`local_panel`) go
before they do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lsr_hpc.errors import AccuracyError, EnvironmentProblem, LsrError

__all__ = ["destroying", "libraries", "local_panel", "set_initial_space", "start", "translated_errors"]


def start(options: Sequence[str] = ()) -> None:
    """Start MPI, SLEPc and PETSc with command-line style options.

    Args:
        options: For example ``["-lsr_svd_type", "trlanczos", "-log_view"]``; ``PETSC_OPTIONS`` works too.

    Raises:
        EnvironmentProblem: If a library cannot be imported or is built with complex scalars.

    Collective: over COMM_WORLD. Only the first call in a process has an effect.
    """
    try:
        import slepc4py
        from mpi4py import MPI  # noqa: F401  (first, so that mpi4py's thread level wins)

        slepc4py.init(["lsr-hpc", *options])
        from petsc4py import PETSc
        from slepc4py import SLEPc  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(
            f"the MPI solvers cannot be imported ({error}): run `lsr-hpc doctor`; without them set "
            'compute.panels = "torch", with subspace.basis = "krylov" or "dual" and solver.type = "tsqr"'
        ) from error
    import numpy as np

    if np.dtype(PETSc.ScalarType) != np.float64:
        raise EnvironmentProblem(
            f"PETSc is built with scalar type {np.dtype(PETSc.ScalarType)}, float64 is needed: "
            "install the real double-precision build (see `lsr-hpc doctor`)"
        )


def libraries() -> tuple[Any, Any]:
    """The petsc4py and slepc4py modules, started if need be.

    Returns:
        ``(PETSc, SLEPc)``.
    """
    if "petsc4py.PETSc" not in sys.modules or "slepc4py.SLEPc" not in sys.modules:
        start()
    from petsc4py import PETSc
    from slepc4py import SLEPc

    return PETSc, SLEPc


@contextmanager
def translated_errors(task: str) -> Iterator[None]:
    """Turn what PETSc raises into our own errors.

    A Python exception inside a matrix callback arrives as itself in 3.18, as the cause of a PETSc.Error in
    3.26, and inside a SystemError through slepc4py; the innermost LsrError of that chain is what we want.

    Args:
        task: What was being done, for the message.

    Yields:
        Nothing.

    Raises:
        LsrError: The one a callback raised.
        AccuracyError: If PETSc or SLEPc itself failed.
    """
    PETSc, _ = libraries()
    try:
        yield
    except (PETSc.Error, SystemError) as error:
        link: BaseException | None = error
        while link is not None:
            if isinstance(link, LsrError):
                raise link from None
            if not isinstance(link, PETSc.Error | SystemError):
                raise link from None
            cause, link = link, link.__cause__
        raise AccuracyError(f"{task} failed inside PETSc/SLEPc: {cause}") from error


@contextmanager
def destroying(*objects: Any) -> Iterator[None]:
    """Destroy PETSc objects at the end of a block, in the given order on every rank.

    ``destroy`` is collective and Python's collector is not, so nothing is left to ``__del__``.

    Args:
        *objects: Anything with a ``destroy`` method.

    Yields:
        Nothing.
    """
    try:
        yield
    finally:
        for thing in objects:
            thing.destroy()


def local_panel(mat: Any) -> Any:
    """This rank's rows of a dense PETSc matrix as a torch tensor that shares its memory.

    Args:
        mat: A dense ``PETSc.Mat``; its columns may be padded (leading dimension above the row count).

    Returns:
        Tensor of shape (local rows, columns). After writing call ``mat.stateIncrease()``. It co-owns the
        matrix: delete it before the matrix is destroyed, or the memory is never given back.
    """
    from torch.utils.dlpack import from_dlpack

    return from_dlpack(mat)


def set_initial_space(svd: Any, right: list[Any], left: list[Any]) -> None:
    """Hand start vectors to an SVD solver; renamed in SLEPc 3.24, and both lists are always needed.

    Args:
        svd: ``SLEPc.SVD``.
        right: Vectors of the domain, may be empty.
        left: Vectors of the range, may be empty.
    """
    setter = getattr(svd, "setInitialSpace", None) or svd.setInitialSpaces
    setter(right, left)
