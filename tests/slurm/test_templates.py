"""The templates of slurm/ on a real cluster: they finish, whatever happens to them on the way."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lsr_hpc.job import load_job
from lsr_hpc.pipeline.record import write_record
from lsr_hpc.pipeline.spec import read_spec
from tests.mpi.conftest import REPOSITORY
from tests.pipeline.conftest import events, result
from tests.slurm.chain import Chain, differing, faults_of, undisturbed, write_job
from tests.slurm.cluster import until
from tests.slurm.conftest import Jobs

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


def test_light_work_is_done_on_every_node(jobs):
    layout = jobs.begun("summing", after_round=["tests.pipeline.functions:place"] * 2)
    number = jobs.iterate(layout)
    assert_finished(jobs, number, layout, restarts=0)
    returned = [event["returned"] for event in events(layout, "function")]
    assert {(told["node"], told["http"]) for told in returned} == {("n1", 404), ("n2", 404)}
    # The certificate is nowhere on a disk, and nothing is left of the workers.
    assert not [p for p in layout.root.rglob("*") if p.is_file() and b"PRIVATE KEY" in p.read_bytes()]
    assert until(lambda: not jobs.cluster.processes("node_worker"), 10, "the end of the workers")


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


POINTS = torch.linspace(0, 3, 17, dtype=torch.float64)[:, None]


def values(run):
    """The refined predictor of a run at points."""
    from lsr_hpc.predictor import RefinedPredictor
    from tests.slurm.problem import build

    model = build().instance(0).model
    model.load_state_dict(load_file(run / "predictor" / "theta0.safetensors"))
    delta = load_file(run / "predictor" / "instance-00000.safetensors")["delta"]
    return RefinedPredictor(model, delta)(POINTS).detach().numpy()


@pytest.fixture(scope="module")
def alone(cluster, tmp_path_factory):
    """Run of the job of the chain by mpiexec, which nothing disturbs."""
    return undisturbed(Jobs(cluster, tmp_path_factory.mktemp("alone")))


@pytest.mark.parametrize("nodes", [2, 4])
def test_one_shot_over_nodes_is_the_same_as_by_mpiexec_and_is_evaluated_after_it(jobs, nodes):
    job = write_job(jobs.home / "job.toml")
    out, x, y = jobs.home / "runs" / "by sbatch", jobs.home / "x.npy", jobs.home / "y.npy"
    np.save(x, POINTS.numpy())
    scripts = REPOSITORY / "slurm"
    shape = (f"--nodes={nodes}", "--ntasks-per-node=1")
    number = jobs.sbatch(*shape, scripts / "refine.sbatch", job, "--out", out)
    after = (f"--dependency=afterok:{number}", "--kill-on-invalid-dep=yes")
    last = jobs.sbatch(*after, scripts / "evaluate.sbatch", out, "--input", x, "--output", y)
    jobs.lsr("refine", job, "--out", jobs.home / "here", launcher=("mpiexec", "-n", str(nodes)))
    assert jobs.ended(last).state == "COMPLETED", jobs.log(number) + jobs.log(last)
    assert json.loads((out / "result.json").read_text())["world_size"] == nodes
    expected = values(jobs.home / "here")
    np.testing.assert_allclose(values(out), expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.load(y), expected, rtol=0, atol=1e-10)


def test_what_ran_on_four_nodes_goes_on_on_one_and_back(jobs, alone):
    gate = jobs.home / "gate"
    write_job(jobs.home / "job.toml", gate)
    layout = jobs.runs.layout(jobs.home / "run")
    for nodes in (4, 1, 4):
        shape = (f"--nodes={nodes}", f"--ntasks={nodes}")
        number = jobs.iterate(layout, *shape, REQUEUE="no", RANKS=str(nodes))
        at = len(layout.attempts(0))
        until(lambda at=at: len(layout.attempts(0)) > at, 40, "a step")
        newest = layout.attempts(0)[-1][2]
        until(newest.heartbeat.exists, 40, "its ranks")
        assert read_spec(newest.spec).world_size == nodes
        if gate.exists():
            break
        # Inside a round, and of the last of them with its states.
        until(lambda: list(layout.checkpoints(0).glob("*-part")), 40, "a state inside a round")
        jobs.cluster.command("scancel", "--batch", "--signal=USR1", number)
        assert jobs.ended(number, 40).exit_code == "75:0", jobs.log(number)
        if nodes == 1:
            gate.touch()
    assert jobs.ended(number).state == "COMPLETED", jobs.log(number)
    expected = values(alone.root)
    np.testing.assert_allclose(values(layout.root), expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_every_rank_has_a_gpu_of_its_own(jobs):
    # Two pretended GPUs on each node; in place of lsr-hpc, what looks at them.
    looking = jobs.home / "lsr-hpc"
    looking.write_text('#!/bin/bash\necho "see $SLURMD_NODENAME:${CUDA_VISIBLE_DEVICES:-none}"\n')
    looking.chmod(0o755)
    shape = ("--nodes=2", "--ntasks-per-node=2", REPOSITORY / "slurm" / "refine.sbatch", "job")
    for option, seen in (("--gpus-per-node=2", ("0", "1")), ("--gpus-per-node=0", ("none", "none"))):
        number = jobs.sbatch(option, *shape, LSR_BIN=str(jobs.home))
        assert jobs.ended(number).state == "COMPLETED", jobs.log(number)
        found = sorted(line for line in jobs.log(number).splitlines() if line.startswith("see "))
        assert found == sorted(f"see {node}:{gpu}" for node in ("n1", "n2") for gpu in seen)


def test_the_time_limit_costs_nothing_but_time(jobs, alone):
    gate = jobs.home / "gate"
    layout = jobs.runs.layout(jobs.home / "run")
    layout.root.mkdir(mode=0o700)
    # Begun already, because there is little time to look at the problem.
    write_record(layout, load_job(write_job(jobs.home / "job.toml", gate)), "damped sine", 1)
    # SLURM counts in minutes and is about 20 s early: the signal comes within the first half of this one.
    number = jobs.iterate(layout, "--time=1", "--signal=B:USR1@25")
    is_at_work(layout)
    until(lambda: jobs.job(number).restarts == 1, 75, "the requeue")
    # Room for what a busy machine needs, so that once is enough.
    jobs.cluster.command("scontrol", "update", f"jobid={number}", "timelimit=10")
    gate.touch()
    job = jobs.ended(number)
    assert (job.state, job.restarts) == ("COMPLETED", 1), jobs.log(number)
    assert "yielded" in statuses(layout)
    assert differing(layout, alone) == []


def test_a_chain_of_disturbances_changes_nothing(jobs, alone):
    chain = Chain(jobs, random.Random(0))
    with chain.watch.looking():
        for kind in ("preemption", "node set down", "slurmctld killed", "controller killed"):
            chain.suffer(kind)
        chain.to_its_end()
    assert faults_of(chain, alone) == []


# --- submit -----------------------------------------------------------------------------------------


def test_a_submitted_run_is_seen_stopped_and_resumed(jobs):
    out = jobs.home / "a b" / "run"
    out.parent.mkdir()
    shape = ("--set", "slurm.nodes=2", "--set", "slurm.time=5:00", "--set", "iterate.rounds=3")
    jobs.job_file("held_up")
    printed = jobs.lsr("submit", jobs.home / "job.toml", "--out", out, *shape)
    number = printed.split()[1].rstrip(",")
    layout = jobs.runs.layout(out)
    until(layout.attempt(0, 0, 1).heartbeat.exists, 40, "the first step")
    assert f"run  {number} RUNNING n[1-2]  0 of 3  0 of 1 done" in jobs.lsr("status", out)
    assert "is running already" in jobs.lsr("submit", jobs.home / "job.toml", "--out", out, *shape, code=2)
    assert f"asked job {number} to stop" in jobs.lsr("stop", out)
    assert jobs.ended(number, 30).exit_code == "75:0"
    log = Path(f"{out}.slurm/lsr-{number}.log")
    assert "stopped as asked: exit 75" in log.read_text()
    assert "stopped" in jobs.lsr("status", out)

    number = jobs.lsr("resume", out, "--submit").split()[1].rstrip(",")
    assert f"job {number}: exit 0" in jobs.lsr("logs", out, "--follow").splitlines()[-1]
    job = jobs.ended(number)
    assert (job.state, job.nodes) == ("COMPLETED", "n[1-2]"), log.with_name(f"lsr-{number}.log").read_text()
    assert result(layout)["instances"][0]["total"] == TOTAL
