"""Linearized Subspace Refinement of trained networks, as a distributed MPI batch pipeline.

    from lsr_hpc import Problem, ResidualBlock, refine
    result = refine(Problem(name="mine", model=net, blocks=[...]), comm=MPI.COMM_WORLD, rank=200)

Importing the package starts neither MPI nor PETSc nor CUDA.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Evaluation": "problem",
    "ModelSpec": "problem",
    "Problem": "problem",
    "ProblemFamily": "problem",
    "ResidualBlock": "problem",
    "RefineResult": "result",
    "RefineSettings": "settings",
    "RefinedPredictor": "predictor",
    "SolverSettings": "settings",
    "SubspaceSettings": "settings",
    "HeldOutSettings": "settings",
    "ComputeSettings": "settings",
    "refine": "oneshot",
}
__all__ = [*sorted(_PUBLIC), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lsr_hpc' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lsr_hpc.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value
