"""``lsr-hpc report``: sound HTML by itself, figures that show, and the numbers of the run."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from lsr_hpc.build import build_problem
from lsr_hpc.cli import main
from lsr_hpc.field_sample import grid_axes, read_fields, sample_fields
from lsr_hpc.job import load_job
from lsr_hpc.predictor import RefinedPredictor
from lsr_hpc.problem import Evaluation
from lsr_hpc.report.data import load_run
from tests.mpi.conftest import REPOSITORY
from tests.report.page import Page

pytestmark = pytest.mark.mpi
PNG = b"\x89PNG\r\n\x1a\n"
PROBE = """
import sys
from lsr_hpc.cli import main
code = main(["report", *sys.argv[1:]])
print(*[name for name in ("mpi4py.MPI", "petsc4py", "slepc4py", "distributed") if name in sys.modules])
sys.exit(code)
"""


def report(*words: object) -> int:
    return main(["report", *map(str, words)])


@pytest.fixture(scope="module")
def family_page(family: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    out = tmp_path_factory.mktemp("page") / "out"
    assert report(family, "--out", out) == 0
    return out, Page((out / "report.html").read_text())


def assert_is_a_picture_of_something(png: bytes) -> None:
    from matplotlib.image import imread

    assert png.startswith(PNG)
    pixels = imread(io.BytesIO(png), format="png")[..., :3]
    assert pixels.shape[0] > 200
    assert pixels.shape[1] > 500
    assert 0.02 < float((pixels.min(axis=2) < 0.99).mean()) < 0.98


def test_page_holds_all_of_its_figures_and_they_are_files_too(family_page: tuple[Path, Page]) -> None:
    out, page = family_page
    files = {path.read_bytes() for path in (out / "figures").glob("*.png")}
    assert {png for png, _ in page.images} == files
    # Errors, timeline, memory; field, spectrum and rank of two instances.
    assert len(page.images) == 9
    for png, alternative in page.images:
        assert_is_a_picture_of_something(png)
        assert len(alternative) > 20


def test_numbers_of_the_page_are_those_of_the_run(family: Path, family_page: tuple[Path, Page]) -> None:
    _, page = family_page
    result = json.loads((family / "result.json").read_text())
    assert f"from {result['error']['before']:.2e} to {result['error']['after']:.2e}" in page.text
    for instance in result["instances"]:
        for value in (*instance["error"].values(), *instance["residual"].values()):
            assert f"{value:.3e}" in page.cells or f"{value:.4g}" in page.cells
    assert result["versions"]["petsc"] in page.cells
    phases = {cost["phase"]: cost for cost in result["phases"]}
    assert list(phases) == ["prepare", "basis", "jacobian", "solve", "resolve", "check"]
    assert phases["basis"]["flops"] > 0
    assert phases["basis"]["received_bytes"] > 0
    for cost in phases.values():
        assert f"{round(cost['messages']):,}" in page.cells
        assert f"{cost['seconds']:.4g}" in page.cells or f"{cost['seconds']:.3e}" in page.cells
    assert 'name = "antiderivative"' in page.text


def test_fields_on_disk_are_errors_of_the_stored_predictor(family: Path) -> None:
    evaluation = build_problem(load_job(family / "job.toml")).instance(2).evaluation
    assert evaluation is not None
    (x,), reference = evaluation.take(slice(None))
    predictor = RefinedPredictor.load(family / "predictor", 2)
    kept = read_fields(family / "fields" / "instance-00002.safetensors")
    assert kept["points"].shape == (100, 1)
    # Kept in single precision.
    expected = (predictor(x) - reference).detach().numpy()
    assert abs(kept["refined"] - expected).max() <= 1e-6 * abs(expected).max()
    start = (predictor.network(x) - reference).detach().numpy()
    assert abs(kept["start"] - start).max() <= 1e-6 * abs(start).max()


def test_timeline_has_every_phase_of_every_rank_without_overlap(family: Path) -> None:
    run = load_run(family)
    assert {phase.mpi_rank for phase in run.phases} == {0, 1}
    for mpi_rank in (0, 1):
        own = [phase for phase in run.phases if phase.mpi_rank == mpi_rank]
        assert [p.name for p in own].count("basis") == 3
        assert all(a.end <= b.begin + 1e-3 for a, b in pairwise(own))
        assert math.fsum(p.end - p.begin for p in own) <= run.result["seconds"]["total"]
        assert all(p.peak_rss_bytes > 2**24 for p in own)


def test_rounds_are_shown(rounds: Path, tmp_path: Path) -> None:
    assert report(rounds, "--out", tmp_path / "out") == 0
    page = Page((tmp_path / "out" / "report.html").read_text())
    names = {path.name for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert names == {f"{n}.png" for n in ("field", "spectrum", "rank", "rounds", "timeline", "memory")}
    (instance,) = load_run(rounds).instances
    assert set(instance.fields) == {"points", "reference", "start", "refined", "network"}
    assert grid_axes(instance.fields["points"]) is not None
    assert {p.name for p in load_run(rounds).phases} >= {"basis", "solve", "align", "network"}
    costs = {cost["phase"]: cost for cost in json.loads((rounds / "result.json").read_text())["phases"]}
    assert set(costs) >= {"basis", "solve", "align", "network", "checkpoint"}
    assert costs["align"]["flops"] > 0
    assert costs["align"]["messages"] > 0
    for record in instance.records:
        value = record["network_error"]
        assert (f"{value:.4g}" if value >= 1e-3 else f"{value:.3e}") in page.cells


def test_several_runs_are_compared(family: Path, rounds: Path, tmp_path: Path) -> None:
    assert report(family, rounds, family, "--out", tmp_path / "out") == 0
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "3 runs compared" in page.text
    assert {"family-1", "run", "family-3"} <= set(page.cells)
    assert (tmp_path / "out" / "figures" / "comparison-cost.png").exists()


@pytest.mark.parametrize(
    "name", ["result.json", "timeline.jsonl", "fields/instance-00000.safetensors", "MANIFEST.json"]
)
def test_damaged_directory_is_refused_and_nothing_written(
    family: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(family, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 4
    (copy / name).write_bytes(bytes(content))
    assert report(copy) == 2
    assert "lsr-hpc verify" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"copy"}


def test_damaged_job_of_rounds_is_refused(rounds: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(rounds, tmp_path / "copy")
    (copy / "job.toml").write_text((copy / "job.toml").read_text().replace("rank = 40", "rank = 41"))
    assert report(copy) == 2


@pytest.mark.parametrize("what", ["missing", "empty", "unfinished"])
def test_what_is_no_finished_run_is_refused(
    rounds: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "there"
    if what == "empty":
        directory.mkdir()
    if what == "unfinished":
        shutil.copytree(rounds, directory)
        (directory / "result.json").unlink()
    assert report(directory) == 2
    expected = "lsr-hpc resume" if what == "unfinished" else "give --out of refine or run"
    assert expected in capsys.readouterr().err


def test_place_that_holds_something_else_is_refused(family: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("mine")
    assert report(family, "--out", tmp_path / "letters") == 2
    assert [p.name for p in (tmp_path / "letters").iterdir()] == ["a.txt"]


def test_report_starts_neither_mpi_nor_petsc(family: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(family), "--out", str(tmp_path / "out")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""


def test_large_grids_are_thinned_to_smaller_grids_and_small_ones_kept() -> None:
    import torch

    axis, other = torch.linspace(0, 1, 300).double(), torch.linspace(-1, 1, 200).double()
    x = torch.cartesian_prod(axis, other)
    evaluation = Evaluation(inputs=(x,), reference=x[:, :1] * 2)
    kept = sample_fields(evaluation, {"start": lambda x: 3 * x[:, :1]}, 1)
    axes = grid_axes(kept["points"].double().numpy())
    assert axes is not None
    assert 10_000 < len(kept["points"]) <= 20_000
    torch.testing.assert_close(kept["start"], kept["points"][:, :1])
    # Of many instances each has less room; points that are no grid are thinned evenly.
    shuffled = Evaluation(inputs=(x[:50_001],), reference=x[:50_001])
    assert len(sample_fields(shuffled, {}, 4000)["points"]) == 100
    assert len(sample_fields(Evaluation(inputs=(x[:50],), reference=x[:50]), {}, 1)["points"]) == 50


def test_page_lies_in_the_run_by_default_which_stays_intact(
    family: Path, rounds: Path, tmp_path: Path, capsys
) -> None:
    for directory in (family, rounds):
        run = tmp_path / directory.name
        shutil.copytree(directory, run)
        assert report(run) == 0
        assert report(run) == 0
        assert (run / "report.html").exists()
        assert main(["verify", str(run)]) == 0
    assert report(family, rounds) == 2
    assert "name it with --out" in capsys.readouterr().err
