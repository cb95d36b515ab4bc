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

__all__ = ["gemm_gflops", "main"]


def gemm_gflops(n: int = 768, seconds: float = 0.2) -> float:
    """Best dgemm rate of torch in this process, now.

    Args:
        n: Size of the square matrices.
        seconds: How long to measure.

    Returns:
        Gflop/s.
    """
    import torch

    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = torch.empty_like(a)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        torch.mm(a, a, out=out)
        best = min(best, time.perf_counter() - started)
    return 2.0 * n**3 / best / 1e9


def main(task_file: Path, answer_file: Path) -> None:
    """Run a task and write what it measured.

    Args:
        task_file: ``{"function": "module:function", "arguments": {...}}``.
        answer_file: Where the list of measurements goes.
    """
    import torch

    from benchmarks.arms import MissingPeerError
    from lsr_hpc.plan import peak_rss_bytes

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    task = json.loads(task_file.read_text())
    module, _, function = task["function"].partition(":")
    comm = _world()
    rates = [gemm_gflops()] if comm is None else comm.allgather(gemm_gflops())
    try:
        found: Any = getattr(importlib.import_module(f"benchmarks.{module}"), function)(**task["arguments"])
    except MissingPeerError as error:
        found = {"skipped": str(error)}
    peaks = [peak_rss_bytes()] if comm is None else comm.allgather(peak_rss_bytes())
    if comm is None or comm.rank == 0:
        measurements = found if isinstance(found, list) else [found]
        common = {"gemm_gflops": sum(rates), "peak_rss_bytes": max(peaks)}
        answer_file.write_text(json.dumps([{**common, **m} for m in measurements], allow_nan=False))


def _world() -> Any:
    """COMM_WORLD under mpiexec, None in a plain process (which then never starts MPI by itself)."""
    if "OMPI_COMM_WORLD_SIZE" not in os.environ and "PMI_SIZE" not in os.environ:
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
