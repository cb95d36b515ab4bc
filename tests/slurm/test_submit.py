"""``submit``: the script to the word, values that would be commands, and the commands of SLURM faked."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from string import ascii_letters, digits

import pytest

from lsr_hpc.cli import main
from lsr_hpc.errors import JobError
from lsr_hpc.job import load_job
from lsr_hpc.settings_slurm import SlurmSettings
from lsr_hpc.slurm import Submission, render
from tests.mpi.conftest import REPOSITORY

GOLDEN = Path(__file__).parent / "golden"
JOB = '[problem]\nfunction = "tests.pipeline.problem:build"\n'
FULL = """
[slurm]
nodes = 4
tasks_per_node = 8
cpus_per_task = 2
gpus_per_node = 8
memory = "64G"
time = "2-12:00:00"
partition = "long,short"
account = "physics_01"
qos = "high"
constraint = "[rack1|rack2]&ib"
reservation = "maintenance.1"
mail = "a.b+c@example.org"
dependency = "afterok:12:13_4"
signal_seconds = 600
requeue = false
max_restarts = 3
prologue = ["module load openmpi/4.1 python", "export UCX_TLS=rc,sm"]
[run]
instances_at_once = 4
"""
HOSTILE = [
    "",
    " ",
    "a b",
    "x\n#SBATCH --uid=0",
    "x\ntouch hacked",
    "x\r\ntouch hacked",
    "$(touch hacked)",
    "`touch hacked`",
    "x;touch hacked",
    "x && touch hacked",
    "x|touch hacked",
    "'",
    '"',
    "\\",
    "x' --uid=0 '",
    "-x --wrap=id",
    "${HOME}",
    "~root",
    "x>hacked",
    "x\x00y",
    "x\u2028y",
    "é",
    "٣",
    "１",
    "-1",
    "x" * 100_000,
    "%j",
    "*",
    "../x\n",
    "\x1b[2J",
    "#",
]
TEXTS = [
    "memory",
    "time",
    "partition",
    "account",
    "qos",
    "constraint",
    "reservation",
    "mail",
    "dependency",
]


def job_of(tmp_path, text=""):
    path = tmp_path / "job.toml"
    path.write_text(JOB + text)
    return load_job(path)


@pytest.mark.parametrize("case", ["least", "full"])
def test_the_script_to_the_word(tmp_path, monkeypatch, case):
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    root = "/scratch/run" if case == "least" else "/scratch/a b;touch c $(touch d) `e` 'f\"&| --out"
    script = render(job_of(tmp_path, FULL if case == "full" else ""), Submission(Path(root)))
    head, _, body = script.partition("# --- nothing to change")
    assert head == (GOLDEN / f"{case}.head").read_text()
    assert (
        body == (REPOSITORY / "slurm" / "iterate.sbatch").read_text().partition("# --- nothing to change")[2]
    )


def test_bash_reads_hostile_paths_as_they_are(tmp_path):
    root = Path("/scratch/a b;touch c $(touch d) `e` 'f\"&| ${HOME} ~ * #")
    head = render(job_of(tmp_path, FULL), Submission(root)).partition("# --- nothing to change")[0]
    show = head.replace("module load", ": load") + '\nprintf "%s\\n" "$RUN" "$1" "$#"'
    done = subprocess.run(["bash", "-c", show], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.stdout.splitlines() == [str(root), f"{root}.slurm/job.toml", "1"]
    assert [path.name for path in tmp_path.iterdir()] == ["job.toml"]


@pytest.mark.parametrize("key", TEXTS)
def test_hostile_texts_are_refused(key):
    for value in HOSTILE:
        # Feature lists may have stars and dashes.
        if key == "constraint" and value in {"*", "-1"}:
            continue
        with pytest.raises(JobError, match=f"slurm.{key} = "):
            SlurmSettings(**{key: value})


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_prologues_are_refused(value):
    for line in (value, f"module load {value}", f"{value} load x"):
        # Plain words are what a prologue consists of.
        is_plain = value.split() and set(value) <= {*ascii_letters, *digits, *" -=%/."}
        if line.startswith("module") and is_plain:
            continue
        with pytest.raises(JobError, match=r"slurm\.prologue: "):
            SlurmSettings(prologue=(line,))


@pytest.mark.parametrize("key", [f.name for f in fields(SlurmSettings) if f.type == "int"])
@pytest.mark.parametrize("value", [-1, 10**30])
def test_numbers_have_bounds(key, value):
    with pytest.raises(JobError, match=f"slurm.{key} = "):
        SlurmSettings(**{key: value})


@pytest.mark.parametrize("time", ["10:00", "1:00:00", "0:10:00", "1-0", "7-12:30", "7-12:30:59", "90:00"])
def test_times_that_slurm_knows(time):
    assert SlurmSettings(time=time).time == time


@pytest.mark.parametrize(
    "time", ["60", "0:00", "0-0", "3:00", "1:60:00", "1:0:61", "99:99:99", "1-1:99", "inf"]
)
def test_times_that_are_unclear_too_short_or_no_limit_are_refused(time):
    with pytest.raises(JobError, match=r"slurm\.time = "):
        SlurmSettings(time=time)


@pytest.mark.parametrize("name", ["a%jb", "a\\b", "a\nb"])
def test_run_directories_that_slurm_would_read_are_refused(tmp_path, name):
    with pytest.raises(JobError, match="mean something to SLURM"):
        render(job_of(tmp_path), Submission(tmp_path / name))


# --- with commands of SLURM that note what they were asked ---------------------------------------------


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Fake sbatch, squeue and scancel; what they print is what is written to PROGRAM.says."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        (programs / name).write_text(
            f'#!/bin/sh\nfor word in {name} "$@"; do printf "%s\\n" "$word"; done >>{programs}/asked\n'
            f'if [ -e {programs}/{name}.fails ]; then echo "no such luck" >&2; exit 1; fi\n'
            f"/bin/cat {programs}/{name}.says 2>/dev/null || true\n"
        )
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.toml").write_text(JOB)
    (programs / "sbatch.says").write_text("17;cluster\n")
    return programs


def asked(slurm):
    return (slurm / "asked").read_text().splitlines() if (slurm / "asked").exists() else []


def test_submit_says_number_and_places_and_refuses_a_second_job(slurm, tmp_path, capsys):
    assert main(["submit", "job.toml", "--out", "a b", "--set", "slurm.nodes=3"]) == 0
    assert (
        capsys.readouterr().out
        == f"job 17, run directory {tmp_path}/a b, log {tmp_path}/a b.slurm/lsr-17.log\n"
    )
    words = [
        "sbatch",
        "--parsable",
        f"--output={tmp_path}/a b.slurm/lsr-%j.log",
        f"{tmp_path}/a b.slurm/job.sbatch",
    ]
    assert asked(slurm) == words
    assert "#SBATCH --nodes=3\n" in (tmp_path / "a b.slurm" / "job.sbatch").read_text()
    assert load_job(tmp_path / "a b.slurm" / "job.toml").slurm.nodes == 3
    assert not (tmp_path / "a b").exists()

    (slurm / "squeue.says").write_text("16|RUNNING|n1\n17|PENDING|(Resources)\n")
    assert main(["submit", "job.toml", "--out", "a b"]) == 2
    assert "job 17 of" in capsys.readouterr().err
    assert main(["status", "a b"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/a b: not begun, job 17: PENDING (Resources)\n"
    assert main(["stop", "a b"]) == 0
    assert asked(slurm)[-3:] == ["scancel", "--state=PENDING", "17"]

    (slurm / "squeue.says").write_text("")
    assert main(["resume", "a b", "--submit"]) == 0
    assert asked(slurm)[-4:] == words


def test_dry_run_prints_the_script_and_does_nothing(slurm, tmp_path, capsys):
    assert main(["submit", "job.toml", "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#!/usr/bin/env bash\n")
    assert f"RUN={shlex.quote(str(tmp_path / 'runs/job'))}\n" in script
    assert asked(slurm) == []
    assert not (tmp_path / "runs").exists()


def test_a_cluster_that_refuses_or_is_not_there_is_said(slurm, tmp_path, capsys):
    (slurm / "sbatch.fails").touch()
    assert main(["submit", "job.toml", "--out", "run"]) == 76
    assert "sbatch refused: no such luck" in capsys.readouterr().err
    (slurm / "sbatch.fails").unlink()
    (slurm / "sbatch.says").write_text("hello\n")
    assert main(["submit", "job.toml", "--out", "run"]) == 76
    assert "which is no number of a job" in capsys.readouterr().err
    (slurm / "sbatch").unlink()
    assert main(["submit", "job.toml", "--out", "run"]) == 76
    assert "sbatch is not on PATH" in capsys.readouterr().err


@pytest.mark.parametrize("trouble", ["fails", "garbage", "absent"])
def test_status_does_without_the_queue(slurm, tmp_path, capsys, trouble):
    from lsr_hpc.pipeline.layout import RunLayout
    from lsr_hpc.pipeline.record import write_record

    assert main(["submit", "job.toml", "--out", "run"]) == 0
    layout = RunLayout(tmp_path / "run")
    layout.root.mkdir()
    write_record(layout, load_job("job.toml"), "toy", 1)
    (slurm / "squeue.says").write_text("17|RUNNING|n[1-2]\n")
    capsys.readouterr()
    assert main(["status", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slurm"] == {
        "number": "17",
        "state": "RUNNING",
        "reason": "n[1-2]",
    }
    assert main(["stop", "run"]) == 0
    assert asked(slurm)[-4:] == ["scancel", "--batch", "--signal=USR1", "17"]
    assert layout.stop.exists()

    assert main(["submit", "job.toml", "--out", "run"]) == 2
    assert "STOP asks for a stop" in capsys.readouterr().err

    if trouble == "fails":
        (slurm / "squeue.fails").touch()
    elif trouble == "garbage":
        (slurm / "squeue.says").write_text("slurm_load_jobs error\n|\n17\n")
    else:
        (slurm / "squeue").unlink()
    capsys.readouterr()
    assert main(["status", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slurm"] is None


def test_resume_submit_needs_a_run_that_was_submitted(slurm, tmp_path, capsys):
    assert main(["resume", "run", "--submit"]) == 2
    assert "the run was not begun by `lsr-hpc submit`" in capsys.readouterr().err
