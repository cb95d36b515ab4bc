"""The process in which one arm runs: ``python -m benchmarks.worker TASK.json ANSWER.json``.

Started by :func:`benchmarks.arms.run_arm`, with thread counts in the environment.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import Measurement, MissingPeerError
from lsr_hpc.plan import peak_rss_bytes

__all__ = ["call", "gemm_gflops", "main"]


def gemm_gflops(n: int = 768, seconds: float = 0.2) -> float:
    """Best dgemm rate of torch in this process, now.

    Args:
        n: Size of the square matrices.
        seconds: How long to measure.

    Returns:
        Gflop/s.
    """
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(a)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(a, a, out=out)
        best = min(best, time.perf_counter() - started)
    return 2.0 * n**3 / best / 1e9


def call(function: str, arguments: Measurement, comm: Any = None) -> list[Measurement]:
    """Call an arm's function.

    Args:
        function: ``"module:function"`` inside this package.
        arguments: Its keyword arguments.
        comm: Communicator of the ranks that call it together, or None.

    Returns:
        What it measured, with the process's memory peak and the dgemm rate of all ranks before it.

    Collective: all ranks of ``comm`` where one is given.
    """
    module, _, name = function.partition(":")
    rates = [gemm_gflops()] if comm is None else comm.allgather(gemm_gflops())
    try:
        found: Any = getattr(importlib.import_module(f"benchmarks.{module}"), name)(**arguments)
    except MissingPeerError as error:
        found = {"skipped": str(error)}
    peaks = [peak_rss_bytes()] if comm is None else comm.allgather(peak_rss_bytes())
    common = {"gemm_gflops": sum(rates), "peak_rss_bytes": max(peaks)}
    return [{**common, **m} for m in (found if isinstance(found, list) else [found])]


def main(task_file: Path, answer_file: Path) -> None:
    """Run a task and write what it measured.

    Args:
        task_file: ``{"function": "module:function", "arguments": {...}}``.
        answer_file: Where the list of measurements goes.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    task = json.loads(task_file.read_text())
    comm = _world()
    found = call(task["function"], task["arguments"], comm)
    if comm is None or comm.rank == 0:
        answer_file.write_text(json.dumps(found, allow_nan=False))


def _world() -> Any:
    """COMM_WORLD under mpiexec, None in a plain process (which then never starts MPI by itself)."""
    if "OMPI_COMM_WORLD_SIZE" not in os.environ and "PMI_SIZE" not in os.environ:
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
