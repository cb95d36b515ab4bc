"""``lsr-hpc campaign`` with real ranks: to the end, again, with failing members, and whatever is killed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.mpi.conftest import LSR_HPC, REPOSITORY, mpi_environment
from tests.pipeline.conftest import eventually

pytestmark = pytest.mark.mpi

AXES = ("problem.instance = {range = [0, 2]}", "subspace.rank = [5, 8]")


def kill(pids):
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_every_member_is_what_refine_makes_of_its_job_and_nothing_is_done_twice(campaigns):
    job = campaigns.write(*AXES)
    out = campaigns.carried_out(job)

    assert (out.result["status"], out.result["done"], out.result["failed"]) == ("done", 6, [])
    assert sorted(out.predictors()) == out.names
    # The same bits as by the command that a user would type for one of them.
    for name in out.names[1::4]:
        alone = campaigns.home / "alone"
        own_job = out.layout.members / name / "job.toml"
        done = subprocess.run(
            ["mpiexec", "-n", "2", LSR_HPC, "refine", own_job, "--out", alone],
            env=mpi_environment() | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        predictor = (alone / "predictor" / "instance-00000.safetensors").read_bytes()
        assert predictor == out.predictors()[name]
    # Built once by the light worker that looks at it, and once by each of the two ranks.
    assert list(Counter((campaigns.home / "built").read_text().split()).values()) == [1] * (1 + 2 + 2 * 2)

    before = {path: path.stat().st_mtime_ns for path in out.root.rglob("*") if path.is_file()}
    printed = campaigns.lsr("campaign", job, "--out", out.root)
    assert "all 6 members are done" in printed
    after = {path: path.stat().st_mtime_ns for path in out.root.rglob("*") if path.is_file()}
    changed = {path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed <= {"campaign.lock"}


def test_the_table_holds_the_figures_of_the_members(campaigns):
    out = campaigns.carried_out(campaigns.write(*AXES))
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
    assert "nothing is damaged" in campaigns.lsr("verify", out.root)
    assert "6 of 6 members done" in campaigns.lsr("status", out.root)

    # A value more: only its members are done; a byte flipped in one: that one is done again.
    first = out.predictors()
    victim = out.layout.members / out.names[2] / "predictor" / "instance-00000.safetensors"
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    assert f"damaged: member {out.names[2]}" in campaigns.lsr("verify", out.root, code=70)
    more = campaigns.carried_out(
        campaigns.write("problem.instance = {range = [0, 2]}", "subspace.rank = [3, 5, 8]")
    )
    assert {name: more.predictors()[name] for name in first} == first
    assert (more.result["members"], more.result["done"]) == (9, 9)
    assert Counter(map(str, more.answers().values())) == {
        str(Counter(done=1)): 8,
        str(Counter(done=2)): 1,
    }


@pytest.mark.parametrize(
    ("fault", "code", "cause"),
    [
        ("refuse", 2, "ValueError: no such thing today"),
        ("raise", 70, "MPI rank 1 failed in phase 'basis': ZeroDivisionError: deliberate"),
        ("die", 70, "ended from outside, 2 times in a row"),
    ],
)
def test_a_member_that_fails_harms_no_other_and_is_tried_again_when_asked(campaigns, fault, code, cause):
    job = campaigns.write(
        "problem.instance = [0, 1, 2, 3]",
        f"problem.args.fault = ['', '{fault}', '', '']",
        combine="zip",
        tries=2,
    )
    out = campaigns.carried_out(job, code=70)
    sound = [name for i, name in enumerate(out.names) if i != 1]
    assert sorted(out.predictors()) == sound
    (failed,) = out.result["failed"]
    assert (failed["name"], failed["exit_code"]) == (out.names[1], code)
    assert cause in failed["cause"]
    assert failed["settings"] == {"problem.instance": 1, "problem.args.fault": fault}
    assert (out.result["status"], out.result["done"], out.result["missing"]) == ("failed", 3, 0)
    assert cause in campaigns.lsr("status", out.root)
    before = out.predictors()

    (campaigns.home / "mended").touch()
    out = campaigns.carried_out(job)
    assert out.result["status"] == "done"
    assert {name: out.predictors()[name] for name in sound} == before
    assert [out.answers()[name] for name in sound] == [Counter(done=1)] * 3
    assert out.answers()[out.names[1]]["done"] == 1


@pytest.fixture
def held(campaigns):
    """A campaign whose third member waits, with all processes at work; and what it comes to undisturbed."""
    job = campaigns.write(
        "problem.instance = [0, 1, 2, 3]",
        "problem.args.fault = ['', '', 'wait', '']",
        combine="zip",
    )
    controller = campaigns.start("campaign", job, "--out", campaigns.home / "out")
    eventually((campaigns.home / "waiting").exists, limit_s=40)
    return job, controller


def undisturbed(campaigns, job):
    (campaigns.home / "gate").touch()
    return campaigns.carried_out(job, name="undisturbed")


def assert_whole(campaigns, job, out, disturbed):
    """All are done, each once, with the same bits as without any disturbance."""
    assert out.result["status"] == "done"
    assert not out.done_twice()
    assert out.predictors() == undisturbed(campaigns, job).predictors()
    for name in out.names:
        expected = Counter(done=1, none=1) if name in disturbed else Counter(done=1)
        assert out.answers()[name] == expected
    assert not [path for path in out.layout.members.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("victims", ["one rank", "all ranks"])
def test_a_member_whose_ranks_are_killed_is_done_again_and_no_other_one(campaigns, held, victims):
    job, controller = held
    ranks = campaigns.ranks()
    assert len(ranks) == 2
    kill(ranks[1:] if victims == "one rank" else ranks)
    (campaigns.home / "gate").touch()
    printed = campaigns.ended(controller)
    assert "ended from outside" in printed
    out = campaigns.directory()
    assert_whole(campaigns, job, out, disturbed=[out.names[2]])


def test_a_killed_controller_leaves_nothing_and_the_next_one_does_the_rest(campaigns, held):
    job, controller = held
    before = campaigns.directory().predictors()
    assert len(before) == 2
    controller.kill()
    controller.communicate()
    eventually(lambda: not campaigns.processes(), limit_s=10)
    assert "2 of 4 members done" in campaigns.lsr("status", campaigns.home / "out")
    (campaigns.home / "gate").touch()
    out = campaigns.carried_out(job)
    assert "2 of 4 members to do" in out.printed
    assert {name: out.predictors()[name] for name in before} == before
    assert_whole(campaigns, job, out, disturbed=[out.names[2]])


@pytest.mark.parametrize("how", ["signal", "stop"])
def test_a_stop_gives_up_the_member_in_hand_and_resume_does_the_rest(campaigns, held, how):
    job, controller = held
    root = campaigns.home / "out"
    if how == "signal":
        os.kill(controller.pid, signal.SIGTERM)
    else:
        assert "for the controllers" in campaigns.lsr("stop", root)
    (out,) = [campaigns.directory()]
    # The ranks yield at the next boundary, which this one reaches when it waits no more.
    eventually(lambda: list(root.glob("steps/start-*/step-*/attempt-1/stop")))
    (campaigns.home / "gate").touch()
    printed = campaigns.ended(controller, 75)
    assert "stopped in good order" in printed.splitlines()[-1]
    assert (out.result["status"], out.result["missing"]) == ("partial", 2)
    if how == "stop":
        assert "asks for a stop" in campaigns.lsr("campaign", job, "--out", root, code=75)
    campaigns.lsr("resume", root)
    assert_whole(campaigns, job, out, disturbed=[out.names[2]])


def test_several_controllers_share_the_members(campaigns, held):
    """One has the first members in hand; another one leaves them alone, and waits for them."""
    job, first = held
    second = campaigns.start("campaign", job, "--out", campaigns.home / "out")
    out = campaigns.directory()
    eventually(lambda: (out.root / "logs" / "start-0002.log").exists(), limit_s=40)
    (campaigns.home / "gate").touch()
    for process in (first, second):
        campaigns.ended(process)
    assert_whole(campaigns, job, out, disturbed=[])


def test_parts_are_disjoint_and_the_last_one_completes_the_table(campaigns):
    job = campaigns.write("problem.instance = [0, 1, 2, 3]", ranks_per_member=1)
    out = campaigns.home / "out"
    campaigns.lsr("campaign", job, "--out", out, "--part", "1/2")
    found = campaigns.directory()
    assert [name[:4] for name in found.predictors()] == ["0001", "0003"]
    assert (found.result["status"], found.result["missing"]) == ("partial", 2)
    campaigns.lsr("campaign", job, "--out", out, "--part", "0/2")
    assert found.result["status"] == "done"
    assert not found.done_twice()
    for part in ("2/2", "x", "0/0", "-1/2"):
        assert "--part" in campaigns.lsr("campaign", job, "--out", out, f"--part={part}", code=2)


def test_a_problem_that_cannot_be_built_is_wrong_input_and_nothing_is_written(campaigns):
    job = campaigns.write("problem.args.wave = [1.0, 'steep']", "problem.instance = [0, 9]")
    printed = campaigns.lsr("campaign", job, "--out", campaigns.home / "out", code=2)
    assert "problem.args.wave = 'steep': a number is expected" in printed
    assert "problem.instance = 9: 'damped sine' has instances 0 to 3" in printed
    assert not (campaigns.home / "out").exists()


def test_members_run_side_by_side(campaigns):
    job = campaigns.write(
        "problem.instance = [0, 1, 2]",
        "problem.args.fault = ['wait', '', '']",
        combine="zip",
        ranks_per_member=1,
        at_once=2,
    )
    controller = campaigns.start("campaign", job, "--out", campaigns.home / "out")
    out = campaigns.directory()
    # The first holds its ranks, and those behind it in the batch are not there.
    eventually(lambda: out.layout.members.exists() and len(out.predictors()) == 2, limit_s=40)
    (campaigns.home / "gate").touch()
    campaigns.ended(controller)
    assert not out.done_twice()


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
