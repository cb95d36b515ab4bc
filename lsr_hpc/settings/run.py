"""Section ``[run]`` of a job: how ``lsr-hpc run`` starts rounds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lsr_hpc.errors import JobError
from lsr_hpc.settings.checks import at_least, choice, refuse

__all__ = ["RunSettings"]

_FUNCTION = re.compile(r"[\w.]+:\w+")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Section ``[run]``: how ``lsr-hpc run`` starts rounds. Nothing here changes what they compute.

    Attributes:
        ranks: MPI ranks of an instance.
        instances_at_once: Instances side by side, each on ranks of its own.
        launcher: ``"mpiexec"``, ``"srun"``, ``"local"`` (one rank, no launcher), or ``"auto"``: srun in an
            allocation of SLURM, otherwise mpiexec for more than one rank.
        srun_mpi: What ``srun --mpi`` is given; ``srun --mpi=list`` tells what there is.
        light_workers: Processes on every node for what needs no MPI: evaluation, figures, the predictor.
        checkpoint_seconds: Seconds after which a state inside a round is written too.
        rounds_per_step: Rounds of an instance by one start of the ranks.
        keep: Newest checkpoints to keep, besides the best.
        max_attempts: How often a step is started that is ended from outside time and again.
        stop_seconds: Seconds that a step may take to reach a boundary and yield when it is to stop.
        silence_seconds: Seconds without a boundary after which a step is taken to hang, and ended.
        host: Address at which the controller listens for its workers; ``"auto"`` is loopback, or, where there
            are workers on other nodes, the one interface by which these are reached.
        dashboard: Whether Dask shows its pages there, to everybody who can reach the address: HTTP asks for
            no certificate.
        body: Function that does a step, ``"package.module:function"``; see :mod:`lsr_hpc.pipeline.step`.
        after_round: Functions called on a light worker after a step that finished a round, with the run
            directory, the instance's number and the step's result; what they return goes to
            ``metrics.jsonl``.
        at_end: Functions called there at the end, with the run directory and the last result of every
            instance; the fields that they return go to ``result.json``.
    """

    ranks: int = 2
    instances_at_once: int = 1
    launcher: str = "auto"
    srun_mpi: str = "pmix"
    light_workers: int = 1
    checkpoint_seconds: float = 300.0
    rounds_per_step: int = 1
    keep: int = 2
    max_attempts: int = 3
    stop_seconds: float = 120.0
    silence_seconds: float = 3600.0
    host: str = "auto"
    dashboard: bool = False
    body: str = "lsr_hpc.pipeline.step:run_step"
    after_round: tuple[str, ...] = ("lsr_hpc.pipeline.deliver:after_round",)
    at_end: tuple[str, ...] = ("lsr_hpc.pipeline.deliver:at_end",)

    def __post_init__(self) -> None:
        """Check each value and how they go together."""
        one = dict.fromkeys(
            ("ranks", "instances_at_once", "light_workers", "rounds_per_step", "max_attempts"), 1
        )
        functions = [("body", self.body), *(("after_round", f) for f in self.after_round)]
        functions += [("at_end", f) for f in self.at_end]
        refuse(
            at_least("run", self, **one, keep=2),
            at_least("run", self, checkpoint_seconds=0.0, stop_seconds=0.0, silence_seconds=1.0),
            choice("run", "launcher", self.launcher, ("auto", "mpiexec", "srun", "local")),
            [
                f'run.{key} = {name!r}: write "package.module:function"'
                for key, name in functions
                if not _FUNCTION.fullmatch(name)
            ],
            [f'run.srun_mpi = {self.srun_mpi!r}: write a name such as "pmix" or "pmi2"']
            if not re.fullmatch(r"[a-z0-9_]+", self.srun_mpi)
            else [],
            [f"run.host = {self.host!r}: name the one address that is needed, not all of them"]
            if self.host in {"", "0.0.0.0", "::", "*"}
            else [],
        )
        if self.launcher == "local" and self.ranks != 1:
            raise JobError(
                f'run.launcher = "local" starts one rank, not run.ranks = {self.ranks}: use "mpiexec", or one'
            )
