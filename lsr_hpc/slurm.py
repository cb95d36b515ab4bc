"""SLURM from outside a job: what was submitted, and what the queue says of it.

Everything goes by lists of words, never through a shell, and every command has a time limit. The truth about
a run is in its files; the queue only adds to it, and where it cannot be asked its answer is None.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lsr_hpc.errors import EnvironmentProblem, JobError
from lsr_hpc.job import load_job
from lsr_hpc.publish import publish_text

__all__ = [
    "Node",
    "Queued",
    "Submission",
    "address_towards",
    "all_nodes",
    "ask_to_stop",
    "cancel",
    "find_ended",
    "find_queued",
    "other_nodes",
    "queued_numbers",
    "refuse_queued",
    "require_commands",
    "submit_script",
]

_LIMIT_S = 20.0
_NO_CLUSTER = (
    "{} is not on PATH: is this a node of a SLURM cluster? Without one use `lsr-hpc run` or `refine`"
)


@dataclass(frozen=True)
class Submission:
    """What belongs to the jobs of a run: a folder beside the run directory, which the run itself has to make.

    Attributes:
        run: The run directory, absolute.
    """

    run: Path

    @property
    def root(self) -> Path:
        """``RUN.slurm``."""
        return self.run.with_name(self.run.name + ".slurm")

    @property
    def job(self) -> Path:
        """The resolved job."""
        return self.root / "job.toml"

    @property
    def script(self) -> Path:
        """What is given to sbatch."""
        return self.root / "job.sbatch"

    @property
    def record(self) -> Path:
        """Number of the newest job."""
        return self.root / "submitted.json"

    @property
    def log(self) -> Path:
        """What a job prints, with %j for its number."""
        return self.root / "lsr-%j.log"

    @property
    def has_rounds(self) -> bool:
        """Whether the job that was submitted is one of rounds, not of one shot."""
        with suppress(JobError):
            return load_job(self.job).iterate is not None
        return True

    @property
    def newest(self) -> str | None:
        """Number of the newest job, or None."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads(self.record.read_text(encoding="utf-8"))["job_id"])
        return None


@dataclass(frozen=True)
class Queued:
    """A job in the queue.

    Attributes:
        number: Its number.
        state: Such as ``"RUNNING"`` or ``"PENDING"``.
        reason: Why it waits, or where it runs.
    """

    number: str
    state: str
    reason: str


def require_commands() -> None:
    """Look for what submits jobs, before anything is written.

    Raises:
        EnvironmentProblem: If it is not there.
    """
    if shutil.which("sbatch") is None:
        raise EnvironmentProblem(_NO_CLUSTER.format("sbatch"))


def submit_script(submission: Submission) -> str:
    """Submit the script of a run.

    Args:
        submission: Where it is; the number of the job is written there.

    Returns:
        The number of the job.

    Raises:
        EnvironmentProblem: If sbatch is missing or refuses.
    """
    command = ["sbatch", "--parsable", f"--output={submission.log}", str(submission.script)]
    printed = _ask(command)
    number = printed.strip().partition(";")[0]
    if not number.isdigit():
        raise EnvironmentProblem(f"sbatch answered {printed!r}, which is no number of a job")
    publish_text(submission.record, json.dumps({"job_id": int(number), "command": command}) + "\n")
    return number


def refuse_queued(submission: Submission) -> None:
    """Refuse a second job of a run.

    Args:
        submission: The run.

    Raises:
        JobError: If its newest job is in the queue.
    """
    if (number := submission.newest) and (queued := find_queued([number])):
        raise JobError(
            f"job {number} of {submission.run} is {queued.state.lower()} already: wait for it, or "
            f"`lsr-hpc stop {submission.run}`"
        )


def find_queued(numbers: list[str]) -> Queued | None:
    """The first of some jobs that is in the queue.

    Args:
        numbers: Numbers of jobs.

    Returns:
        The job; None if none of them is there, or the queue cannot be asked.
    """
    found = _queue() or {}
    return next((found[number] for number in numbers if number in found), None)


def queued_numbers() -> set[str] | None:
    """Numbers of the user's jobs in the queue; None if it cannot be asked."""
    found = _queue()
    return None if found is None else set(found)


def _queue() -> dict[str, Queued] | None:
    """All jobs of the user, because to ask for one that is gone is an error."""
    with suppress(EnvironmentProblem):
        listed = _ask(["squeue", "--noheader", f"--user={os.getuid()}", "--format=%i|%T|%R"])
        lines = [line.split("|", 2) for line in listed.splitlines()]
        return {words[0]: Queued(*words) for words in lines if len(words) == 3}
    return None


def find_ended(number: str) -> Queued | None:
    """How a job ended that has left the queue, where the cluster keeps accounts.

    Args:
        number: Its number.

    Returns:
        The job, with its exit code as the reason; None where sacct does not know it or is not there.
    """
    with suppress(EnvironmentProblem):
        words = ("--allocations", "--noheader", "--parsable2", "--format=JobIDRaw,State,ExitCode")
        listed = [line.split("|") for line in _ask(["sacct", *words, f"--jobs={number}"]).splitlines()]
        found = [Queued(number, state, f"exit {code}") for name, state, code in listed if name == number]
        return found[-1] if found else None
    return None


def ask_to_stop(queued: Queued) -> None:
    """Ask a job to stop in good order, or cancel it if it only waits.

    Args:
        queued: The job.

    Raises:
        EnvironmentProblem: If scancel fails.
    """
    if queued.state == "PENDING":
        # With the state, lest it has begun meanwhile.
        _ask(["scancel", "--state=PENDING", queued.number])
    else:
        _ask(["scancel", "--batch", "--signal=USR1", queued.number])


def cancel(queued: Queued) -> None:
    """Cancel a job.

    Args:
        queued: The job.

    Raises:
        EnvironmentProblem: If scancel fails.
    """
    _ask(["scancel", queued.number])


@dataclass(frozen=True)
class Node:
    """A node of an allocation.

    Attributes:
        name: Its name in SLURM.
        address: Where SLURM reaches it: a name or an address.
    """

    name: str
    address: str


def other_nodes(environ: Mapping[str, str] = os.environ) -> list[Node]:
    """The nodes of the allocation besides the one that this process is on.

    Args:
        environ: Environment variables of a batch shell.

    Returns:
        The nodes; none outside an allocation.

    Raises:
        EnvironmentProblem: If scontrol cannot be asked.
    """
    here = environ.get("SLURMD_NODENAME")
    listed = environ.get("SLURM_JOB_NODELIST")
    if here is None or listed is None:
        return []
    return [node for node in _nodes(listed) if node.name != here]


def all_nodes() -> list[Node]:
    """The nodes of the cluster.

    Returns:
        Those that have an address.

    Raises:
        EnvironmentProblem: If scontrol cannot be asked.
    """
    return _nodes()


def _nodes(*names: str) -> list[Node]:
    shown = _ask(["scontrol", "--oneliner", "show", "node", *names])
    told = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in shown.splitlines()]
    return [Node(t["NodeName"], t["NodeAddr"]) for t in told if "NodeAddr" in t]


def address_towards(address: str, port: int) -> str:
    """The address of this machine by which another one is reached.

    Args:
        address: Name or address of the other machine.
        port: Any of its ports; nothing is sent.

    Returns:
        An address of one interface of this machine.

    Raises:
        OSError: If there is no way to it.
    """
    family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(where)
        found: str = probe.getsockname()[0]
        return found


def _ask(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_S, stdin=subprocess.DEVNULL, check=False
        )
    except FileNotFoundError as error:
        raise EnvironmentProblem(_NO_CLUSTER.format(command[0])) from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(f"{command[0]} has not answered for {_LIMIT_S:g} s: try again") from error
    if done.returncode:
        raise EnvironmentProblem(f"{command[0]} refused: {(done.stderr or done.stdout).strip()}")
    return done.stdout
