"""``lsr-hpc verify`` notices every changed byte of a run directory and says what is still usable."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lsr_hpc.checkpoint.store import CheckpointStore
from lsr_hpc.cli import main
from lsr_hpc.store import file_digest, read_manifest, write_manifest
from tests.checkpoint.states import snapshot

REPOSITORY = Path(__file__).parents[1]
SMALL = ["--set", "problem.args.instances=2", "--set", "subspace.rank=10"]
PROBE = """
import sys
from lsr_hpc.cli import main
code = main(["verify", sys.argv[1]])
print(*[name for name in ("torch", "mpi4py.MPI", "petsc4py", "slepc4py") if name in sys.modules])
sys.exit(code)
"""


@pytest.fixture(scope="module")
def refined(tmp_path_factory) -> Path:
    """A finished refinement of two instances, on one rank without a launcher."""
    out = tmp_path_factory.mktemp("verify") / "run"
    command = [
        sys.executable,
        "-m",
        "lsr_hpc.cli",
        "refine",
        "jobs/antiderivative.toml",
        *SMALL,
        "--out",
        out,
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def run_directory(tmp_path, comm_self) -> Path:
    """What ``lsr-hpc run`` leaves of two instances with two finished rounds each."""
    run = tmp_path / "rounds"
    run.mkdir()
    (run / "job.toml").write_text("name = 'toy'\n")
    job_sha256 = file_digest(run / "job.toml")
    write_manifest(run / "run.json", {"kind": "lsr_hpc run", "schema": 1, "job_sha256": job_sha256})
    attempt = run / "steps" / "instance-0000" / "round-0000" / "attempt-1"
    attempt.mkdir(parents=True)
    write_manifest(attempt / "spec.json", {"schema": 1, "round": 0})
    write_manifest(attempt / "result.json", {"schema": 1, "status": "done"})
    for instance in range(2):
        store = CheckpointStore(run / "checkpoints" / f"instance-{instance:04d}", job_sha256)
        for r in range(2):
            store.save(comm_self, f"round-{r:04d}", snapshot(comm_self, r), progress=(r, 0), score=None)
    return run


def verify(directory: Path, capsys) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["verify", str(directory)])
    return code, capsys.readouterr().out.splitlines()


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def flips(files: list[Path], n: int, seed: int):
    """One byte of one file at a time is another; every file in turn, at random places."""
    rng = random.Random(seed)
    for sample in range(n):
        path = files[sample % len(files)]
        content = path.read_bytes()
        at = rng.randrange(len(content))
        changed = content[at] ^ (1 << rng.randrange(8)) if rng.random() < 0.5 else rng.randrange(256)
        if changed == content[at]:
            changed ^= 1
        path.write_bytes(content[:at] + bytes([changed]) + content[at + 1 :])
        yield path, f"byte {at} of {path}: {content[at]} became {changed}"
        path.write_bytes(content)


def check_every_flip(directory: Path, n: int, seed: int, capsys) -> None:
    files = files_of(directory)
    assert verify(directory, capsys)[0] == 0
    for path, what in flips(files, n, seed):
        code, lines = verify(directory, capsys)
        assert code == 70, what
        unit = path.relative_to(directory).parts[0]
        damaged = [line for line in lines if line.startswith("damaged ")]
        assert len(damaged) == 1, what
        assert unit in damaged[0], what
    assert verify(directory, capsys)[0] == 0


def test_every_file_of_a_refinement_is_under_a_digest_and_every_flip_noticed(refined, capsys) -> None:
    assert len(files_of(refined)) == 11
    check_every_flip(refined, 200, 0, capsys)


@pytest.mark.slow
def test_a_thousand_flips(refined, capsys) -> None:
    check_every_flip(refined, 1000, 1, capsys)


def test_predict_refuses_every_flipped_predictor(refined, tmp_path, capsys) -> None:
    np.save(tmp_path / "x.npy", np.linspace(0, 1, 5))
    output = tmp_path / "y.npy"
    words = ["predict", str(refined), "--input", str(tmp_path / "x.npy"), "--output", str(output)]
    for _, what in flips(files_of(refined / "predictor"), 60, 2):
        assert main(words) == 2, what
        assert not output.exists()
    assert main(words) == 0


def test_what_is_still_usable_is_said(refined, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(refined, run)
    (run / "metrics.jsonl").unlink()
    code, lines = verify(run, capsys)
    assert code == 70
    assert lines[-2:] == ["damaged: metrics.jsonl", "the predictor can be used"]

    (run / "predictor" / "instance-00001.safetensors").write_bytes(b"")
    lines = verify(run, capsys)[1]
    assert "instance-00001.safetensors differs from its SHA-256" in "".join(lines)
    assert "predict refuses the damaged instances" in lines[-1]

    (run / "MANIFEST.json").unlink()
    lines = verify(run, capsys)[1]
    assert lines[0].startswith("damaged     MANIFEST.json")
    assert lines[1].startswith("no digest   job.toml")


def test_killed_refinement_is_unfinished_and_not_damaged(refined, tmp_path, capsys) -> None:
    left = tmp_path / ".run.running-01234567"
    left.mkdir()
    for name in ("job.toml", "metrics.jsonl"):
        shutil.copy(refined / name, left)

    code, lines = verify(left, capsys)
    assert code == 0
    assert [line.split()[:2] for line in lines[:2]] == [
        ["unfinished", "job.toml"],
        ["unfinished", "metrics.jsonl"],
    ]
    assert "does not resume" in lines[-1]
    assert main(["verify", str(tmp_path / "run")]) == 2
    assert f"there is {left}" in capsys.readouterr().err


def test_what_is_no_run_directory_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "job.toml").write_text("name = 'x'\n")
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "job.toml"):
        assert main(["verify", str(place)]) == 2
        assert "give what was --out of refine or run" in capsys.readouterr().err


def test_intact_run_directory(run_directory, capsys) -> None:
    code, lines = verify(run_directory, capsys)
    assert code == 0
    assert lines[-3:] == [
        "nothing is damaged",
        "instance-0000 resumes from round-0001",
        "instance-0001 resumes from round-0001",
    ]
    check_every_flip_of_run(run_directory, capsys)


def check_every_flip_of_run(run_directory: Path, capsys) -> None:
    """``latest`` is a hint that nothing depends on, and the only file without a digest."""
    files = [path for path in files_of(run_directory) if path.name != "latest"]
    for path, what in flips(files, 3 * len(files), 3):
        code, lines = verify(run_directory, capsys)
        assert code == 70, what
        relative = path.relative_to(run_directory).as_posix().removeprefix("checkpoints/")
        (damaged,) = (line for line in lines if line.startswith("damaged "))
        unit = damaged.split()[1]
        assert relative.startswith(unit), what


def test_run_resumes_from_the_newest_intact_checkpoint(run_directory, capsys) -> None:
    root = run_directory / "checkpoints" / "instance-0001"
    (root / "round-0001" / "state.json").write_text("{}")
    (root / "round-0002.tmp-01234567").mkdir()
    code, lines = verify(run_directory, capsys)

    assert code == 70
    assert any(line.split()[:2] == ["unfinished", "instance-0001/round-0002.tmp-01234567"] for line in lines)
    assert lines[-2:] == ["instance-0000 resumes from round-0001", "instance-0001 resumes from round-0000"]

    (root / "quarantine").mkdir()
    (root / "round-0001").rename(root / "quarantine" / "round-0001-size")
    assert verify(run_directory, capsys)[0] == 0
    shutil.rmtree(root / "round-0000")
    code, lines = verify(run_directory, capsys)
    assert code == 70
    assert lines[-1] == "instance-0001 cannot resume: no checkpoint is intact"


def test_run_without_its_job_cannot_resume(run_directory, capsys) -> None:
    (run_directory / "job.toml").write_text("name = 'other'\n")
    code, lines = verify(run_directory, capsys)
    assert code == 70
    assert lines[-1] == "the run cannot resume: restore run.json and job.toml from a copy"

    (run_directory / "run.json").unlink()
    lines = verify(run_directory, capsys)[1]
    assert [line.split()[0] for line in lines[:2]] == ["damaged", "no"]


def test_checkpoints_of_another_job_are_no_checkpoints_of_this_run(run_directory, capsys) -> None:
    record = read_manifest(run_directory / "run.json")
    (run_directory / "job.toml").write_text("name = 'other'\n")
    write_manifest(
        run_directory / "run.json", record | {"job_sha256": file_digest(run_directory / "job.toml")}
    )
    code, lines = verify(run_directory, capsys)
    assert code == 70
    assert sum("belongs to another job" in line for line in lines) == 4


def test_checkpoints_are_verified_without_torch_and_mpi(run_directory) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, run_directory],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""


def test_missing_files_of_steps_are_noticed(run_directory, capsys) -> None:
    attempt = run_directory / "steps" / "instance-0000" / "round-0000" / "attempt-1"
    event = {"event": "step", "instance": 0, "round": 0, "attempt": 1, "status": "done"}
    (run_directory / "metrics.jsonl").write_text(f"{json.dumps(event)}\nnot JSON\n")
    assert verify(run_directory, capsys)[0] == 0
    for name in ("result.json", "spec.json"):
        content = (attempt / name).read_bytes()
        (attempt / name).unlink()
        code, lines = verify(run_directory, capsys)
        assert code == 70
        assert [line.split()[1] for line in lines if line.startswith("damaged ")] == [
            f"steps/instance-0000/round-0000/attempt-1/{name}"
        ]
        (attempt / name).write_bytes(content)
    # Killed before its ranks had anything to do.
    (attempt.parent / "attempt-2").mkdir()
    assert verify(run_directory, capsys)[0] == 0
