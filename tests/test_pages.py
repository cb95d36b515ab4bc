"""The documentation builds without a warning, its equations are drawn, and its pages open in a browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.extras import require, require_modules
from tests.report.browser import find_browser, started_browser

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, built as `make docs` does, with two processes."""
    require_modules("sphinx", "myst_parser", "furo", "latex2mathml")
    out = tmp_path_factory.mktemp("pages")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-j", "2"]
    done = subprocess.run(
        [*command, "-d", str(out / "doctrees"), str(DOCS), str(out / "html")],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_every_document_is_a_page_that_the_index_leads_to(pages: Path) -> None:
    index = (pages / "index.html").read_text()
    for document in DOCS.glob("*.md"):
        assert (pages / f"{document.stem}.html").is_file()
        assert document.stem == "index" or f'href="{document.stem}.html"' in index
    # The README and the changelog are those of the repository.
    assert "Two commands" in (pages / "readme.html").read_text()
    assert "Unreleased" in (pages / "changelog.html").read_text()


def test_links_between_pages_lead_somewhere(pages: Path) -> None:
    for page in pages.glob("*.html"):
        for target in re.findall(r'href="([^"#:]+\.html)(?:#[^"]*)?"', page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name} links to {target}"


def test_public_functions_are_in_the_reference(pages: Path) -> None:
    refine = (pages / "generated" / "lsr_hpc.oneshot.html").read_text()
    assert 'id="lsr_hpc.oneshot.refine"' in refine
    for word in ("Parameters", "Returns", "Raises", "Collective"):
        assert word in refine
    assert (
        'href="generated/lsr_hpc.oneshot.html#lsr_hpc.oneshot.refine"'
        in (pages / "reference.html").read_text()
    )


def test_equations_are_drawn_by_the_browser_itself(pages: Path, tmp_path: Path) -> None:
    method = (pages / "method.html").read_text()
    assert method.count('<div class="math"><math') >= 6
    assert "MathJax" not in method
    program = find_browser()
    require(program is not None, "no Chromium here")
    assert program is not None
    with started_browser(program, tmp_path / "profile") as browser:
        seen = browser.look_at(pages / "method.html")
        assert seen["errors"] == []
        assert not [url for url in seen["requests"] if not url.startswith("file:")]
        assert seen["screen"]["equations"]
        for width, height in seen["screen"]["equations"]:
            assert width > 100
            assert height > 20
