"""Arms of a benchmark: each runs in a fresh process, so that memory peaks and thread counts are its own.

An arm is a function ``module:function`` of this package. It takes JSON arguments and returns one measurement
or a list of them, each a JSON dictionary; :mod:`benchmarks.worker` calls it. With ``mpi_ranks`` set it runs
under mpiexec on that many ranks, as the product does, and the first rank's return value counts.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Arm", "Measurement", "MissingPeerError", "best_of", "completed", "peer", "run_arm", "tag"]

T = TypeVar("T")
Measurement = dict[str, Any]
REPOSITORY = Path(__file__).parents[1]


class MissingPeerError(Exception):
    """Software to compare with is not installed; the message says how to get it."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of a benchmark.

    Attributes:
        name: Its name in the record.
        function: ``"module:function"`` inside this package.
        arguments: Keyword arguments of the function; JSON types only.
        mpi_ranks: MPI ranks to start it on; 0 runs it as a plain process.
        threads: Threads per process.
        limit_s: Seconds after which it is ended.
    """

    name: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    mpi_ranks: int = 0
    threads: int = 1
    limit_s: float = 900.0


def peer(module: str, package: str) -> Any:
    """Import software that is compared with and need not be there.

    Args:
        module: Module to import.
        package: What pip calls it.

    Returns:
        The module.

    Raises:
        MissingPeerError: If it is not installed.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise MissingPeerError(f"not installed: pip install {package}")
    return importlib.import_module(module)


def run_arm(arm: Arm) -> list[Measurement]:
    """Run one arm and wait for it.

    Args:
        arm: The arm.

    Returns:
        Its measurements, as :func:`completed` leaves them.
    """
    print(f"... {arm.name}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="lsr-bench-") as scratch:
        task, answer = Path(scratch, "task.json"), Path(scratch, "answer.json")
        task.write_text(json.dumps({"function": arm.function, "arguments": arm.arguments}))
        command = [sys.executable, "-m", "benchmarks.worker", str(task), str(answer)]
        if arm.mpi_ranks:
            command = ["mpiexec", "-n", str(arm.mpi_ranks), *command]
        started, busy, own = time.perf_counter(), _busy_seconds(), _children_seconds()
        reason = run_command(command, threads=arm.threads, limit_s=arm.limit_s)
        if reason is None:
            found: list[Measurement] = json.loads(answer.read_text())
        else:
            found = [{"skipped": reason}]
        wall_s = time.perf_counter() - started
        elsewhere = (_busy_seconds() - busy) - (_children_seconds() - own)
    return completed(arm, found, wall_s, max(0.0, elsewhere / wall_s))


def completed(
    arm: Arm, found: list[Measurement], wall_s: float, foreign_cores: float = 0.0
) -> list[Measurement]:
    """Give every measurement of an arm the entries that all have.

    Args:
        arm: The arm.
        found: What its function measured.
        wall_s: Seconds of its whole process.
        foreign_cores: Cores that other programs of the machine kept busy meanwhile.

    Returns:
        Measurements with ``arm``, ``mpi_ranks``, ``threads``, ``process_s``, ``foreign_cores``,
        ``seconds``, ``error``, ``peak_rss_bytes`` and ``gemm_gflops`` (dgemm rate of all its threads just
        before). One that could not be taken has ``skipped`` with the reason, and None for the rest.
    """
    common = {
        "arm": arm.name,
        "mpi_ranks": arm.mpi_ranks,
        "threads": arm.threads,
        "process_s": wall_s,
        "foreign_cores": foreign_cores,
    }
    nothing = {"seconds": None, "error": None, "peak_rss_bytes": None, "gemm_gflops": None}
    return [{**common, **nothing, **measurement} for measurement in found]


def run_command(command: list[str], *, threads: int, limit_s: float) -> str | None:
    """Run a command to its end, in the repository and in the environment of an arm.

    Args:
        command: Program and words.
        threads: Threads of every process.
        limit_s: Seconds that it may take.

    Returns:
        Why it failed, or None.
    """
    try:
        done = subprocess.run(
            command,
            cwd=REPOSITORY,
            env=_environment(threads),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
    except FileNotFoundError as error:
        return f"{error.filename} not found: see docs/install.md"
    except subprocess.TimeoutExpired:
        return f"over the time limit of {limit_s:.0f} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        telling = [line for line in lines if "Error" in line] or lines
        return f"failed: {telling[-1]}"
    return None


def _busy_seconds() -> float:
    """CPU seconds that all cores of the machine have worked so far, whoever for."""
    user, nice, system, _idle, _iowait, *rest = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:]
    )
    # Interrupts and time taken by other virtual machines; guest time is already part of user time.
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _environment(threads: int) -> dict[str, str]:
    """Thread counts for every library, and what Open MPI wants in containers and on shared cores."""
    launcher = {
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
        # A rank that waits must not keep the other one off its core where cores are shared.
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    if os.geteuid() == 0:
        launcher |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    variables = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "PRTE_"))}
    return inherited | launcher | dict.fromkeys(variables, str(threads)) | {"PYTHONPATH": path}


def tag(measurements: list[Measurement], **extra: Any) -> list[Measurement]:
    """Add the same entries to several measurements.

    Args:
        measurements: Measurements.
        **extra: What to add.

    Returns:
        New measurements.
    """
    return [{**measurement, **extra} for measurement in measurements]


def best_of(
    action: Callable[[], T], comm: Any = None, repeats: int = 3, enough_s: float = 2.5
) -> tuple[float, T]:
    """Time an action several times and keep the best, which other programs on the machine disturb least.

    Args:
        action: What to time.
        comm: Communicator where the action is collective; ranks start together and wait for the last.
        repeats: Largest number of times.
        enough_s: No further repeat once this much time is spent.

    Returns:
        The smallest seconds, equal on all ranks, and the last result.

    Collective: all ranks of ``comm`` where one is given.
    """
    best = spent = 0.0
    for done in range(repeats):
        if comm is not None:
            comm.Barrier()
        started = time.perf_counter()
        result = action()
        seconds = time.perf_counter() - started
        if comm is not None:
            seconds = max(comm.allgather(seconds))
        best = min(best, seconds) if done else seconds
        spent += seconds
        if spent > enough_s:
            break
    return best, result
