"""The MPI world of a process, or a world of its own where MPI is not installed.

A bare machine with a GPU has torch and little else. One process needs no more: the Krylov basis in torch
tensors and TSQR ask for neither MPI nor PETSc. Nothing is taken over silently: the command line says so, and
the result names what the panels were made of.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, cast

from lsr_hpc.comm import OneProcess
from lsr_hpc.errors import EnvironmentProblem

if TYPE_CHECKING:
    from mpi4py import MPI

    from lsr_hpc.settings import RefineSettings

__all__ = ["asked_for_size", "has_mpi", "needs_petsc", "this_process", "whole_world"]

# Variables by which launchers tell a process the size of its world.
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")


def asked_for_size() -> int:
    """How many processes the launcher says that it has started; 1 without any."""
    meant = max((int(os.environ[v]) for v in _SIZE_VARIABLES if os.environ.get(v, "").isdigit()), default=1)
    if "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS", "").isdigit():
        meant = max(meant, int(os.environ["SLURM_STEP_NUM_TASKS"]))
    return meant


def has_mpi() -> bool:
    """Whether mpi4py is installed; it is not started."""
    return importlib.util.find_spec("mpi4py") is not None


def this_process() -> MPI.Comm:
    """A world of this process alone, whatever it was started in."""
    if not has_mpi():
        return cast("MPI.Comm", OneProcess())
    from mpi4py import MPI

    return MPI.COMM_SELF


def whole_world() -> MPI.Comm:
    """All processes that were started together.

    Returns:
        COMM_WORLD; a world of one process where mpi4py is not installed.

    Raises:
        EnvironmentProblem: If mpi4py cannot be loaded, or is not installed and several processes were
            started, or each of several is alone in its MPI world.
    """
    meant = asked_for_size()
    if not has_mpi():
        if meant > 1:
            raise EnvironmentProblem(
                f"the launcher started {meant} processes, and mpi4py is not installed: run `lsr-hpc doctor`, "
                "or start one process"
            )
        return cast("MPI.Comm", OneProcess())
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise EnvironmentProblem(f"mpi4py cannot be loaded ({error}): run `lsr-hpc doctor`") from error
    if meant > 1 and MPI.COMM_WORLD.size == 1:
        library = MPI.Get_library_version().strip().rstrip("\0").split("\n")[0]
        raise EnvironmentProblem(
            f"the launcher started {meant} processes, but each of them is alone in its MPI world: "
            f"the launcher belongs to another MPI than mpi4py, which uses {library}; start with "
            "that library's mpiexec (`lsr-hpc doctor` names it)"
        )
    return MPI.COMM_WORLD


def needs_petsc(settings: RefineSettings, comm: MPI.Comm) -> bool:
    """Whether a refinement goes through PETSc and SLEPc.

    Args:
        settings: Its settings.
        comm: Its world.

    Returns:
        False for a Krylov basis in torch tensors with TSQR, which is what one process without MPI does.
    """
    in_torch = settings.compute.panels == "torch" or (
        settings.compute.panels == "auto" and isinstance(comm, OneProcess)
    )
    return not (in_torch and settings.subspace.basis in {"krylov", "dual"} and settings.solver.type == "tsqr")
