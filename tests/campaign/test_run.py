"""``lsr-hpc campaign`` with real ranks: to the end, again, with failing members, and whatever is killed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from lsr_hpc.campaign.layout import CampaignLayout
from tests.campaign.conftest import Campaigns, Directory
from tests.mpi.conftest import LSR_HPC, REPOSITORY, mpi_environment
from tests.pipeline.conftest import eventually

pytestmark = pytest.mark.mpi

AXES = ("problem.instance = {range = [0, 2]}", "subspace.rank = [5, 8]")
# The third member waits for a file, with all processes at work, and so would the fourth.
HELD = ("problem.instance = [0, 1, 2, 3]", "problem.args.fault = ['', '', 'wait', 'wait']")


def kill(pids):
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def alone(home, job, command):
    """What a user would type for one member, on two ranks."""
    out = home / "alone"
    environment = mpi_environment() | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, LSR_HPC, "refine" if command else "run", job, "--out", out],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    predictor = (out / "predictor" / "instance-00000.safetensors").read_bytes()
    shutil.rmtree(out)
    return predictor


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A campaign of six members that nothing has disturbed; to be looked at, and copied to be changed."""
    campaigns = Campaigns(tmp_path_factory.mktemp("finished"))
    campaigns.carried_out(campaigns.write(*AXES))
    return campaigns


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the members of HELD come to when nothing is killed, by number."""
    campaigns = Campaigns(tmp_path_factory.mktemp("undisturbed"))
    (campaigns.home / "gate").touch()
    out = campaigns.carried_out(campaigns.write(*HELD, combine="zip"))
    return {name[:4]: predictor for name, predictor in out.predictors().items()}


def test_every_member_is_what_refine_makes_of_its_job_and_nothing_is_done_twice(finished):
    out = finished.directory()
    assert (out.result["status"], out.result["done"], out.result["failed"]) == ("done", 6, [])
    assert sorted(out.predictors()) == out.names
    assert not out.done_twice()
    # Built once by the light worker that looks at it, and once by each of the two ranks.
    assert list(Counter((finished.home / "built").read_text().split()).values()) == [1, 1, 1]
    for name in out.names[1::4]:
        job = out.layout.members / name / "job.toml"
        assert alone(finished.home, job, ["mpiexec", "-n", "2"]) == out.predictors()[name]


def test_typed_again_nothing_is_done(finished):
    out = finished.directory()
    before = {path: path.stat().st_mtime_ns for path in out.root.rglob("*") if path.is_file()}
    printed = finished.lsr("campaign", finished.home / "job.toml", "--out", out.root)
    assert "all 6 members are done" in printed
    after = {path: path.stat().st_mtime_ns for path in out.root.rglob("*") if path.is_file()}
    changed = {path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {"campaign.lock"}
    assert "nothing is damaged" in finished.lsr("verify", out.root)
    assert "6 of 6 members done" in finished.lsr("status", out.root)


def test_the_table_holds_the_figures_of_the_members(finished):
    out = finished.directory()
    results = [json.loads((out.layout.members / name / "result.json").read_text()) for name in out.names]
    before, after = (np.array([r["error"][when] for r in results]) for when in ("before", "after"))

    for figures, values, worst in (
        (out.result["error"]["before"], before, before.max()),
        (out.result["error"]["after"], after, after.max()),
        (out.result["gain"], before / after, (before / after).min()),
    ):
        expected = {
            "mean": values.mean(),
            "std": values.std(),
            "worst": worst,
            "median": np.median(values),
            "geometric_mean": np.exp(np.log(values).mean()),
        }
        assert figures == pytest.approx(expected, rel=1e-12)
    by_rank = {group["value"]: group for group in out.result["by"]["subspace.rank"]}
    assert by_rank[5]["error"]["after"]["mean"] == pytest.approx(after[::2].mean(), rel=1e-12)
    assert by_rank[8]["members"] == 3
    with out.layout.table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["problem.instance"], row["subspace.rank"]) for row in rows] == [
        (str(i), str(k)) for i in range(3) for k in (5, 8)
    ]
    assert [float(row["error_after"]) for row in rows] == after.tolist()
    assert out.layout.figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_value_more_and_a_damaged_member_bring_no_work_but_their_own(finished):
    out = Directory(CampaignLayout(finished.home / "more"))
    shutil.copytree(finished.home / "out", out.root)
    first = out.predictors()
    victim = out.layout.members / out.names[2] / "predictor" / "instance-00000.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    assert f"damaged: member {out.names[2]}" in finished.lsr("verify", out.root, code=70)

    job = finished.write(AXES[0], "subspace.rank = [3, 5, 8]", name="more.toml")
    more = finished.carried_out(job, name="more")
    assert {name: more.predictors()[name] for name in first} == first
    assert (more.result["members"], more.result["done"]) == (9, 9)
    again = {name: answers["done"] for name, answers in more.answers().items() if answers["done"] > 1}
    assert again == {out.names[2]: 2}


def test_members_that_fail_harm_no_other_and_are_tried_again_when_asked(campaigns):
    faults = ["", "refuse", "", "raise", "die", ""]
    job = campaigns.write(
        "problem.instance = [0, 1, 2, 3, 0, 1]",
        "problem.args.wave = [3.0, 3.0, 3.0, 3.0, 4.0, 4.0]",
        f"problem.args.fault = {faults}",
        combine="zip",
        tries=2,
    )
    out = campaigns.carried_out(job, code=70)
    sound = [name for name, fault in zip(out.names, faults, strict=True) if not fault]
    assert sorted(out.predictors()) == sound
    assert (out.result["status"], out.result["done"], out.result["missing"]) == ("failed", 3, 0)
    causes = {entry["settings"]["problem.args.fault"]: entry for entry in out.result["failed"]}
    for fault, code, cause in (
        ("refuse", 2, "ValueError: no such thing today"),
        ("raise", 70, "MPI rank 1 failed in phase 'basis': ZeroDivisionError: deliberate"),
        ("die", 70, "ended from outside, 2 times in a row"),
    ):
        assert causes[fault]["exit_code"] == code
        assert cause in causes[fault]["cause"]
        assert cause in out.layout.table.read_text().replace('""', '"')
    before = out.predictors()

    (campaigns.home / "mended").touch()
    out = campaigns.carried_out(job)
    assert "3 of 6 members to do" in out.printed
    assert out.result["status"] == "done"
    assert {name: out.predictors()[name] for name in sound} == before
    assert not out.done_twice()


@pytest.fixture
def held(campaigns):
    """A campaign at work, its third member in hand."""
    job = campaigns.write(*HELD, combine="zip")
    controller = campaigns.start("campaign", job, "--out", campaigns.home / "out")
    eventually((campaigns.home / "waiting").exists, limit_s=200)
    return job, controller


def assert_whole(out, undisturbed, disturbed):
    """All are done, each once, with the same bits as without any disturbance."""
    assert out.result["status"] == "done"
    assert {name[:4]: predictor for name, predictor in out.predictors().items()} == undisturbed
    for i, (name, answers) in enumerate(out.answers().items()):
        assert answers == (Counter(done=1, none=1) if i in disturbed else Counter(done=1)), name
    assert not [path for path in out.layout.members.iterdir() if path.name.startswith(".")]


def test_a_member_whose_rank_is_killed_is_done_again_and_no_other_one(campaigns, held, undisturbed):
    _, controller = held
    ranks = campaigns.ranks()
    assert len(ranks) == 2
    kill(ranks[1:])
    (campaigns.home / "gate").touch()
    assert "ended from outside" in campaigns.ended(controller)
    assert_whole(campaigns.directory(), undisturbed, disturbed=[2])


def test_a_killed_controller_leaves_nothing_and_the_next_one_does_the_rest(campaigns, held, undisturbed):
    job, controller = held
    before = campaigns.directory().predictors()
    assert len(before) == 2
    controller.kill()
    controller.communicate()
    eventually(lambda: not campaigns.processes(), limit_s=20)
    assert "2 of 4 members done" in campaigns.lsr("status", campaigns.home / "out")
    (campaigns.home / "gate").touch()
    out = campaigns.carried_out(job)
    assert "2 of 4 members to do" in out.printed
    assert_whole(out, undisturbed, disturbed=[2])


def test_a_stop_gives_up_the_member_in_hand_and_resume_does_the_rest(campaigns, held, undisturbed):
    job, controller = held
    out = campaigns.directory()
    assert "for the controllers" in campaigns.lsr("stop", out.root)
    # The ranks yield at the next boundary, which this member reaches when it waits no more.
    eventually(lambda: list(out.root.glob("steps/start-*/step-*/attempt-1/stop")))
    (campaigns.home / "gate").touch()
    printed = campaigns.ended(controller, 75)
    assert "stopped in good order" in printed.splitlines()[-1]
    assert (out.result["status"], out.result["missing"]) == ("partial", 2)
    assert "asks for a stop" in campaigns.lsr("campaign", job, "--out", out.root, code=75)
    campaigns.lsr("resume", out.root)
    assert_whole(out, undisturbed, disturbed=[2])


def test_several_controllers_share_the_members(campaigns, held, undisturbed):
    """One has the members in hand; another one leaves them alone, and waits for them."""
    job, first = held
    second = campaigns.start("campaign", job, "--out", campaigns.home / "out")
    out = campaigns.directory()
    eventually((out.root / "logs" / "start-0002.log").exists, limit_s=200)
    (campaigns.home / "gate").touch()
    for process in (first, second):
        campaigns.ended(process)
    assert_whole(out, undisturbed, disturbed=[])


def test_members_run_side_by_side_and_parts_are_disjoint(campaigns):
    job = campaigns.write(
        "problem.instance = [0, 1, 2, 3, 0]",
        "problem.args.wave = [3.0, 3.0, 3.0, 3.0, 4.0]",
        "problem.args.fault = ['wait', '', '', '', '']",
        combine="zip",
        ranks_per_member=1,
        at_once=2,
    )
    root = campaigns.home / "out"
    controller = campaigns.start("campaign", job, "--out", root, "--part", "0/2")
    out = campaigns.directory()
    # The first one holds its rank while the others of this part, 2 and 4, are done.
    eventually(lambda: out.layout.members.exists() and len(out.predictors()) == 2, limit_s=200)
    (campaigns.home / "gate").touch()
    campaigns.ended(controller)
    assert [name[:4] for name in out.predictors()] == ["0000", "0002", "0004"]
    assert (out.result["status"], out.result["missing"]) == ("partial", 2)
    campaigns.lsr("campaign", job, "--out", root, "--part", "1/2")
    assert out.result["status"] == "done"
    assert not out.done_twice()


@pytest.mark.parametrize("part", ["2/2", "x", "0/0", "-1/2", "1/2/3"])
def test_a_part_that_is_none_is_refused(campaigns, part):
    assert "--part" in campaigns.lsr("campaign", campaigns.write(*AXES), f"--part={part}", code=2)


def test_rounds_make_the_run_directory_of_run_and_go_on_in_it(campaigns):
    job = campaigns.write(
        "problem.instance = [0, 1]",
        "problem.args.fault = ['wait', '']",
        combine="zip",
    )
    job.write_text(
        job.read_text() + "\n[iterate]\nrounds = 2\nsteps = 2\ntangent_rank = 8\n[run]\nranks = 2\n"
    )
    controller = campaigns.start("campaign", job, "--out", campaigns.home / "out")
    eventually((campaigns.home / "waiting").exists, limit_s=200)
    kill(campaigns.ranks())
    (campaigns.home / "gate").touch()
    campaigns.ended(controller)

    out = campaigns.directory()
    assert out.result["status"] == "done"
    assert out.result["error"]["after"]["worst"] < out.result["error"]["before"]["worst"]
    for i, name in enumerate(out.names):
        own = out.layout.members / name
        # The attempt that was killed lies there, given up.
        attempts = sorted(path.name for path in own.glob("steps/instance-0000/round-0000/attempt-*"))
        assert attempts == ["attempt-1", "attempt-2"][: 2 - i]
        assert alone(campaigns.home, own / "job.toml", []) == out.predictors()[name]
        assert "done" in campaigns.lsr("status", own)
    assert "nothing is damaged" in campaigns.lsr("verify", out.root)


def test_a_problem_that_cannot_be_built_is_wrong_input_and_nothing_is_written(campaigns):
    job = campaigns.write("problem.args.wave = [1.0, 'steep']", "problem.instance = [0, 9]")
    printed = campaigns.lsr("campaign", job, "--out", campaigns.home / "out", code=2)
    assert "problem.args.wave = 'steep': a number is expected" in printed
    assert "problem.instance = 9: 'damped sine' has instances 0 to 3" in printed
    assert not (campaigns.home / "out").exists()


def test_a_dry_run_writes_nothing_and_names_the_members(campaigns):
    out = campaigns.home / "out"
    printed = campaigns.lsr("campaign", campaigns.write(*AXES), "--out", out, "--dry-run")
    assert "6, of which 0 are done" in printed
    assert "mpiexec -n 2" in printed
    assert printed.count("member 000") == 6
    assert not out.exists()


def test_a_job_without_members_and_a_place_of_another_kind_are_refused(campaigns, tmp_path: Path):
    (tmp_path / "plain.toml").write_text('[problem]\nfunction = "tests.campaign.problem:build"\n')
    assert "has no section [campaign]" in campaigns.lsr("campaign", tmp_path / "plain.toml", code=2)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    assert "--out" in campaigns.lsr("campaign", campaigns.write(*AXES), "--out", taken, code=2)
    assert os.listdir(taken) == ["file"]
