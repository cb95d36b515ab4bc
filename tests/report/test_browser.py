"""Every kind of page in a real browser, on the screen and on paper."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsr_hpc.cli import main
from tests.extras import require
from tests.report.browser import Browser, find_browser, started_browser

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    require(program is not None, "no Chromium here")
    assert program is not None
    with started_browser(program, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize(
    ("kind", "runs"),
    [
        ("refine", ["family"]),
        ("run", ["rounds"]),
        ("campaign", ["campaign"]),
        ("comparison", ["family", "rounds"]),
    ],
)
def test_page_is_whole_on_screen_and_on_paper(
    kind: str, runs: list[str], browser: Browser, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    directories = [str(request.getfixturevalue(run)) for run in runs]
    assert main(["report", *directories, "--out", str(tmp_path / "out")]) == 0
    page = tmp_path / "out" / "report.html"
    figures = len(list((tmp_path / "out" / "figures").glob("*.png")))
    assert figures >= 6

    seen = browser.look_at(page)
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert seen["screen"]["title"].startswith("lsr_hpc: ")
    for medium in ("screen", "print"):
        found = seen[medium]
        assert len(found["images"]) == figures
        for image in found["images"]:
            assert image["natural"] > 500
            assert image["width"] > 400
            assert image["height"] > 100
            assert image["left"] >= 0
            assert image["right"] <= found["width"] + 1
        # Nothing has to be moved sideways to be read; wide tables have a bar of their own on the screen.
        assert found["scrollWidth"] <= found["width"]
    assert seen["print"]["cut"] == 0
    # Every figure is on paper, too. Skia writes the heads of objects in the clear.
    sheets = len(re.findall(rb"/Type\s*/Page\b", seen["pdf"]))
    assert sheets >= figures // 4
    assert len(re.findall(rb"/Subtype\s*/Image\b", seen["pdf"])) >= figures


def test_complaints_and_requests_of_a_page_are_noticed(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><title>bad</title><img src='missing.png'>"
        "<script>console.error('here'); nothing.at</script>"
        "<table style='width:3000px'><tr><td>wide</table>"
    )
    seen = browser.look_at(page)
    assert any("here" in complaint for complaint in seen["errors"])
    assert any("nothing is not defined" in complaint for complaint in seen["errors"])
    assert [Path(url).name for url in seen["requests"]] == ["missing.png"]
    assert seen["screen"]["images"][0]["natural"] == 0
    assert seen["screen"]["scrollWidth"] > seen["screen"]["width"]
    assert seen["print"]["cut"] == 1


def test_links_of_a_campaign_lead_to_pages_that_open(
    browser: Browser, campaign: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(campaign, tmp_path / "copy")
    member = next(path for path in (copy / "members").iterdir())
    assert main(["report", str(member)]) == 0
    assert main(["report", str(copy)]) == 0
    assert f'href="members/{member.name}/report.html"' in (copy / "report.html").read_text()
    seen = browser.look_at(member / "report.html")
    assert seen["errors"] == seen["requests"] == []
    assert member.name in seen["screen"]["title"]
