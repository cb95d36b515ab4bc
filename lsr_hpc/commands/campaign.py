"""``lsr-hpc campaign``: one job for many members; and status, stop and resume of its directory."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lsr_hpc.campaign.layout import CampaignLayout
from lsr_hpc.campaign.members import campaign_of, command_of
from lsr_hpc.campaign.record import CampaignRecord, plan_members, read_record, register, stored_job
from lsr_hpc.campaign.state import read_state
from lsr_hpc.console import say
from lsr_hpc.errors import EnvironmentProblem, ExitCode, JobError
from lsr_hpc.job import Job, load_job

if TYPE_CHECKING:
    from lsr_hpc.campaign.start import Order

__all__ = ["is_campaign", "resume", "run", "status", "stop"]

_PART = re.compile(r"(\d{1,6})/(\d{1,6})")
_SHOWN = 3


def is_campaign(directory: Path) -> bool:
    """Whether a directory is one of ``lsr-hpc campaign``.

    Args:
        directory: The directory, which need not be there.

    Returns:
        Whether it holds the identity of a campaign.
    """
    return CampaignLayout(directory).record.is_file()


def run(options: argparse.Namespace) -> int:
    """Carry out a campaign, or what is missing of it.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If the job or one of its members is wrong; nothing is written then.
    """
    job = _with_ranks(load_job(options.job, options.overrides, options.preset), options.ranks)
    out: Path = options.out or Path("runs") / job.name
    layout = CampaignLayout(out.absolute())
    from lsr_hpc.campaign.start import Order, start

    if options.dry_run:
        return _print_plan(Order(job=job, out=out, jobs=options.jobs), layout)
    if options.collect:
        return _collect(job, layout)
    return start(Order(job=job, out=out, jobs=options.jobs, part=_part(options.part)))


def resume(options: argparse.Namespace) -> int:
    """Go on with a campaign, with the job it was started with last.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If the directory is damaged, or ``--submit`` is asked for.
    """
    from lsr_hpc.campaign.start import Order, start

    if options.submit:
        raise JobError("a campaign is submitted by sbatch slurm/campaign.sbatch JOB")
    layout = CampaignLayout(options.run.absolute())
    read_record(layout)
    job = _with_ranks(stored_job(layout), options.ranks)
    return start(Order(job=job, out=layout.root, resume=True))


def stop(options: argparse.Namespace) -> int:
    """Ask all controllers of a campaign to stop.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        EnvironmentProblem: If the wish cannot be written down.
    """
    layout = CampaignLayout(options.run.absolute())
    read_record(layout)
    try:
        layout.stop.touch(mode=0o600)
    except OSError as error:
        raise EnvironmentProblem(f"{layout.stop} cannot be written: {error.strerror}") from error
    say(f"left {layout.stop} for the controllers, which look for it; `lsr-hpc resume` goes on")
    return int(ExitCode.DONE)


def status(options: argparse.Namespace) -> int:
    """Print how far a campaign is.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.
    """
    layout = CampaignLayout(options.run.absolute())
    record = read_record(layout)
    states = [(m, read_state(layout.member(m.name), thoroughly=False)) for m in record.wanted_members]
    counts = Counter(state.end for _, state in states)
    if options.progress:
        say(str(counts["done"]))
        return int(ExitCode.DONE)
    if options.json:
        members = [
            {"name": m.name, "settings": m.settings, "state": s.end, "message": s.message} for m, s in states
        ]
        say(json.dumps({"kind": "campaign", "counts": counts, "members": members}, indent=1))
        return int(ExitCode.DONE)
    asked = ", asked to stop" if layout.stop.exists() else ""
    say(
        f"{layout.root}: {counts['done']} of {len(states)} members done, {counts['failed']} failed, "
        f"{counts['missing']} missing{asked}"
    )
    for member, state in states:
        if state.end == "failed":
            say(f"{member}: {state.message}")
    return int(ExitCode.DONE)


def _with_ranks(job: Job, ranks: int | None) -> Job:
    """The job with the ranks of the command line; one without members is refused."""
    campaign = campaign_of(job)
    return job if ranks is None else replace(job, campaign=replace(campaign, ranks_per_member=ranks))


def _part(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = _PART.fullmatch(text)
    if match is None or not int(match[1]) < int(match[2]):
        raise JobError(f"--part {text!r}: write I/N with I from 0 to N - 1, such as 0/16")
    return int(match[1]), int(match[2])


def _collect(job: Job, layout: CampaignLayout) -> int:
    from lsr_hpc.campaign.table import collect

    read_record(layout)
    for line in collect(layout, register(layout, job)):
        say(line)
    return int(ExitCode.DONE)


def _print_plan(order: Order, layout: CampaignLayout) -> int:
    from lsr_hpc.campaign.controller import members_of_step
    from lsr_hpc.pipeline.layout import RunLayout

    job = order.job
    campaign, record = campaign_of(job), plan_members(layout, job)
    resources = order.resources()
    settings, members = resources.settings, record.wanted_members
    spec = RunLayout(layout.root).attempt(0, 0, 1).spec
    counts = Counter(read_state(layout.member(m.name), thoroughly=False).end for m in members)
    per_step = members_of_step(len(members), settings.instances_at_once, campaign.members_per_step)
    say("# resolved job\n" + job.as_toml())
    say("# plan")
    for name, value in {
        "directory": layout.root,
        "members": f"{len(members)}, of which {counts['done']} are done and {counts['failed']} have failed",
        "each is": f"lsr-hpc {command_of(job)}",
        "MPI ranks": f"{settings.ranks} for a member, {settings.instances_at_once} members at once",
        "a step": f"up to {per_step} members, one after another",
        "its command": shlex.join(resources.launcher.command(settings.ranks, spec, "1-0-1")),
    }.items():
        say(f"{name:<16} {value}")
    for member in _ends(record):
        say(str(member) if member else "...")
    return int(ExitCode.DONE)


def _ends(record: CampaignRecord) -> list[object]:
    members: list[object] = list(record.wanted_members)
    short = len(members) <= 2 * _SHOWN
    return members if short else [*members[:_SHOWN], None, *members[-_SHOWN:]]
