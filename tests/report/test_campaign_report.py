"""``lsr-hpc report`` on a campaign: what its members came to, which did worst, and which failed and why."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lsr_hpc.cli import main
from tests.mpi.conftest import REPOSITORY
from tests.report.page import Page
from tests.report.test_report import PROBE, assert_is_a_picture_of_something

pytestmark = pytest.mark.mpi


def report(*words: object) -> int:
    return main(["report", *map(str, words)])


def shown(number: float) -> str:
    """As a cell shows it."""
    return f"{number:.4g}" if 1e-3 <= abs(number) < 1e5 or number == 0 else f"{number:.3e}"


@pytest.fixture(scope="module")
def page(campaign: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    out = tmp_path_factory.mktemp("page") / "out"
    assert report(campaign, "--out", out) == 0
    return out, Page((out / "report.html").read_text())


def test_statistics_are_those_of_the_table(campaign: Path, page: tuple[Path, Page]) -> None:
    result = json.loads((campaign / "result.json").read_text())
    text, cells = page[1].text, page[1].cells
    assert "4 of 5 members are done, 1 failed" in text
    for found in (result["error"]["before"], result["error"]["after"], result["gain"]):
        for value in found.values():
            assert shown(value) in cells
    assert f"{result['gain']['worst']:.3g} at worst, and 4 improved" in text


def test_every_member_is_listed_with_a_link_that_leads_to_it(campaign: Path, page: tuple[Path, Page]) -> None:
    out, read = page
    with (campaign / "campaign.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert row["name"] in read.cells
        if row["gain"]:
            assert shown(float(row["gain"])) in read.cells
    assert read.links
    for link in read.links:
        target = (out / link).resolve()
        assert target.is_dir()
        assert target.is_relative_to(campaign.resolve())
    done = {path.name for path in (campaign / "members").iterdir() if not path.name.startswith(".")}
    assert done < {Path(link).name for link in read.links}


def test_worst_members_come_first_and_are_shown_in_full(campaign: Path, page: tuple[Path, Page]) -> None:
    with (campaign / "campaign.csv").open() as file:
        done = [row for row in csv.DictReader(file) if row["state"] == "done"]
    worst = max(done, key=lambda row: float(row["error_after"]))["name"]
    text = page[1].text
    assert f"Worst member: member {worst}" in text
    assert "Median member: member" in text
    table = text[text.index("Worst members") :]
    ordered = sorted(done, key=lambda row: -float(row["error_after"]))
    places = [table.index(row["name"]) for row in ordered]
    assert places == sorted(places)


def test_failures_are_shown_with_their_causes(page: tuple[Path, Page]) -> None:
    assert any("ZeroDivisionError: deliberate" in cell for cell in page[1].cells)
    assert any('problem.args.fault = "raise"' in cell for cell in page[1].cells)
    assert "lsr-hpc resume" in page[1].text


def test_figures_show_something_and_are_files_too(page: tuple[Path, Page]) -> None:
    out, read = page
    files = {path.name: path.read_bytes() for path in (out / "figures").glob("*.png")}
    assert {png for png, _ in read.images} == set(files.values())
    assert {"campaign.png", "axis-subspace.rank.png", "worst-field.png", "median-field.png"} <= set(files)
    for png, alternative in read.images:
        assert_is_a_picture_of_something(png)
        assert len(alternative) > 20


def test_settings_are_compared(campaign: Path, page: tuple[Path, Page]) -> None:
    by = json.loads((campaign / "result.json").read_text())["by"]
    ranks = by["subspace.rank"]
    assert [group["value"] for group in ranks] == [3, 8]
    for group in ranks:
        assert shown(group["error"]["after"]["median"]) in page[1].cells
        assert shown(group["gain"]["worst"]) in page[1].cells


def test_page_lies_in_the_campaign_by_default_which_stays_intact(campaign: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(campaign, tmp_path / "copy")
    assert report(copy) == 0
    assert report(copy) == 0
    links = Page((copy / "report.html").read_text()).links
    assert all((copy / link).is_dir() for link in links)
    assert main(["verify", str(copy)]) == 0
    # A member with a page of its own is linked to that.
    member = next(path for path in (copy / "members").iterdir())
    assert report(member) == 0
    assert report(copy) == 0
    assert f"members/{member.name}/report.html" in Page((copy / "report.html").read_text()).links


def test_damaged_member_is_missing_and_a_damaged_table_refused(
    campaign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(campaign, tmp_path / "copy")
    with (campaign / "campaign.csv").open() as file:
        first = next(csv.DictReader(file))["name"]
    job = copy / "members" / first / "job.toml"
    job.write_text(job.read_text() + "\n")
    assert report(copy, "--out", tmp_path / "out") == 0
    text = Page((tmp_path / "out" / "report.html").read_text()).text
    assert "3 of 5 members are done, 1 failed, 1 missing" in text
    assert "not carried out yet, stopped, or damaged" in text

    table = copy / "campaign.csv"
    table.write_text(table.read_text().replace("failed", "done"))
    assert report(copy, "--out", tmp_path / "other") == 2
    assert "lsr-hpc verify" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_report_on_a_campaign_starts_neither_mpi_nor_petsc(campaign: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(campaign), "--out", str(tmp_path / "out")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
