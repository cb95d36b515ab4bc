"""The templates of slurm/ on a real cluster: they finish, whatever happens to them on the way."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lsr_hpc.job import load_job
from lsr_hpc.pipeline.record import write_record
from tests.mpi.conftest import REPOSITORY
from tests.pipeline.conftest import events, result
from tests.slurm.cluster import until

pytestmark = [pytest.mark.slurm, pytest.mark.mpi]
# 3 rounds of 1 + 2, the numbers of two ranks.
TOTAL = 9


APART = """#!/bin/bash
drop=() words=()
for name in ${!PMI*} ${!SLURM_*}; do drop+=(-u "$name"); done
for word; do
  case $word in
    --mpi=*) words+=(--mpi=none) ;;
    env) words+=(env "${drop[@]}") ;;
    *) words+=("$word") ;;
  esac
done
exec /usr/bin/srun "${words[@]}"
"""


def is_at_work(layout):
    """Whether the first step has its ranks, and they have come to a boundary."""
    return until(layout.attempt(0, 0, 1).heartbeat.exists, 40, "the first step")


def statuses(layout):
    return [event["status"] for event in events(layout, "step")]


def assert_finished(jobs, number, layout, restarts):
    job = jobs.ended(number)
    assert (job.state, job.exit_code, job.restarts) == ("COMPLETED", "0:0", restarts), jobs.log(number)
    assert result(layout)["instances"][0]["total"] == TOTAL


def test_rounds_finish_over_two_nodes(jobs):
    layout = jobs.begun("summing")
    number = jobs.iterate(layout)
    assert_finished(jobs, number, layout, restarts=0)
    assert jobs.job(number).nodes == "n[1-2]"
    command = layout.attempt(0, 0, 1).command.read_text()
    assert "srun --overlap --mpi=pmix --kill-on-bad-exit=1" in command
    assert "--nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=1" in command


def test_instances_run_side_by_side_on_nodes_of_their_own(jobs):
    layout = jobs.begun("held_up", instances=2, instances_at_once=2)
    number = jobs.iterate(layout, RANKS="1")
    is_at_work(layout)
    # The first one holds its node until it is asked to stop.
    until(lambda: "instance 1 round 2 done" in jobs.log(number), 40, "the second instance")
    jobs.cluster.command("scancel", "--batch", "--signal=USR1", number)
    job = jobs.ended(number)
    assert (job.state, job.restarts) == ("COMPLETED", 1), jobs.log(number)
    assert [entry["total"] for entry in result(layout)["instances"]] == [3, 3]
    command = layout.attempt(1, 0, 1).command.read_text()
    assert "srun --exact" in command
    assert "--nodes=1 --ntasks=1 --ntasks-per-node=1" in command


def test_a_preempted_job_goes_on_where_it_was(jobs):
    layout = jobs.begun("held_up")
    number = jobs.iterate(layout)
    is_at_work(layout)
    urgent = jobs.sbatch("-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    assert jobs.ended(urgent, 40).state == "COMPLETED"
    assert_finished(jobs, number, layout, restarts=1)
    assert statuses(layout) == ["yielded", "done", "done", "done"]


def test_slurm_requeues_where_a_node_fails(jobs):
    layout = jobs.begun("held_up")
    number = jobs.iterate(layout)
    is_at_work(layout)
    jobs.cluster.command("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    assert_finished(jobs, number, layout, restarts=1)


def test_a_cancelled_job_stays_cancelled(jobs):
    layout = jobs.begun("held_up")
    number = jobs.iterate(layout)
    is_at_work(layout)
    jobs.cluster.command("scancel", number)
    job = jobs.ended(number, 30)
    assert (job.state, job.restarts) == ("CANCELLED", 0)
    assert jobs.lsr("status", layout.root, "--progress") == "1\n"
    # The same sbatch goes on with it.
    assert_finished(jobs, jobs.iterate(layout), layout, restarts=0)


def test_a_job_that_is_told_to_stop_writes_a_checkpoint_and_is_not_requeued(jobs):
    layout = jobs.begun("held_up")
    number = jobs.iterate(layout)
    is_at_work(layout)
    assert f"asked job {number} to stop" in jobs.lsr("stop", layout.root)
    job = jobs.ended(number, 30)
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", "75:0", 0)
    assert statuses(layout) == ["yielded"]
    assert "stopped as asked" in jobs.log(number)


def test_a_killed_controller_takes_its_ranks_along_and_the_next_job_goes_on(jobs):
    layout = jobs.begun("deaf_once")
    number = jobs.iterate(layout)
    is_at_work(layout)
    jobs.kill_controller(layout)
    job = jobs.ended(number, 30)
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", "137:0", 0)
    until(lambda: not jobs.ranks(), 10, "the end of the ranks")
    assert_finished(jobs, jobs.iterate(layout), layout, restarts=0)


def test_a_rank_that_is_killed_alone_on_its_node_does_not_leave_the_other_one_waiting(jobs):
    layout = jobs.begun("deaf_once")
    number = jobs.iterate(layout)
    is_at_work(layout)
    os.kill(until(lambda: len(jobs.ranks()) == 2 and jobs.ranks(), 10, "two ranks")[1], signal.SIGKILL)
    assert_finished(jobs, number, layout, restarts=0)
    assert statuses(layout) == ["ended from outside", "done", "done", "done"]


def test_wrong_input_is_refused_in_words_and_is_final(jobs):
    (jobs.home / "job.toml").write_text("[problem]\nfunction = 'poisson'\nwidht = 3\n")
    rounds = jobs.iterate(jobs.runs.layout(jobs.home / "run"))
    one_shot = jobs.sbatch(
        "--ntasks-per-node=1", REPOSITORY / "slurm" / "refine.sbatch", jobs.home / "job.toml"
    )
    for number in (rounds, one_shot):
        job = jobs.ended(number)
        assert (job.state, job.restarts) == ("FAILED", 0)
        assert "unknown key 'problem.widht'" in jobs.log(number)
    assert jobs.job(rounds).exit_code == "2:0"
    # srun may end the last rank, after the first has left with 2.
    assert jobs.job(one_shot).exit_code in {"2:0", "143:0"}


def test_a_job_without_progress_is_given_up(jobs):
    # What it yields holds no checkpoint, so nothing is ever gained.
    layout = jobs.begun("fruitless")
    number = jobs.iterate(layout, MAX_IDLE_STARTS="2")
    job = jobs.ended(number)
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", "70:0", 1), jobs.log(number)
    assert "no progress in 2 starts in a row" in jobs.log(number)


def test_ranks_that_do_not_find_each_other_are_refused(jobs):
    # As when srun and mpi4py belong to different MPI libraries: every rank is alone in its world.
    apart = jobs.home / "srun"
    apart.write_text(APART)
    apart.chmod(0o755)
    layout = jobs.begun("summing")
    number = jobs.iterate(layout)
    job = jobs.ended(number)
    assert (job.state, job.exit_code, job.restarts) == ("FAILED", "76:0", 0), jobs.log(number)
    assert "was to run on 2 MPI ranks and finds itself in a world of 1" in jobs.log(number)
    assert len(layout.attempts(0)) == 1


# --- real problems ----------------------------------------------------------------------------------


JOB = """
[problem]
function = "tests.slurm.problem:build"
path = {path}
[problem.args]
gate = {gate}
[subspace]
rank = 12
[iterate]
rounds = 2
steps = 3
tangent_rank = 10
[run]
ranks = 2
rounds_per_step = 100
checkpoint_seconds = 0.0
after_round = []
"""


def write_job(path, gate=""):
    path.write_text(JOB.format(path=json.dumps(str(REPOSITORY)), gate=json.dumps(str(gate))))
    return path


def values(run):
    """The refined predictor of a run at points."""
    from lsr_hpc.predictor import RefinedPredictor
    from tests.slurm.problem import build

    model = build().instance(0).model
    model.load_state_dict(load_file(run / "predictor" / "theta0.safetensors"))
    delta = load_file(run / "predictor" / "instance-00000.safetensors")["delta"]
    x = torch.linspace(0, 3, 17, dtype=torch.float64)[:, None]
    return RefinedPredictor(model, delta)(x).detach().numpy()


def test_one_shot_over_two_nodes_is_the_same_as_by_mpiexec(jobs):
    job = write_job(jobs.home / "job.toml")
    out = jobs.home / "runs" / "by sbatch"
    number = jobs.sbatch(
        *("--ntasks-per-node=1", REPOSITORY / "slurm" / "refine.sbatch", job, "--out", out),
    )
    jobs.lsr("refine", job, "--out", jobs.home / "here", launcher=("mpiexec", "-n", "2"))
    assert jobs.ended(number).state == "COMPLETED", jobs.log(number)
    assert json.loads((out / "result.json").read_text())["world_size"] == 2
    np.testing.assert_allclose(values(out), values(jobs.home / "here"), rtol=0, atol=1e-10)


def test_the_time_limit_costs_nothing_but_time(jobs):
    gate = jobs.home / "gate"
    layout = jobs.runs.layout(jobs.home / "run")
    layout.root.mkdir(mode=0o700)
    # Begun already, because there is little time to look at the problem.
    write_record(layout, load_job(write_job(jobs.home / "job.toml", gate)), "damped sine", 1)
    # SLURM counts in minutes and is about 20 s early: the signal comes within the first half of this one.
    number = jobs.iterate(layout, "--time=1", "--signal=B:USR1@25")
    is_at_work(layout)
    # Meanwhile, as the ranks of the job do little but sleep.
    undisturbed = jobs.home / "undisturbed"
    other = jobs.start("run", write_job(jobs.home / "other.toml"), "--out", undisturbed)
    until(lambda: jobs.job(number).restarts == 1, 75, "the requeue")
    # Room for what a busy machine needs, so that once is enough.
    jobs.cluster.command("scontrol", "update", f"jobid={number}", "timelimit=10")
    gate.touch()
    job = jobs.ended(number)
    assert (job.state, job.restarts) == ("COMPLETED", 1), jobs.log(number)
    assert statuses(layout) == ["yielded", "done"]
    jobs.finished(other)
    np.testing.assert_allclose(values(layout.root), values(undisturbed), rtol=0, atol=1e-10)


# --- submit -----------------------------------------------------------------------------------------


def test_a_submitted_run_is_seen_stopped_and_resumed(jobs):
    out = jobs.home / "a b" / "run"
    out.parent.mkdir()
    shape = ("--set", "slurm.nodes=2", "--set", "slurm.time=5:00")
    jobs.job_file("held_up")
    printed = jobs.lsr("submit", jobs.home / "job.toml", "--out", out, *shape)
    number = printed.split()[1].rstrip(",")
    layout = jobs.runs.layout(out)
    until(layout.attempt(0, 0, 1).heartbeat.exists, 40, "the first step")
    assert f"job {number}: RUNNING n[1-2]" in jobs.lsr("status", out)
    assert "is running already" in jobs.lsr("submit", jobs.home / "job.toml", "--out", out, *shape, code=2)
    assert f"asked job {number} to stop" in jobs.lsr("stop", out)
    assert jobs.ended(number, 30).exit_code == "75:0"
    log = Path(f"{out}.slurm/lsr-{number}.log")
    assert "stopped as asked: exit 75" in log.read_text()
    assert "stopped" in jobs.lsr("status", out)

    number = jobs.lsr("resume", out, "--submit").split()[1].rstrip(",")
    job = jobs.ended(number)
    assert (job.state, job.nodes) == ("COMPLETED", "n[1-2]"), log.with_name(f"lsr-{number}.log").read_text()
    assert result(layout)["instances"][0]["total"] == TOTAL
