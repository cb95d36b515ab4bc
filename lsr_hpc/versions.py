"""Versions of everything that can change a result, for records and result files."""

from __future__ import annotations

import platform
import sys

from lsr_hpc import __version__

__all__ = ["versions"]


def versions(*, with_solvers: bool) -> dict[str, str]:
    """Versions by name.

    Args:
        with_solvers: Whether MPI, PETSc and SLEPc are asked too, as far as this process has started them.

    Returns:
        Versions as strings.
    """
    import numpy as np
    import torch

    found = {
        "lsr_hpc": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    if with_solvers and "mpi4py.MPI" in sys.modules:
        import mpi4py
        from mpi4py import MPI

        found |= {
            "mpi4py": mpi4py.__version__,
            "mpi": MPI.Get_library_version().strip().rstrip("\0").split("\n")[0],
        }
    if with_solvers and "slepc4py.SLEPc" in sys.modules:
        from lsr_hpc.petsc import libraries

        PETSc, SLEPc = libraries()
        found |= {
            "petsc": ".".join(map(str, PETSc.Sys.getVersion())),
            "slepc": ".".join(map(str, SLEPc.Sys.getVersion())),
        }
    return found
