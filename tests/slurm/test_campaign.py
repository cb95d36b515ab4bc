"""A campaign as an array on a real cluster, which loses nodes on the way."""

from __future__ import annotations

from collections import Counter

import pytest

from lsr_hpc.campaign.layout import CampaignLayout
from lsr_hpc.pipeline.journal import read_events
from tests.campaign.conftest import Campaigns, Directory
from tests.mpi.conftest import REPOSITORY
from tests.slurm.cluster import until
from tests.slurm.conftest import ENDED

pytestmark = [pytest.mark.slurm, pytest.mark.mpi]

MEMBERS = 40


def tasks_of(jobs, number):
    """State, restarts and node of every task of an array, by number of the task."""
    found = {}
    for line in jobs.cluster.command("scontrol", "show", "job", "--oneliner", number).splitlines():
        shown = dict(word.partition("=")[::2] for word in line.split())
        found[int(shown["ArrayTaskId"])] = (shown["JobState"], int(shown["Restarts"]), shown.get("NodeList"))
    return found


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
    nodes = {}
    for part in lost:
        until(lambda part=part: has_done_some(part), 300, f"members of part {part}")
        nodes[part] = tasks_of(jobs, number)[part][2]
        jobs.cluster.command("scontrol", "update", f"nodename={nodes[part]}", "state=down", "reason=test")
    logs = jobs.home.glob("lsr-*.log")
    try:
        until(
            lambda: all(t[0] in ENDED for t in tasks_of(jobs, number).values()), 400, "the end of all tasks"
        )
    except TimeoutError as error:
        raise AssertionError("\n".join(path.read_text() for path in logs)) from error
    ended = tasks_of(jobs, number)
    printed = "\n".join(path.read_text() for path in logs)
    assert {state for state, _, _ in ended.values()} == {"COMPLETED"}, printed
    assert [restarts for _, restarts, _ in ended.values()].count(1) == len(lost), printed

    assert (out.result["status"], out.result["done"]) == ("done", MEMBERS), printed
    assert not out.done_twice()
    done = [e["name"] for e in read_events(out.layout.events) if e.get("state") == "done"]
    assert set(Counter(done).values()) == {1}
    # Not all at once: those that were lost had to be begun again.
    assert len(list(out.root.glob("steps/start-*"))) == 4 + len(lost)
