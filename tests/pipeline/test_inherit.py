"""A controller that finds what a killed one has left: half-written files, and ranks that live on."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from lsr_hpc.pipeline import inherit
from lsr_hpc.pipeline.claim import JobStart, claim, is_claimed
from lsr_hpc.pipeline.inherit import end_abandoned
from lsr_hpc.pipeline.progress import read_progress
from lsr_hpc.pipeline.spec import write_spec
from tests.pipeline.conftest import eventually, result
from tests.pipeline.test_kills import TOTAL, spec_of

IGNORING = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"


@pytest.mark.mpi
@pytest.mark.parametrize("left", [[], ["job.toml", ".job.toml.0123abcd", ".run.json.0123abcd"]])
def test_a_run_killed_before_it_had_an_identity_begins_anew(runs, left):
    """With the same command; a directory that was never a run's is refused as before."""
    out = runs.home / "run"
    out.mkdir()
    for name in ["mine.txt"] if not left else left:
        (out / name).write_text("half of it")
    if not left:
        runs.lsr("run", runs.job("summing", ranks=1), "--out", out, code=2)
        (out / "mine.txt").unlink()
    (out / "controller.lock").touch()
    runs.lsr("run", runs.job("summing", ranks=1), "--out", out)
    assert result(runs.layout(out))["instances"][0]["total"] == 3
    assert not list(out.glob(".*"))


@pytest.mark.mpi
def test_what_was_half_written_at_the_end_is_deleted(runs):
    layout = runs.begun("summing")
    for name in (".predictor.running-01234567", ".network.running-01234567"):
        (layout.root / name).mkdir()
        (layout.root / name / "half.safetensors").touch()
    (layout.root / ".result.json.01234567").touch()
    layout.figures.mkdir()
    (layout.figures / ".instance-0000.png.01234567").touch()
    (layout.root / ".of-the-user").touch()
    runs.lsr("resume", layout.root)
    assert [path.name for path in layout.root.rglob(".*") if "steps" not in path.parts] == [".of-the-user"]
    assert result(layout)["instances"][0]["total"] == TOTAL


def test_ranks_of_a_killed_controller_are_waited_for_and_then_killed(runs, monkeypatch):
    monkeypatch.setattr(inherit, "_PATIENCE_S", 0.5)
    layout = runs.layout(runs.home)
    files = layout.attempt(0, 0, 1)
    files.root.mkdir(parents=True)
    write_spec(files.spec, spec_of(runs.home, "summing"))
    others = layout.attempt(0, 0, 2).spec
    with (
        subprocess.Popen([sys.executable, "-c", IGNORING, files.spec]) as rank,
        subprocess.Popen([sys.executable, "-c", IGNORING, others]) as stranger,
    ):
        started = time.monotonic()
        end_abandoned([read_progress(layout, 0)])
        assert 0.5 < time.monotonic() - started < 5.0
        assert rank.wait(5) == -9
        assert stranger.poll() is None
        stranger.kill()
    assert files.revoked.exists()


@pytest.mark.mpi
def test_an_earlier_start_of_the_same_job_leaves_to_the_later_one_at_once(runs, monkeypatch):
    # As where the node of the first start is lost to SLURM, and lives on.
    layout = runs.begun("deaf_once", launcher="mpiexec")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    earlier = runs.start("resume", layout.root)
    eventually(layout.attempt(0, 0, 1).heartbeat.exists)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    later = runs.start("resume", layout.root)
    assert "SLURM has started the job again" in runs.ended(earlier, 75, limit_s=30)
    runs.ended(later)
    assert result(layout)["instances"][0]["total"] == TOTAL


def test_a_claim_is_for_earlier_starts_of_the_same_job(tmp_path):
    path = tmp_path / "controller.claim"
    first = JobStart.of({"SLURM_JOB_ID": "7"})
    second = JobStart.of({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})
    assert (first, second, JobStart.of({})) == (JobStart("7", 0), JobStart("7", 1), None)
    assert not is_claimed(path, first)
    claim(path, second)
    assert is_claimed(path, first)
    for start in (second, JobStart("7", 2), JobStart("8", 0), None):
        assert not is_claimed(path, start)
    path.write_text('{"job": 7')
    assert not is_claimed(path, first)
