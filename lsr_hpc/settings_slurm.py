"""Section ``[slurm]`` of a job: what ``lsr-hpc submit`` asks the scheduler for.

Every text has a pattern that leaves no room for spaces, quotes or line breaks, so no value can become an
option or a command of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lsr_hpc.errors import JobError

__all__ = ["SlurmSettings", "seconds_of"]

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
_TIME = re.compile(r"(?:(\d{1,3})-)?(\d{1,4})(?::([0-5]\d))?(?::([0-5]\d))?", re.ASCII)
_PATTERNS = {
    "memory": (r"[1-9]\d{0,8}[KMGT]?", 'such as "16G"'),
    "partition": (rf"{_NAME}(,{_NAME})*", "names, separated by commas"),
    "account": (_NAME, "a name"),
    "qos": (_NAME, "a name"),
    "constraint": (r"[A-Za-z0-9_.,:&|()\[\]*-]{1,200}", 'features, such as "a100&ib"'),
    "reservation": (_NAME, "a name"),
    "mail": (r"[A-Za-z0-9_.+][A-Za-z0-9_.+-]*@[A-Za-z0-9.-]+", "one address"),
    "dependency": (
        r"singleton|(after|afterany|afterok|afternotok|aftercorr):\d+(_\d+)?(:\d+(_\d+)?)*",
        'such as "afterok:1234" or "singleton"',
    ),
}
# The few commands that load software, with plain words; "$" and what else a shell reads is quoted away.
_PROLOGUE = re.compile(r"(?:module|ml|source|export|ulimit|conda|spack)(?: [A-Za-z0-9_./:=+@%,-]+)+")
_LARGEST = {
    "nodes": 100_000,
    "tasks_per_node": 4096,
    "cpus_per_task": 4096,
    "max_restarts": 1_000_000,
    "signal_seconds": 65_535,
    "gpus_per_node": 64,
}


@dataclass(frozen=True, kw_only=True)
class SlurmSettings:
    """Section ``[slurm]``. What is absent is left to the site.

    Attributes:
        nodes: Nodes.
        tasks_per_node: MPI ranks on a node; instances side by side share them.
        cpus_per_task: Cores, and threads, of a rank.
        gpus_per_node: GPUs of a node, and so many ranks: each has one; 0 for none.
        memory: Of a node, such as ``"16G"``.
        time: Time limit: ``"minutes:seconds"``, ``"hours:minutes:seconds"`` or
            ``"days-hours[:minutes[:seconds]]"``.
        partition: Partition, or several separated by commas.
        account: Account to charge.
        qos: Quality of service.
        constraint: Features that the nodes must have.
        reservation: Reservation.
        mail: Address to write to at the end, on failure and when the job is requeued.
        dependency: Jobs to wait for; one that can never be satisfied cancels the job.
        signal_seconds: How long before the time limit the run is asked to stop: the longest iteration, a
            checkpoint, and 60 seconds that SLURM may take.
        requeue: Whether the job puts itself back into the queue near the time limit and when preempted, and
            SLURM does so when a node fails.
        max_restarts: How often.
        prologue: Lines that make MPI and lsr-hpc available: ``module``, ``ml``, ``source``, ``export``,
            ``ulimit``, ``conda`` or ``spack``, with plain words.
    """

    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_node: int = 0
    memory: str | None = None
    time: str = "01:00:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    mail: str | None = None
    dependency: str | None = None
    signal_seconds: int = 180
    requeue: bool = True
    max_restarts: int = 20
    prologue: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check each value and how they go together."""
        mistakes = []
        for key, largest in _LARGEST.items():
            value = getattr(self, key)
            least = 0 if key in {"gpus_per_node", "max_restarts"} else 1
            if not least <= value <= largest:
                mistakes.append(f"slurm.{key} = {value}: must be from {least} to {largest}")
        for key, (pattern, expected) in _PATTERNS.items():
            value = getattr(self, key)
            if value is not None and not re.fullmatch(pattern, value, re.ASCII):
                mistakes.append(f"slurm.{key} = {value!r}: write {expected}")
        mistakes += [
            f"slurm.prologue: {line!r}: write module, ml, source, export, ulimit, conda or spack, and words "
            "without quotes, spaces or $"
            for line in self.prologue
            if not _PROLOGUE.fullmatch(line)
        ]
        if self.gpus_per_node and self.tasks_per_node != self.gpus_per_node:
            mistakes.append(
                f"slurm.tasks_per_node = {self.tasks_per_node} with slurm.gpus_per_node = "
                f"{self.gpus_per_node}: a rank has one GPU, so write the same number twice"
            )
        try:
            if seconds_of(self.time) <= self.signal_seconds:
                mistakes.append(
                    f"slurm.signal_seconds = {self.signal_seconds} is not below slurm.time = {self.time!r}: "
                    "ask for more time or less notice"
                )
        except JobError as error:
            mistakes.append(str(error))
        if mistakes:
            raise JobError(*mistakes)


def seconds_of(time: str) -> int:
    """A time limit in seconds.

    Args:
        time: ``slurm.time``.

    Returns:
        Seconds.

    Raises:
        JobError: If it cannot be read.
    """
    seconds = _seconds(time)
    if seconds is None:
        raise JobError(f'slurm.time = {time!r}: write "hours:minutes:seconds" or "days-hours"')
    return seconds


def _seconds(text: str) -> int | None:
    """A time limit in seconds; None if it cannot be read, or is 0, which SLURM takes for no limit."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None:
        # Minutes alone are easily taken for seconds or hours.
        if len(numbers) == 1:
            return None
        hours, minutes, seconds = [0] * (3 - len(numbers)) + numbers
    else:
        hours, minutes, seconds = numbers + [0] * (3 - len(numbers))
    return (86400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds) or None
