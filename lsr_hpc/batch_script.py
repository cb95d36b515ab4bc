"""The batch script of a job: a template of ``slurm/`` under a head of its own.

The head has the options of section ``[slurm]``, its prologue, and variables and words that the template would
otherwise take from the user.
"""

from __future__ import annotations

import importlib.resources
import shlex
import sys
from pathlib import Path

from lsr_hpc.errors import JobError
from lsr_hpc.job import Job
from lsr_hpc.settings_slurm import SlurmSettings
from lsr_hpc.slurm import Submission

__all__ = ["render", "slurm_options"]

_BODY = "# --- nothing to change from here on ---\n"
_FIELDS = {
    "memory": "mem",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "reservation": "reservation",
    "dependency": "dependency",
}


def render(job: Job, submission: Submission) -> str:
    """The batch script of a job: rounds if it has a section ``[iterate]``, otherwise one shot.

    Args:
        job: The resolved job.
        submission: Where its files are.

    Returns:
        Text of the script.

    Raises:
        JobError: If the run directory's path has characters that SLURM reads in the name of a log.
    """
    if any(c in "%\\" or not c.isprintable() for c in str(submission.run)):
        raise JobError(f'--out {str(submission.run)!r}: "%", "\\" and line breaks mean something to SLURM')
    settings, has_rounds = job.slurm, job.iterate is not None
    options = slurm_options(f"lsr-{job.name}", settings)
    variables: dict[str, object] = {"LSR_BIN": Path(sys.executable).parent}
    words = [str(submission.job)]
    if has_rounds:
        options["signal"] = f"B:USR1@{settings.signal_seconds}"
        variables |= {
            "RUN": submission.run,
            "RANKS": max(1, settings.nodes * settings.tasks_per_node // job.run.instances_at_once),
            "REQUEUE": "yes" if settings.requeue else "no",
            "MAX_RESTARTS": settings.max_restarts,
        }
    else:
        variables["SRUN_MPI"] = job.run.srun_mpi
        words += ["--out", str(submission.run)]
    head = [
        "#!/usr/bin/env bash",
        "# Written by `lsr-hpc submit`.",
        *(f"#SBATCH --{name}={value}" for name, value in options.items()),
        f"#SBATCH --{'requeue' if settings.requeue else 'no-requeue'}",
        "",
        *(shlex.join(line.split(" ")) for line in settings.prologue),
        *(f"{name}={shlex.quote(str(value))}" for name, value in variables.items()),
        f"set -- {shlex.join(words)}",
    ]
    name = "iterate" if has_rounds else "refine"
    template = importlib.resources.files("lsr_hpc").joinpath(f"templates/{name}.sbatch").read_text("utf-8")
    return "\n".join(head) + "\n\n" + _BODY + template.partition(_BODY)[2]


def slurm_options(name: str, settings: SlurmSettings) -> dict[str, object]:
    """Options of sbatch, but for requeueing.

    Args:
        name: Name of the job.
        settings: Section ``[slurm]``.

    Returns:
        Values by name of the option.
    """
    options: dict[str, object] = {
        "job-name": name,
        "nodes": settings.nodes,
        "ntasks-per-node": settings.tasks_per_node,
        "cpus-per-task": settings.cpus_per_task,
        "time": settings.time,
        "open-mode": "append",
    }
    options |= {option: v for f, option in _FIELDS.items() if (v := getattr(settings, f)) is not None}
    if settings.gpus_per_node:
        options["gpus-per-node"] = settings.gpus_per_node
    if settings.mail:
        options |= {"mail-user": settings.mail, "mail-type": "END,FAIL,REQUEUE"}
    if settings.dependency:
        options["kill-on-invalid-dep"] = "yes"
    return options
