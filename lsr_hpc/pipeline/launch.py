"""Command lines that start the ranks of a step: by mpiexec, by srun, or as one process without a launcher.

Whatever becomes of the controller, no rank may be left behind. So the launcher gets SIGTERM when the thread
that started it ends (``setpriv --pdeathsig``); mpiexec and srun pass it on to the ranks and follow it by
SIGKILL. Ranks on the machine of mpiexec get SIGKILL when mpiexec itself is killed. Signals are blocked until
a rank can take them (``env --block-signal``).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from lsr_hpc.errors import EnvironmentProblem, JobError

__all__ = [
    "Launcher",
    "LocalLauncher",
    "MpiexecLauncher",
    "SrunLauncher",
    "choose_launcher",
    "step_environment",
]

# What makes a process a rank of an MPI program or a task of a SLURM step: not to be inherited by the ranks of
# another one, or they take its bindings and its place.
_OF_OTHER_RANKS = (
    "OMPI_*",
    "PMIX_*",
    "PMI_*",
    "ORTE_*",
    "PRTE_*",
    "MPI_LOCAL*",
    "SLURM_CPU_BIND*",
    "SLURM_GPU*",
    "SLURM_MEM_BIND*",
    "SLURM_STEP*",
    "SLURM_TASK*",
    "SLURM_LOCALID",
    "SLURM_PROCID",
)
# Settings of the user's and the site's under the same names, which are kept.
_KEPT = (
    "OMPI_ALLOW_RUN_AS_ROOT*",
    "OMPI_MCA_btl*",
    "OMPI_MCA_coll*",
    "OMPI_MCA_hwloc_*",
    "OMPI_MCA_mpi_*",
    "OMPI_MCA_mtl*",
    "OMPI_MCA_oob*",
    "OMPI_MCA_osc*",
    "OMPI_MCA_plm*",
    "OMPI_MCA_pml*",
    "OMPI_MCA_rmaps_*",
    "PMIX_MCA_gds",
    "PMIX_MCA_psec",
    "PRTE_MCA_hwloc_*",
    "PRTE_MCA_plm*",
    "PRTE_MCA_rmaps_*",
)
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Launcher(Protocol):
    """A way to start the ranks of a step."""

    @property
    def name(self) -> str:
        """Its name in the job file."""

    def command(self, world_size: int, spec: Path, label: str) -> list[str]:
        """The command line of a step; never goes through a shell.

        Args:
            world_size: MPI ranks.
            spec: Absolute path of the specification.
            label: Name of the step for lists of jobs.

        Returns:
            Program and arguments.
        """


def _worker(spec: Path) -> list[str]:
    # -P: the current directory holds data, not modules.
    python = [sys.executable, "-P", "-m", "mpi4py", "-m", "lsr_hpc.pipeline.worker"]
    return ["env", "--block-signal=USR1,TERM", *python, str(spec)]


@dataclass(frozen=True)
class LocalLauncher:
    """One rank as a plain process."""

    name: str = "local"

    def command(self, world_size: int, spec: Path, label: str) -> list[str]:
        """See :class:`Launcher`.

        Args:
            world_size: 1.
            spec: Absolute path of the specification.
            label: Not used.

        Returns:
            Program and arguments.

        Raises:
            JobError: For more than one rank.
        """
        if world_size != 1:
            raise JobError(
                f'run.launcher = "local" starts one process, not run.ranks = {world_size}: use "mpiexec"'
            )
        # KILL, because the worker takes TERM for a wish to yield, and a yield may take its time.
        return ["setpriv", "--pdeathsig", "KILL", *_worker(spec)]


@dataclass(frozen=True)
class MpiexecLauncher:
    """``mpiexec`` of Open MPI or MPICH."""

    name: str = "mpiexec"

    def command(self, world_size: int, spec: Path, label: str) -> list[str]:
        """See :class:`Launcher`.

        Args:
            world_size: MPI ranks.
            spec: Absolute path of the specification.
            label: Not used.

        Returns:
            Program and arguments.
        """
        ranks = ["setpriv", "--pdeathsig", "KILL", *_worker(spec)]
        return ["setpriv", "--pdeathsig", "TERM", "mpiexec", "-n", str(world_size), *ranks]


@dataclass(frozen=True)
class SrunLauncher:
    """``srun`` from the batch shell of an allocation.

    Attributes:
        nodes: Nodes of a step.
        is_alone: Whether one step at a time has the allocation; otherwise each gets cores of its own.
        cpus_per_task: Cores of a rank.
        has_gpus: Whether each rank is to have one GPU, and see no other.
        mpi: What ``srun --mpi`` is given.
    """

    nodes: int
    is_alone: bool = True
    cpus_per_task: int = 1
    has_gpus: bool = False
    mpi: str = "pmix"
    name: str = "srun"

    def command(self, world_size: int, spec: Path, label: str) -> list[str]:
        """See :class:`Launcher`.

        Args:
            world_size: MPI ranks.
            spec: Absolute path of the specification.
            label: Name of the step.

        Returns:
            Program and arguments.
        """
        nodes = min(self.nodes, world_size)
        # All sizes explicit, for the defaults come from the allocation. Without --kill-on-bad-exit a rank
        # that is killed alone on its node would leave the others waiting.
        return [
            *("setpriv", "--pdeathsig", "TERM"),
            *("srun", "--overlap" if self.is_alone else "--exact", f"--mpi={self.mpi}"),
            *("--kill-on-bad-exit=1", "--unbuffered"),
            *(f"--job-name=lsr-{label}", f"--nodes={nodes}", f"--ntasks={world_size}"),
            *(f"--ntasks-per-node={-(-world_size // nodes)}", f"--cpus-per-task={self.cpus_per_task}"),
            *(("--gpus-per-task=1",) if self.has_gpus else ()),
            *_worker(spec),
        ]


def choose_launcher(
    kind: str,
    world_size: int,
    steps_at_once: int,
    environ: Mapping[str, str] = os.environ,
    *,
    srun_mpi: str = "pmix",
) -> Launcher:
    """The launcher that a job asks for.

    Args:
        kind: ``"auto"``, ``"mpiexec"``, ``"srun"`` or ``"local"``. ``"auto"`` is srun inside a SLURM
            allocation, no launcher for one rank, and mpiexec otherwise.
        world_size: MPI ranks of a step.
        steps_at_once: Steps side by side, which share the nodes of an allocation.
        environ: Environment variables.
        srun_mpi: What ``srun --mpi`` is given.

    Returns:
        The launcher.

    Raises:
        EnvironmentProblem: If a program that it needs is not on PATH.
    """
    if kind == "auto":
        is_in_allocation = "SLURM_JOB_ID" in environ and shutil.which("srun") is not None
        kind = "srun" if is_in_allocation else "local" if world_size == 1 else "mpiexec"
    launcher: Launcher
    if kind == "srun":
        nodes = max(1, _number(environ, "SLURM_JOB_NUM_NODES") // steps_at_once)
        launcher = SrunLauncher(
            nodes=nodes,
            is_alone=steps_at_once == 1,
            cpus_per_task=_number(environ, "SLURM_CPUS_PER_TASK"),
            has_gpus=_number(environ, "SLURM_GPUS_ON_NODE", 0) >= -(-world_size // nodes),
            mpi=srun_mpi,
        )
    else:
        launcher = MpiexecLauncher() if kind == "mpiexec" else LocalLauncher()
    needed = ["setpriv", "env", *({launcher.name} - {"local"})]
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        raise EnvironmentProblem(
            f"run.launcher = {launcher.name!r} needs {', '.join(missing)}, which is not on PATH: see "
            "`lsr-hpc doctor`"
        )
    return launcher


def _number(environ: Mapping[str, str], name: str, otherwise: int = 1) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdigit() else otherwise


def step_environment(
    world_size: int, steps_at_once: int, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The environment of a step.

    Args:
        world_size: MPI ranks of a step.
        steps_at_once: Steps side by side on the same cores.
        environ: The controller's environment.

    Returns:
        That, without what would make the ranks part of another MPI program, and with a number of threads:
        ``OMP_NUM_THREADS`` where it is set, otherwise a rank's share of the cores.
    """
    kept = {name: value for name, value in environ.items() if _is_kept(name)}
    cores = _number(environ, "SLURM_CPUS_PER_TASK") if "SLURM_JOB_ID" in environ else 0
    threads = cores or max(1, len(os.sched_getaffinity(0)) // (world_size * steps_at_once))
    return {name: str(threads) for name in _THREADS} | kept


def _is_kept(name: str) -> bool:
    return _matches(name, _KEPT) or not _matches(name, _OF_OTHER_RANKS)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
