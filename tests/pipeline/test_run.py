"""``lsr-hpc run`` with real ranks and a real Dask cluster: to the end, side by side, stopped, and resumed."""

from __future__ import annotations

import json
import os
import signal
import stat

import pytest

from lsr_hpc.pipeline.spec import read_result, read_spec
from tests.pipeline.conftest import events, eventually, result

pytestmark = pytest.mark.mpi

# Each of ROUNDS rounds adds 1 + 2 on two ranks.
TOTAL = 9


def test_three_rounds_of_three_instances_to_the_end_and_not_again(runs):
    job = runs.job(
        "summing",
        instances=3,
        instances_at_once=2,
        after_round=["tests.pipeline.functions:report"],
        at_end=["tests.pipeline.functions:total"],
    )
    out = runs.home / "run"
    printed = runs.lsr("run", job, "--out", out)
    layout = runs.layout(out)

    content = result(layout)
    assert content["status"] == "done"
    assert [entry["total"] for entry in content["instances"]] == [TOTAL] * 3
    assert content["grand_total"] == 3 * TOTAL
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert "Dask at tls://127.0.0.1:" in printed
    assert printed.splitlines()[-1].endswith(f"done, see {out}/result.json")
    for instance in range(3):
        for round_ in range(3):
            files = layout.attempt(instance, round_, 1)
            spec, step = read_spec(files.spec), read_result(files.result)
            assert (spec.instance, spec.round, spec.sequence, spec.world_size) == (
                instance,
                round_,
                round_ + 1,
                2,
            )
            assert step.metrics["total"] == 3 * (round_ + 1)
            assert step.is_finished == (round_ == 2)
            # A round goes on from the checkpoint of the one before, under its digest.
            before = read_result(layout.attempt(instance, round_ - 1, 1).result) if round_ else None
            assert spec.checkpoint == (before.checkpoint if before else None)
            assert "lsr_hpc.pipeline.worker" in files.command.read_text()
    assert len(events(layout, "step")) == 9
    reports = events(layout, "function")
    assert sorted((e["returned"]["instance_again"], e["returned"]["total"]) for e in reports[:9]) == [
        (i, t) for i in range(3) for t in (3, 6, 9)
    ]
    assert len({e["returned"]["pid"] for e in reports[:9]}) == 1

    before = layout.metrics.read_bytes()
    assert "nothing to do" in runs.lsr("run", job, "--out", out)
    assert layout.metrics.read_bytes() == before
    assert "done" in runs.lsr("status", out)

    other = runs.lsr("run", job, "--out", out, "--set", "problem.args.scale=2.0", code=2)
    assert "problem.args.scale: None there, 2.0 here" in other
    assert "nothing to do" in runs.lsr("run", job, "--out", out, "--set", "run.instances_at_once=1")


def test_a_problem_that_cannot_be_built_is_wrong_input_and_nothing_is_written(runs):
    job = runs.job("summing")
    out = runs.home / "run"
    printed = runs.lsr("run", job, "--out", out, "--set", "problem.args.scale=-1.0", code=2)
    assert "scale must be positive" in printed
    assert not out.exists()


def test_a_problem_that_takes_its_process_along_is_reported(runs):
    out = runs.home / "run"
    words = ("run", runs.job("summing"), "--out", out, "--set", "problem.args.scale=13.0")
    assert "has died: out of memory" in runs.lsr(*words, code=70)
    assert not out.exists()


def test_one_rank_needs_no_launcher(runs):
    layout = runs.begun("summing", ranks=1)
    printed = runs.lsr("resume", layout.root)
    assert "by local" in printed
    assert result(layout)["instances"][0]["total"] == 3


def test_any_name_of_the_run_directory_will_do(runs):
    before = set(runs.home.iterdir())
    layout = runs.begun("summing", name="-a b;touch c $(touch d) `touch e` : $HOME %s {}\n'f\"&|\\")
    runs.lsr("resume", f"./{os.path.relpath(layout.root)}")
    assert result(layout)["instances"][0]["total"] == TOTAL
    assert set(runs.home.iterdir()) - before == {layout.root, runs.home / "job.toml"}


def test_several_rounds_of_a_step_are_asked_for(runs):
    layout = runs.begun("summing", rounds_per_step=5, ranks=1)
    runs.lsr("resume", layout.root)
    assert read_spec(layout.attempt(0, 0, 1).spec).rounds == 5


def test_diverged_is_an_end_and_no_failure(runs):
    layout = runs.begun("diverging", instances=2, ranks=1)
    runs.lsr("resume", layout.root)
    assert [entry["status"] for entry in result(layout)["instances"]] == ["diverged"] * 2
    assert "the error grew twice" in result(layout)["instances"][0]["why"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_stops_in_good_order(runs, number):
    layout = runs.begun("held_up", instances=2)
    controller = runs.start("resume", layout.root)
    eventually(layout.attempt(0, 0, 1).heartbeat.exists)
    os.kill(controller.pid, number)
    printed = runs.ended(controller, 75, limit_s=15)
    assert "stopped in good order" in printed.splitlines()[-1]
    assert read_result(layout.attempt(0, 0, 1).result).status == "yielded"
    assert not layout.attempt(1, 0, 1).root.exists()
    assert not layout.result.exists()


def test_stop_and_resume_by_command(runs):
    layout = runs.begun("held_up")
    controller = runs.start("resume", layout.root)
    eventually(layout.attempt(0, 0, 1).heartbeat.exists)
    assert "running" in runs.lsr("status", layout.root)
    status = json.loads(runs.lsr("status", layout.root, "--json"))
    assert (status["state"], status["instances"][0]["state"]) == ("running", "running")
    assert status["instances"][0]["heartbeat"] < 30
    assert "asked the controller to stop" in runs.lsr("stop", layout.root)
    runs.ended(controller, 75, limit_s=15)
    yielded = read_result(layout.attempt(0, 0, 1).result)
    assert yielded.checkpoint.name == "round-0000-part"
    assert runs.lsr("status", layout.root, "--progress").strip() == "1"
    assert "asks for a stop" in runs.lsr("run", runs.home / "job.toml", "--out", layout.root, code=75)
    assert "stopped" in runs.lsr("status", layout.root)
    runs.lsr("resume", layout.root)
    # The state inside the round is gone on from.
    assert read_spec(layout.attempt(0, 0, 2).spec).checkpoint == yielded.checkpoint
    assert result(layout)["instances"][0]["total"] == TOTAL
    assert "no controller" in runs.lsr("stop", layout.root)


def test_the_file_alone_stops_too(runs):
    layout = runs.begun("held_up")
    controller = runs.start("resume", layout.root)
    eventually(layout.attempt(0, 0, 1).heartbeat.exists)
    layout.stop.touch()
    runs.ended(controller, 75, limit_s=15)


def test_ranks_that_are_told_to_leave_end_the_run_as_a_stop(runs):
    layout = runs.begun("held_up", instances=2)
    controller = runs.start("resume", layout.root)
    eventually(layout.attempt(0, 0, 1).heartbeat.exists)
    for pid in runs.ranks():
        os.kill(pid, signal.SIGTERM)
    runs.ended(controller, 75, limit_s=15)
    assert not layout.attempt(1, 0, 1).root.exists()


def test_a_step_that_does_not_listen_is_ended_when_patience_is(runs):
    layout = runs.begun("deaf", stop_seconds=1.0)
    controller = runs.start("resume", layout.root)
    eventually(layout.attempt(0, 0, 1).heartbeat.exists)
    os.kill(controller.pid, signal.SIGTERM)
    runs.ended(controller, 75, limit_s=20)
    assert not layout.attempt(0, 0, 1).result.exists()


def test_the_second_signal_does_not_wait_for_anybody(runs):
    layout = runs.begun("deaf")
    controller = runs.start("resume", layout.root)
    eventually(layout.attempt(0, 0, 1).heartbeat.exists)
    os.kill(controller.pid, signal.SIGINT)
    eventually(layout.attempt(0, 0, 1).stop.exists)
    os.kill(controller.pid, signal.SIGINT)
    runs.ended(controller, 75, limit_s=15)


def test_a_hanging_step_is_ended_and_tried_again(runs):
    layout = runs.begun("deaf_once", silence_seconds=2.0)
    printed = runs.lsr("resume", layout.root)
    assert "reached no boundary for 2 s" in printed
    assert result(layout)["instances"][0]["total"] == TOTAL


def test_a_second_controller_is_refused(runs):
    layout = runs.begun("held_up")
    controller = runs.start("resume", layout.root)
    eventually(layout.attempt(0, 0, 1).heartbeat.exists)
    printed = runs.lsr("resume", layout.root, code=2)
    assert f"another controller is at work in {layout.root} (process {controller.pid}" in printed
    runs.lsr("stop", layout.root)
    runs.ended(controller, 75)


def test_inside_an_mpi_program_it_refuses(runs, monkeypatch):
    from lsr_hpc.cli import main

    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    assert main(["run", str(runs.job("summing")), "--out", str(runs.home / "run")]) == 2
    assert not (runs.home / "run").exists()


def test_a_function_that_fails_after_a_round_is_reported_and_no_more(runs):
    layout = runs.begun("summing", after_round=["tests.pipeline.functions:failing"], ranks=1)
    printed = runs.lsr("resume", layout.root)
    assert "ValueError: no figure today" in printed
    assert len(events(layout, "function failed")) == 3


def test_a_stop_while_the_end_is_made_leaves_it_to_the_next_start(runs):
    layout = runs.begun("diverging", at_end=["tests.pipeline.functions:slow_end"], stop_seconds=0.0)
    controller = runs.start("resume", layout.root)
    eventually((layout.root / "end").exists)
    os.kill(controller.pid, signal.SIGTERM)
    runs.ended(controller, 75, limit_s=20)
    assert not layout.result.exists()
    runs.lsr("resume", layout.root)
    assert result(layout)["ends"] == 2
    assert len(events(layout, "step")) == 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("failing_end", "no predictor today"),
        ("unwritable_end", "JSON cannot hold"),
        ("missing", "cannot be imported"),
    ],
)
def test_a_function_that_fails_at_the_end_fails_the_run(runs, function, words):
    layout = runs.begun("diverging", at_end=[f"tests.pipeline.functions:{function}"], ranks=1)
    assert words in runs.lsr("resume", layout.root, code=70)
    assert result(layout)["status"] == "failed"
