"""The README's example runs as printed, and links inside the documents lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CHANGELOG.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_links_to_files_exist(document):
    for target in re.findall(r"\]\(([^)#]+\.\w+)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_files_named_in_the_documents_exist():
    for document in DOCUMENTS:
        for name in re.findall(r"`((?:jobs|tests|scripts|docs|lsr_hpc)/[\w./-]+)`", document.read_text()):
            assert (REPOSITORY / name).exists(), f"{document.name} names {name}"


def test_own_model_example_runs_as_printed(tmp_path):
    section = (REPOSITORY / "README.md").read_text().partition("## Your own model")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(python|toml)\n(.*?)```", section, flags=re.DOTALL)
    mine, job, three_lines = (text for _, text in blocks)
    (tmp_path / "mine.py").write_text(mine)
    (tmp_path / "job.toml").write_text(job)
    (tmp_path / "api.py").write_text(
        "import torch\nfrom mpi4py import MPI\nfrom mine import build\n"
        + three_lines
        + "print(result.error_before, result.error_after)\nassert result.error_after < 1e-6\n"
    )
    train = (
        "import torch; torch.manual_seed(0);"
        "net = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1));"
        "torch.save(net.state_dict(), 'trained.pt')"
    )
    for command in (
        ["-c", train],
        ["api.py"],
        ["-m", "lsr_hpc.cli", "refine", "job.toml", "--out", "run"],
    ):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    assert "smaller" in done.stdout
