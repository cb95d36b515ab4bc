"""``lsr-hpc refine`` with ``[transfer]``: numbers of ranks, the run directory, modes taken over."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsr_hpc.predictor import load_predictors
from tests.transfer.conditions import X, network

pytestmark = pytest.mark.mpi

SPOILT = 3
JOB = f"""\
[problem]
function = "conditions.py:family"
[problem.args]
conditions = 6
b = 1.0
spoilt = {SPOILT}
[transfer]
[subspace]
rank = 8
basis = "svd"
iterations = 4
[compute]
memory_per_rank = "1GiB"
"""


def refine(home: Path, ranks: int, out: str, *words: str) -> subprocess.CompletedProcess[str]:
    from tests.mpi.conftest import mpi_environment

    command = ["mpiexec", "-n", str(ranks), sys.executable, "-m", "lsr_hpc.cli", "refine", "job.toml"]
    done = subprocess.run(
        [*command, "--out", out, *words],
        cwd=home,
        env=mpi_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done


def lsr_hpc(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lsr_hpc.cli", *words]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120)


def result_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


def fields(run: Path) -> np.ndarray[Any, Any]:
    """Values of every condition at the points, NaN where it failed."""
    return np.stack([p.predict(X).numpy() for p in load_predictors(run / "predictor", lambda i: network())])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one job on 1, 2 and 3 ranks, the latter in groups of more than one."""
    home = tmp_path_factory.mktemp("transfer")
    shutil.copy(Path(__file__).with_name("conditions.py"), home)
    (home / "job.toml").write_text(JOB)
    for ranks in (1, 2):
        refine(home, ranks, f"out-{ranks}")
    refine(home, 3, "out-3", "--set", "transfer.ranks_per_target=2")
    return home


def test_answer_does_not_depend_on_ranks_and_groups(home: Path) -> None:
    one = fields(home / "out-1")
    assert np.isnan(one[SPOILT]).all()
    assert np.isfinite(np.delete(one, SPOILT, 0)).all()
    for other in ("out-2", "out-3"):
        np.testing.assert_allclose(fields(home / other), one, rtol=0, atol=1e-10 * np.nanmax(np.abs(one)))


def test_result_has_figures_of_every_target_and_of_all_together(home: Path) -> None:
    result = result_of(home / "out-2")
    transfer, instances = result["transfer"], result["instances"]
    assert (result["status"], result["rows"], result["params"], result["rank_max"]) == ("done", 121, 141, 8)
    assert (transfer["source"], transfer["targets"], transfer["solved"]) == (0, 5, 4)
    assert [(f["instance"], "nan at point" in f["cause"]) for f in transfer["failed"]] == [(SPOILT, True)]
    assert [i["instance"] for i in instances] == [*range(6)]
    assert [i["outcome"] == "failed" for i in instances] == [i == SPOILT for i in range(6)]
    errors = [i["error"]["after"] for i in instances[1:] if i["outcome"] != "failed"]
    assert transfer["error"]["mean"] == pytest.approx(np.mean(errors)) == result["error"]["after"]
    assert transfer["error"]["median"] == pytest.approx(np.median(errors))
    assert transfer["error"]["worst"] == max(errors)
    assert transfer["steps"]["mean"] > 1
    lines = [json.loads(line) for line in (home / "out-2" / "metrics.jsonl").read_text().splitlines()]
    assert sorted((line["instance"], line["event"]) for line in lines) == [
        (i, "failed" if i == SPOILT else "refined") for i in range(6)
    ]


def test_other_commands_read_what_is_there(home: Path) -> None:
    np.save(home / "x.npy", X.numpy())
    words = ("predict", "out-1", "--input", "x.npy", "--output", "y.npy", "--instance")
    assert lsr_hpc(home, *words, "2").returncode == 0
    np.testing.assert_allclose(np.load(home / "y.npy"), fields(home / "out-1")[2], rtol=1e-13)
    refused = lsr_hpc(home, *words, str(SPOILT))
    assert refused.returncode == 2
    assert f"--instance {SPOILT} could not be solved: " in refused.stderr
    assert lsr_hpc(home, "verify", "out-1").returncode == 0
    report = lsr_hpc(home, "report", "out-1")
    assert report.returncode == 0, report.stderr
    assert "4 conditions of" in report.stdout
    assert "1 of 5 instances failed" in report.stdout


def test_modes_are_taken_over_until_something_changes(home: Path) -> None:
    """More targets, on another number of ranks, and other steps need no new modes; another subspace does."""
    shutil.copytree(home / "out-2", home / "again")
    before = fields(home / "again")
    more = ("--set", "problem.args.conditions=7")

    refine(home, 1, "again", *more)
    result = result_of(home / "again")
    assert result["transfer"]["modes"]["is_reused"]
    assert result["seconds"]["basis"] == 0
    np.testing.assert_array_equal(fields(home / "again")[:6], before)

    done = refine(home, 1, "again", "--set", "subspace.rank=6")
    result = result_of(home / "again")
    assert not result["transfer"]["modes"]["is_reused"]
    assert result["rank_max"] == 6
    assert "of another network, source or subspace: they are computed anew" in done.stderr


def test_damaged_modes_are_computed_anew(home: Path) -> None:
    shutil.copytree(home / "out-1", home / "damaged")
    [file] = (home / "damaged" / "modes" / "source").glob("part-1-*")
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)

    done = refine(home, 1, "damaged")
    assert "computed anew" in done.stderr
    assert not result_of(home / "damaged")["transfer"]["modes"]["is_reused"]
    np.testing.assert_array_equal(fields(home / "damaged"), fields(home / "out-1"))


def test_nothing_is_left_where_no_condition_can_be_solved(home: Path) -> None:
    (home / "none.toml").write_text(JOB.replace("conditions = 6", "conditions = 2"))
    text = (home / "conditions.py").read_text().replace("if i == spoilt:", "if i == spoilt or True:")
    (home / "hopeless.py").write_text(text)
    (home / "none.toml").write_text((home / "none.toml").read_text().replace("conditions.py", "hopeless.py"))
    done = lsr_hpc(home, "refine", "none.toml", "--out", "none")
    assert done.returncode == 2
    assert "is nan at point" in done.stderr
    assert not [*home.glob("*none.running*")]
    assert not (home / "none").exists()
