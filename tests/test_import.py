"""Importing the package starts nothing: neither MPI, nor PETSc, nor CUDA; help works on any login node."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROBE = """
import contextlib, io, json, sys
{statement}
print(json.dumps({{
    "modules": sorted(sys.modules),
    "cuda": "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized(),
}}))
"""
HELP = """
from lsr_hpc.cli import main
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    main([{arguments}])
assert "usage: lsr-hpc" in out.getvalue(), out.getvalue()
"""
ALL = "import lsr_hpc, lsr_hpc.cli"
LIBRARY = """
import lsr_hpc
from lsr_hpc import *
import lsr_hpc.comm, lsr_hpc.prepare, lsr_hpc.subspace.svd, lsr_hpc.least_squares.ksp, lsr_hpc.petsc
"""
# Everything that runs in the process of the controller.
CONTROLLER = """
import lsr_hpc.commands.run, lsr_hpc.commands.status, lsr_hpc.pipeline.start, lsr_hpc.pipeline.controller
import lsr_hpc.commands.campaign, lsr_hpc.campaign.start, lsr_hpc.campaign.controller
"""
STARTS_SOMETHING = ("mpi4py.MPI", "petsc4py", "slepc4py", "petsc4py.PETSc", "slepc4py.SLEPc")


def probed(statement: str) -> dict[str, object]:
    """Runs a statement in a fresh interpreter; tells what it loaded."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:lsr_hpc", "-c", PROBE.format(statement=statement)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(
    "statement",
    [ALL, HELP.format(arguments="'--help'"), HELP.format(arguments="'run', '--help'"), LIBRARY, CONTROLLER],
    ids=["import", "help", "help of run", "whole library", "controller"],
)
def test_nothing_is_started(statement: str) -> None:
    found = probed(statement)
    modules = found["modules"]

    assert isinstance(modules, list)
    assert not [name for name in STARTS_SOMETHING if name in modules]
    assert found["cuda"] is False


@pytest.mark.parametrize("statement", [ALL, HELP.format(arguments="'--help'")], ids=["import", "help"])
def test_import_and_help_are_quick_because_they_load_no_numerical_library(statement: str) -> None:
    modules = probed(statement)["modules"]

    assert isinstance(modules, list)
    assert not {"torch", "numpy", "scipy", "safetensors"} & set(modules)


def test_the_controller_does_not_load_torch() -> None:
    modules = probed(CONTROLLER)["modules"]

    assert isinstance(modules, list)
    assert not {"torch", "scipy", "safetensors"} & set(modules)


def test_public_names_are_all_there() -> None:
    import lsr_hpc

    for name in lsr_hpc.__all__:
        assert getattr(lsr_hpc, name) is not None
    with pytest.raises(AttributeError, match="'lsr_hpc' has no attribute 'refin'"):
        _ = lsr_hpc.refin
