"""The files by which a run is known: written once, read strictly, whatever state a kill has left them in."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lsr_hpc.errors import EnvironmentProblem, JobError
from lsr_hpc.job import load_job
from lsr_hpc.pipeline.attempt import StopRequest
from lsr_hpc.pipeline.journal import Journal, read_events
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.lock import SILENT_S, ControllerLock, Holder, read_holder
from lsr_hpc.pipeline.progress import read_progress
from lsr_hpc.pipeline.record import check_same_job, read_record, stored_job, write_record
from lsr_hpc.pipeline.spec import (
    CheckpointId,
    StepResult,
    StepSpec,
    read_result,
    read_spec,
    write_result,
    write_spec,
)
from lsr_hpc.store import write_manifest

SPEC = StepSpec(
    run_id="abc",
    instance=3,
    round=7,
    rounds=1,
    attempt=2,
    sequence=9,
    world_size=4,
    job_sha256="d" * 64,
    run_directory="/scratch/run",
    checkpoint=CheckpointId("round-0006", "e" * 64),
    checkpoint_seconds=300.0,
    keep=2,
    body="a.b:c",
)
RESULT = StepResult(
    status="done", round=7, metrics={"error": 1e-3}, checkpoint=CheckpointId("round-0007", "f" * 64)
)


def test_specification_and_result_come_back_as_they_were(tmp_path):
    write_spec(tmp_path / "spec.json", SPEC)
    write_result(tmp_path / "result.json", RESULT)
    assert read_spec(tmp_path / "spec.json") == SPEC
    assert read_result(tmp_path / "result.json") == RESULT
    first = replace(SPEC, checkpoint=None)
    write_spec(tmp_path / "first.json", first)
    assert read_spec(tmp_path / "first.json") == first


def test_they_are_never_replaced(tmp_path):
    write_result(tmp_path / "result.json", RESULT)
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(FileExistsError, match="never replaced"):
        write_result(tmp_path / "result.json", replace(RESULT, round=8))
    assert (tmp_path / "result.json").read_bytes() == before
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_flipped_byte_anywhere_is_noticed(tmp_path):
    path = tmp_path / "spec.json"
    write_spec(path, SPEC)
    whole = path.read_bytes()
    read = 0
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        try:
            # White space between the tokens is the only place where a flip may go unnoticed.
            assert read_spec(path) == SPEC
            read += 1
        except JobError:
            continue
    assert read <= whole.count(b" ") + whole.count(b"\n")


@pytest.mark.parametrize("change", [{"schema": 2}, {"colour": "red"}, {"status": "fine"}])
def test_results_of_another_version_are_refused(tmp_path, change):
    write_manifest(tmp_path / "result.json", {"schema": 1, **asdict(RESULT)} | change)
    with pytest.raises(JobError, match="another version"):
        read_result(tmp_path / "result.json")


def test_the_next_round_follows_from_the_status():
    assert RESULT.next_round == 8
    assert replace(RESULT, status="yielded").next_round == 7
    assert replace(RESULT, status="failed").next_round == 7


def begin(layout: RunLayout, spec: StepSpec, result: StepResult | None) -> None:
    files = layout.attempt(spec.instance, spec.round, spec.attempt)
    files.root.mkdir(parents=True)
    write_spec(files.spec, spec)
    if result is not None:
        write_result(files.result, result)


def test_progress_is_that_of_the_last_step_which_need_not_be_of_the_last_round(tmp_path):
    layout = RunLayout(tmp_path)
    assert read_progress(layout, 3).next_round == 0

    def at(round_: int, attempt: int, sequence: int) -> StepSpec:
        return replace(SPEC, round=round_, attempt=attempt, sequence=sequence)

    begin(layout, at(0, 1, 1), replace(RESULT, round=0))
    begin(layout, at(1, 1, 2), replace(RESULT, round=1))
    # Round 2 found its checkpoint damaged and went back to the one before; then came round 1 again.
    begin(layout, at(2, 1, 3), replace(RESULT, round=0))
    begin(layout, at(1, 2, 4), replace(RESULT, round=1, checkpoint=CheckpointId("new", "0")))
    begin(layout, at(2, 2, 5), replace(RESULT, status="failed", round=2))
    begin(layout, at(2, 10, 6), None)

    progress = read_progress(layout, 3)
    assert [a.spec.sequence for a in progress.attempts] == [1, 2, 3, 4, 5, 6]
    assert progress.next_round == 2
    assert progress.last.checkpoint.name == "new"


def test_a_damaged_attempt_is_left_out(tmp_path, caplog):
    layout = RunLayout(tmp_path)
    begin(layout, replace(SPEC, round=0, attempt=1, sequence=1), replace(RESULT, round=0))
    begin(layout, replace(SPEC, round=1, attempt=1, sequence=2), replace(RESULT, round=1))
    layout.attempt(3, 1, 1).spec.write_text("{}")
    assert read_progress(layout, 3).next_round == 1
    assert "left out" in caplog.text


# --- events -------------------------------------------------------------------------------------------


def test_events_are_appended_also_behind_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    journal.write("a", n=1)
    journal.close()
    with path.open("a") as file:
        file.write('{"event": "b", "n"')
    journal = Journal(path)
    journal.write("c", n=3)
    journal.close()
    assert [(e["event"], e["n"]) for e in read_events(path)] == [("a", 1), ("c", 3)]


def test_no_nan_gets_into_the_events(tmp_path):
    journal = Journal(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.write("a", error=float("nan"))
    journal.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


# --- the lock -----------------------------------------------------------------------------------------


def test_a_lock_is_held_once_says_by_whom_and_is_given_back(tmp_path):
    path = tmp_path / "controller.lock"
    with ControllerLock(path):
        holder = read_holder(path)
        assert (holder.pid, holder.host) == (os.getpid(), socket.gethostname())
        assert holder.is_alive(path)
        with pytest.raises(JobError, match=f"another controller .*process {os.getpid()} on"):
            ControllerLock(path)
    assert read_holder(path) is None
    with ControllerLock(path):
        pass


def left_behind(path: Path, **changes: object) -> Holder:
    holder = Holder(
        **({"pid": os.getpid(), "host": socket.gethostname(), "started": 1, "since": 0.0} | changes)
    )
    path.write_text(json.dumps(asdict(holder)))
    return holder


def test_the_lock_of_a_dead_process_is_taken_over_even_if_its_number_is_used_again(tmp_path):
    path = tmp_path / "controller.lock"
    # Our own number, but another start.
    assert not left_behind(path).is_alive(path)
    with ControllerLock(path):
        assert read_holder(path).started > 1


def test_a_lock_from_another_machine_counts_while_it_is_touched(tmp_path):
    path = tmp_path / "controller.lock"
    holder = left_behind(path, host="elsewhere")
    assert holder.is_alive(path)
    with pytest.raises(JobError, match="on elsewhere"):
        ControllerLock(path)
    old = time.time() - 1000.0
    os.utime(path, (old, old))
    with ControllerLock(path):
        assert read_holder(path).is_here


def test_patience_takes_the_lock_of_a_machine_that_falls_silent(tmp_path):
    path = tmp_path / "controller.lock"
    left_behind(path, host="elsewhere")
    nearly = time.time() - SILENT_S + 1.0
    os.utime(path, (nearly, nearly))
    with pytest.raises(JobError, match="on elsewhere"):
        ControllerLock(path)
    with ControllerLock(path, patience_s=20.0):
        assert read_holder(path).is_here


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_at_once(tmp_path, monkeypatch, number):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(EnvironmentProblem, match=r"has no locks .*Lustre: -o flock"):
        ControllerLock(tmp_path / "controller.lock", patience_s=60.0)


# --- the wish to stop ---------------------------------------------------------------------------------


def test_only_a_repeated_term_or_interrupt_is_urgent():
    stop = StopRequest(patience_s=60.0)
    with stop.listening():
        for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
            assert (stop.is_set, stop.is_over) == (True, False)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_over


def test_patience_ends():
    stop = StopRequest(patience_s=0.05)
    assert not stop.is_over
    stop.ask()
    asked_at = stop.asked_at
    assert not stop.is_over
    time.sleep(0.06)
    stop.ask()
    assert stop.asked_at == asked_at
    assert stop.is_over


# --- identity -----------------------------------------------------------------------------------------


def a_job(tmp_path: Path, *overrides: str):
    path = tmp_path / "a.toml"
    path.write_text('[problem]\nfunction = "x.y:z"\n[problem.args]\nn = 1\n')
    return load_job(path, overrides)


def test_a_run_knows_its_job_and_how_it_is_run_may_differ(tmp_path):
    layout = RunLayout(tmp_path / "run")
    layout.root.mkdir()
    written = write_record(layout, a_job(tmp_path), "toy", 3)
    record = read_record(layout)
    assert record == written
    assert stored_job(layout, record, ["run.ranks=5"]).run.ranks == 5
    check_same_job(layout, record, a_job(tmp_path, "run.ranks=7", "run.launcher=srun"))
    with pytest.raises(
        JobError, match=r"another job.*\n  - problem.args.n: 1 there, 2 here\n  - subspace.rank"
    ):
        check_same_job(layout, record, a_job(tmp_path, "problem.args.n=2", "subspace.rank=9"))


def test_a_changed_job_file_or_record_is_refused(tmp_path):
    layout = RunLayout(tmp_path / "run")
    layout.root.mkdir()
    with pytest.raises(JobError, match=r"there is no run\.json in it"):
        read_record(layout)
    record = write_record(layout, a_job(tmp_path), "toy", 3)
    layout.job.write_text(layout.job.read_text().replace("n = 1", "n = 2"))
    with pytest.raises(JobError, match="was changed"):
        stored_job(layout, record, [])
    layout.run.write_text(layout.run.read_text().replace('"instances": 3', '"instances": 4'))
    with pytest.raises(JobError, match="changed or damaged"):
        read_record(layout)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("ranks=0", "run.ranks = 0: must be at least 1"),
        ("keep=1", "run.keep = 1: must be at least 2"),
        ("launcher=ssh", "run.launcher = 'ssh'"),
        ("host=0.0.0.0", "name the one address"),
        ("body=x", 'write "package.module:function"'),
        ("launcher=local", 'run.launcher = "local" starts one rank, not run.ranks = 2'),
        ("rank=2", "did you mean 'ranks'"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, setting, words):
    with pytest.raises(JobError) as refused:
        a_job(tmp_path, f"run.{setting}")
    assert words in str(refused.value)
