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

from lsr_hpc.batch_script import render
from lsr_hpc.cli import main
from lsr_hpc.errors import JobError
from lsr_hpc.job import load_job
from lsr_hpc.settings_slurm import SlurmSettings
from lsr_hpc.slurm import Submission
from lsr_hpc.toml_text import dump_toml
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
ROUNDS = "[iterate]\nrounds = 3\n"
ONE_SHOT = FULL + 'srun_mpi = "pmi2"\n'
# Text of the job, run directory, template.
HARD = "/scratch/a b;touch c $(touch d) `e` 'f\"&| --out"
SCRIPTS = {
    "least": (ROUNDS, "/scratch/run", "iterate"),
    "full": (FULL + ROUNDS, HARD, "iterate"),
    "one-shot": ("", "/scratch/run", "refine"),
    "one-shot-full": (ONE_SHOT, HARD, "refine"),
}
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


@pytest.mark.parametrize("case", SCRIPTS)
def test_the_script_to_the_word(tmp_path, monkeypatch, case):
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    text, root, template = SCRIPTS[case]
    head, _, body = render(job_of(tmp_path, text), Submission(Path(root))).partition("# --- nothing to")
    assert head == (GOLDEN / f"{case}.head").read_text()
    shipped = (REPOSITORY / "slurm" / f"{template}.sbatch").read_text()
    assert body == shipped.partition("# --- nothing to")[2]


def test_bash_reads_hostile_paths_as_they_are(tmp_path):
    root = Path("/scratch/a b;touch c $(touch d) `e` 'f\"&| ${HOME} ~ * #")
    head = render(job_of(tmp_path, FULL + ROUNDS), Submission(root)).partition("# --- nothing to change")[0]
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
    (tmp_path / "job.toml").write_text(JOB + ROUNDS)
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
    shown = capsys.readouterr().out
    assert shown.startswith(f"{tmp_path}/a b: not begun\n")
    assert "run  17 PENDING (Resources)  " in shown
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
    report = json.loads(capsys.readouterr().out)
    assert report["slurm"] == {"number": "17", "state": "RUNNING", "reason": "n[1-2]"}
    assert report["state"] == "waiting"
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


def test_one_shot_is_seen_and_cancelled(slurm, tmp_path, capsys):
    (tmp_path / "job.toml").write_text(JOB)
    assert main(["submit", "job.toml", "--out", "new/run"]) == 0
    script = (tmp_path / "new" / "run.slurm" / "job.sbatch").read_text()
    assert '"$LSR" refine "$@"' in script
    assert f"set -- {tmp_path}/new/run.slurm/job.toml --out {tmp_path}/new/run\n" in script
    (slurm / "squeue.says").write_text("17|RUNNING|n[1-2]\n")
    # As `refine` leaves it while it goes on.
    hidden = tmp_path / "new" / ".run.running-01234567"
    hidden.mkdir()
    entry = {"event": "refined", "instance": 0, "problem": "toy", "seconds": {"total": 2.0}}
    lines = [json.dumps(entry | {"error": {"before": 0.5, "after": after}}) for after in (0.1, 0.3)]
    (hidden / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    assert main(["status", "new/run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["state"], report["instances_done"]) == ("one shot, not done", 2)
    assert (report["before"], report["now"]) == (0.5, 0.2)
    assert main(["status", "new/run"]) == 0
    assert "17 RUNNING n[1-2]  -      2 done  0.5     0.2" in capsys.readouterr().out
    assert main(["stop", "new/run"]) == 0
    assert asked(slurm)[-2:] == ["scancel", "17"]

    from lsr_hpc.pipeline.layout import RunLayout
    from lsr_hpc.pipeline.record import write_record

    (tmp_path / "rounds").mkdir()
    write_record(RunLayout(tmp_path / "rounds"), load_job("job.toml"), "toy", 1)
    assert main(["submit", "job.toml", "--out", "rounds"]) == 2
    assert "holds rounds" in capsys.readouterr().err


def test_accounts_tell_how_a_job_ended_that_has_left_the_queue(slurm, capsys):
    assert main(["submit", "job.toml", "--out", "run"]) == 0
    (slurm / "sacct").write_text("#!/bin/sh\necho '17|NODE_FAIL|1:0'\necho '17|OUT_OF_MEMORY|0:125'\n")
    (slurm / "sacct").chmod(0o755)
    capsys.readouterr()
    assert main(["status", "run"]) == 0
    assert "17 OUT_OF_MEMORY exit 0:125" in capsys.readouterr().out
    (slurm / "sacct").write_text("#!/bin/sh\necho Slurm accounting storage is disabled >&2\nexit 1\n")
    assert main(["status", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slurm"] is None


SITE = """
[slurm]
partition = "gpu"
account = "physics"
gpus_per_node = 4
tasks_per_node = 4
prologue = ["module load cuda/12 openmpi/4.1"]
[run]
srun_mpi = "pmi2"
"""


def test_a_site_lies_below_the_job(slurm, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    sites = tmp_path / "config" / "lsr-hpc" / "sites"
    sites.mkdir(parents=True)
    (sites / "big.toml").write_text(SITE)
    (tmp_path / "job.toml").write_text(JOB + '[slurm]\naccount = "mathematics"\n')
    assert main(["submit", "job.toml", "--site", "big", "--set", "slurm.nodes=16", "--dry-run"]) == 0
    script = capsys.readouterr().out
    for line in ("--nodes=16", "--partition=gpu", "--account=mathematics", "--gpus-per-node=4"):
        assert f"#SBATCH {line}\n" in script
    assert "\nmodule load cuda/12 openmpi/4.1\n" in script
    assert "\nSRUN_MPI=pmi2\n" in script
    # As every job does.
    (tmp_path / "job.toml").write_text(JOB)
    assert main(["submit", "job.toml", "--dry-run"]) == 0
    assert "partition" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slurm.partition = 'a b'", "slurm.partition = 'a b'"),
        ("slurm.partitoin = 'a'", "unknown key 'slurm.partitoin'"),
        ("problem = 'poisson'", "unknown section 'problem'"),
        ("[slurm", "cannot be read"),
        ("slurm = 3", "slurm = 3"),
    ],
)
def test_a_site_is_checked_as_a_job_is(slurm, tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    sites = tmp_path / ".config" / "lsr-hpc" / "sites"
    sites.mkdir(parents=True)
    (sites / "odd.toml").write_text(text)
    assert main(["submit", "job.toml", "--site", "odd", "--dry-run"]) == 2
    assert words in capsys.readouterr().err
    for name in ("other", "../sites/odd", ""):
        assert main(["submit", "job.toml", "--site", name, "--dry-run"]) == 2
        assert "there are: odd" in capsys.readouterr().err


def test_logs_are_those_of_the_newest_job_and_follow_it(slurm, tmp_path, capsys, monkeypatch):
    from lsr_hpc.commands import logs

    assert main(["submit", "job.toml", "--out", "run"]) == 0
    assert main(["logs", "run"]) == 2
    assert "has no log yet" in capsys.readouterr().err
    assert main(["logs", "run", "-f"]) == 2
    log = tmp_path / "run.slurm" / "lsr-17.log"
    (slurm / "squeue.says").write_text("17|RUNNING|n1\n")
    capsys.readouterr()
    monkeypatch.setattr(logs, "_ASK_EVERY_S", 0.1)

    def later(seconds):
        # First a line and a half, then the rest and the end of the job.
        if not log.exists():
            log.write_text("one\ntw")
        elif "three" not in log.read_text():
            log.write_text("one\ntwo\nthree\n")
            (slurm / "squeue.says").write_text("")

    monkeypatch.setattr(logs.time, "sleep", later)
    assert main(["logs", "run", "-f"]) == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\n"
    assert main(["logs", "run"]) == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_gpus_and_ranks_go_together():
    with pytest.raises(JobError, match="a rank has one GPU, so write the same number twice"):
        SlurmSettings(gpus_per_node=4, tasks_per_node=2)
    assert SlurmSettings(gpus_per_node=4, tasks_per_node=4).gpus_per_node == 4


PLACES = [*TEXTS, "prologue", "name", "--out", "job file"]
# Runs what it is given, as a node would, on a PATH of fakes and of the plain tools.
EXECUTING = """#!/bin/bash
script=${!#}
bash -n "$script" || exit 1
cd "$CANARIES" && export SLURM_JOB_ID=1 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=n1
bash "$script" >/dev/null 2>&1
echo 17
"""


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("rounds", [True, False])
def test_nothing_in_a_job_is_executed(slurm, tmp_path, monkeypatch, place, rounds, capsys):
    canaries = tmp_path / "canaries"
    canaries.mkdir()
    (slurm / "sbatch").write_text(EXECUTING)
    (slurm / "srun").write_text('#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"$@"\n')
    (slurm / "lsr-hpc").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >{slurm}/words\n')
    for name in ("srun", "lsr-hpc"):
        (slurm / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{slurm}:/usr/bin:/bin")
    monkeypatch.setenv("CANARIES", str(canaries))
    monkeypatch.setattr(sys, "executable", str(slurm / "python"))
    accepted = []
    for number, value in enumerate(HOSTILE):
        table = {"name": value} if place == "name" else {}
        slurm_table = {place: value} if place in TEXTS else {}
        if place == "prologue":
            slurm_table = {place: [f"module load {value}"]}
        text = dump_toml({**table, "problem": "tests.pipeline.problem:build", "slurm": slurm_table})
        path, out = tmp_path / f"job{number}.toml", Path("runs", str(number))
        if place == "job file":
            path = tmp_path / f"{value}.toml"
            if set(value) & set("/\0") or len(value) > 200:
                continue
        if place == "--out":
            out = Path(f"runs/{number}-{value}")
        path.write_text(text + (ROUNDS if rounds else ""))
        code = main(["submit", str(path), "--out", str(out)])
        assert code in {0, 2}, (value, capsys.readouterr().err)
        if code == 0:
            accepted.append(value)
            words = (slurm / "words").read_text().splitlines()
            folder = f"{(tmp_path / out).absolute()}"
            expected = [f"{folder}.slurm/job.toml", "--out", folder]
            assert words[:4] == ["run" if rounds else "refine", *expected]
            (slurm / "words").unlink()
        # Whatever was done, it was not that.
        assert not list(canaries.iterdir()), value
        assert not list(tmp_path.rglob("hacked*")), value
    harmless = {"x", "-1", "x" * 100_000}
    if place not in {"--out", "job file", "constraint", "prologue"}:
        assert set(accepted) <= harmless
    assert len(HOSTILE) >= 30


def test_resume_submit_needs_a_run_that_was_submitted(slurm, tmp_path, capsys):
    assert main(["resume", "run", "--submit"]) == 2
    assert "the run was not begun by submit; go on without --submit" in capsys.readouterr().err
