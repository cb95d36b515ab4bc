"""A campaign as an array on a real cluster, which loses nodes on the way."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from lsr_hpc.campaign.layout import CampaignLayout
from lsr_hpc.pipeline.journal import read_events
from tests.campaign.conftest import Campaigns, Directory
from tests.mpi.conftest import REPOSITORY
from tests.slurm.cluster import until
from tests.slurm.conftest import ENDED

pytestmark = [pytest.mark.slurm, pytest.mark.mpi]

MEMBERS = 40


class Task(NamedTuple):
    """A task of an array."""

    number: str
    state: str
    restarts: int
    node: str


def tasks_of(jobs, number):
    """What SLURM says of every task of an array, by number of the task."""
    found = {}
    for line in jobs.cluster.command("scontrol", "show", "job", "--oneliner", number).splitlines():
        shown = dict(word.partition("=")[::2] for word in line.split())
        found[int(shown["ArrayTaskId"])] = Task(
            shown["JobId"], shown["JobState"], int(shown["Restarts"]), shown.get("NodeList", "")
        )
    return found


def lose(jobs, node, number):
    """Lose a node with all that a job has there; it comes back by itself."""
    jobs.cluster.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    # On a node that is really lost nothing lives on, which would be in the way when the job comes back to it.
    for pid in jobs.cluster.processes():
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            is_keeper = command.startswith(f"slurmstepd: [{number}.".encode())
            if is_keeper or f"SLURM_JOB_ID={number}".encode() in variables:
                os.kill(pid, signal.SIGKILL)
    # Folders and sockets of the step's ranks, which a node has no more when it is back.
    for left in (jobs.cluster.base / "tmp" / node).glob("spmix_appdir_*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in (jobs.cluster.base / "spool" / node).glob("*pmix.*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def test_forty_members_on_four_nodes_of_which_three_are_lost_on_the_way(jobs):
    campaigns = Campaigns(jobs.home)
    job = campaigns.write(
        "problem.instance = {range = [0, 3]}",
        "problem.args.wave = {range = [1.0, 4.6, 0.4]}",
        "problem.args.pause = [0.02]",
        ranks_per_member=2,
    )
    out = Directory(CampaignLayout(jobs.home / "out"))
    number = jobs.sbatch(
        *("--array=0-3", "--nodes=1", "--ntasks-per-node=2"),
        *(REPOSITORY / "slurm" / "campaign.sbatch", job),
        RUN=str(out.root),
    )

    def has_done_some(part):
        done = list(out.predictors()) if out.layout.members.exists() else []
        return sum(1 for name in done if int(name[:4]) % 4 == part) >= 2

    lost = (1, 2, 3)
    for part in lost:
        until(lambda part=part: has_done_some(part), 300, f"members of part {part}")
        task = tasks_of(jobs, number)[part]
        lose(jobs, task.node, task.number)
    logs = jobs.home.glob("lsr-*.log")
    try:
        until(
            lambda: all(t.state in ENDED for t in tasks_of(jobs, number).values()),
            400,
            "the end of all tasks",
        )
    except TimeoutError as error:
        raise AssertionError("\n".join(path.read_text() for path in logs)) from error
    ended = tasks_of(jobs, number)
    printed = "\n".join(path.read_text() for path in logs)
    assert {task.state for task in ended.values()} == {"COMPLETED"}, printed
    assert [ended[part].restarts for part in range(4)] == [0, 1, 1, 1], printed

    assert (out.result["status"], out.result["done"]) == ("done", MEMBERS), printed
    assert not out.done_twice()
    done = [e["name"] for e in read_events(out.layout.events) if e.get("state") == "done"]
    assert set(Counter(done).values()) == {1}
    # Not all at once: those that were lost had to be begun again.
    assert len(list(out.root.glob("steps/start-*"))) == 4 + len(lost)


def running(jobs) -> set[str]:
    """Numbers of the jobs that are at work."""
    return set(jobs.cluster.command("squeue", "--noheader", "--states=R", "--format=%i").split())


def test_jobs_leave_when_their_controller_is_killed_or_told_to_stop(jobs):
    job = Campaigns(jobs.home).write(
        "problem.instance = {range = [0, 3]}", "problem.args.pause = [1.0]", ranks_per_member=1
    )
    out = Directory(CampaignLayout(jobs.home / "out"))
    words = ("campaign", job, "--jobs", "1", "--out", out.root)

    def at_work(tries):
        return out.layout.root.exists() and len(list(out.root.glob("tries/*/try-*/lease"))) >= tries

    controller = jobs.start(*words)
    until(lambda: at_work(1), 60, "a member in hand")
    controller.kill()
    until(lambda: not running(jobs), 30, "the end of the job")
    begun = len(list(out.root.glob("tries/*/try-*/lease")))
    controller = jobs.start(*words)
    until(lambda: at_work(begun + 1), 60, "a member in hand again")
    controller.terminate()
    assert "stopped in good order" in jobs.finished(controller, 75, 60)
    until(lambda: not running(jobs), 20, "an empty queue")
    until(lambda: not jobs.cluster.processes("job_worker"), 20, "the end of the workers")
    # The key of a killed controller lets nobody in any more.
    assert not (out.root / "steps" / "start-0002" / "tls").exists()


def test_jobs_of_dask_jobqueue_carry_out_a_campaign_and_are_replaced(jobs):
    campaigns = Campaigns(jobs.home)
    job = campaigns.write(
        "problem.instance = {range = [0, 3]}",
        "problem.args.wave = [1.0, 1.4, 1.8]",
        "problem.args.pause = [0.05]",
        ranks_per_member=2,
        members_per_step=2,
    )
    with job.open("a") as file:
        file.write('\n[slurm]\nnodes = 2\ntime = "00:10:00"\n')
    out = Directory(CampaignLayout(jobs.home / "out"))
    controller = jobs.start("campaign", job, "--jobs", "2", "--out", out.root)
    first = until(lambda: len(found := running(jobs)) == 2 and found, 40, "two jobs")
    until(lambda: out.layout.members.exists() and len(out.predictors()) >= 2, 120, "some members")
    # One is cancelled in the middle of its work.
    jobs.cluster.command("scancel", min(first))
    until(lambda: running(jobs) - first, 60, "another job")
    printed = jobs.finished(controller, limit_s=240)
    assert (out.result["status"], out.result["done"]) == ("done", 12), printed
    assert not out.done_twice()
    assert "jobs that have ended" in printed
    assert "by jobs of SLURM" in printed
    until(lambda: not running(jobs), 20, "an empty queue")
    scripts = [p.read_text() for p in out.root.glob("steps/start-*/step-*/attempt-1/command.txt")]
    assert all("--nodes=2 --ntasks=2 --ntasks-per-node=1" in script for script in scripts)
    # Twelve members in pairs, one pair twice; none is handed again and again to a job that is leaving.
    assert 6 <= len(scripts) <= 9
    assert max(int(p.name[len("step-") :]) for p in out.root.glob("steps/start-*/step-*")) < 12
    assert not [p for p in out.root.rglob("*") if p.is_file() and b"PRIVATE KEY" in p.read_bytes()]
    assert until(lambda: not jobs.cluster.processes("job_worker"), 20, "the end of the workers")
