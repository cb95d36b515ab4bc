"""Representations of the Jacobian that the project has, by the name of ``compute.jacobian``.

A new one is one line in ``REPRESENTATIONS``; :mod:`benchmarks.products` measures every entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lsr_hpc import Problem
from lsr_hpc.jacobian.operator import JacobianOperator
from lsr_hpc.settings import RefineSettings

__all__ = ["REPRESENTATIONS"]

Constructor = Callable[[Problem, RefineSettings], JacobianOperator]


def _by_setting(name: str) -> Constructor:
    """The representation that ``compute.jacobian = name`` gives to a refinement on one rank."""

    def construct(problem: Problem, settings: RefineSettings) -> JacobianOperator:
        from mpi4py import MPI

        from lsr_hpc.prepare import prepare

        compute = replace(settings.compute, jacobian=name, device="cpu")
        return prepare(problem, MPI.COMM_SELF, replace(settings, compute=compute)).jacobian.local

    return construct


REPRESENTATIONS: dict[str, Constructor] = {
    name: _by_setting(name) for name in ("matrix_free", "factored", "explicit")
}
