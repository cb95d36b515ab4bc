"""Campaigns as processes of their own, under time limits, and what lies in their directories."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsr_hpc.campaign.layout import CampaignLayout
from lsr_hpc.campaign.record import read_record
from tests.pipeline.conftest import Runs, eventually


class Campaigns(Runs):
    """Campaigns of one test, which start ranks with torch several times: the limits are generous."""

    def ended(self, process: subprocess.Popen[str], code: int = 0, limit_s: float = 300.0) -> str:
        return super().ended(process, code, limit_s)

    def lsr(self, *words: str | Path, code: int = 0, limit_s: float = 300.0) -> str:
        return super().lsr(*words, code=code, limit_s=limit_s)

    def write(self, *axes: str, name: str = "job.toml", **campaign: object) -> Path:
        """A job file with axes as lines of TOML; HOME stands for the test's directory."""
        values = {"ranks_per_member": 2, "at_once": 1} | campaign
        path = self.home / name
        path.write_text(
            "\n".join([
                '[problem]\nfunction = "tests.campaign.problem:build"\n',
                f"[problem.args]\nhome = {json.dumps(str(self.home))}\n",
                '[subspace]\nrank = 8\n[compute]\njacobian = "matrix_free"\n[campaign]',
                *(f"{key} = {json.dumps(value)}" for key, value in values.items()),
                "[campaign.axes]",
                *(axis.replace("HOME", str(self.home)) for axis in axes),
            ])
        )
        return path

    def carried_out(self, job: Path, name: str = "out", code: int = 0) -> Directory:
        """A campaign to its end."""
        found = Directory(CampaignLayout(self.home / name))
        found.printed = self.lsr("campaign", job, "--out", found.root, code=code)
        return found

    def directory(self, name: str = "out") -> Directory:
        return Directory(CampaignLayout(self.home / name))


class Directory:
    """The directory of a campaign."""

    def __init__(self, layout: CampaignLayout) -> None:
        self.layout = layout
        self.root = layout.root
        self.printed = ""

    @property
    def result(self) -> dict:
        return json.loads(self.layout.result.read_text())

    @property
    def names(self) -> list[str]:
        """Members that are asked for."""
        return [member.name for member in read_record(self.layout).wanted_members]

    def predictors(self) -> dict[str, bytes]:
        """What every finished member has computed, by name."""
        return {
            path.name: (path / "predictor" / "instance-00000.safetensors").read_bytes()
            for path in sorted(self.layout.members.iterdir())
            if not path.name.startswith(".")
        }

    def answers(self) -> dict[str, Counter]:
        """How the tries of every member ended: done, failed, or none without an answer."""
        found = {}
        for name in self.names:
            tries = [files.result for _, files in self.layout.member(name).attempts()]
            found[name] = Counter(
                json.loads(path.read_text())["status"] if path.exists() else "none" for path in tries
            )
        return found

    def done_twice(self) -> list[str]:
        return [name for name, answers in self.answers().items() if answers["done"] != 1]


@pytest.fixture
def campaigns(tmp_path: Path) -> Iterator[Campaigns]:
    """Every process that a test has started must be gone soon after the command has ended."""
    made = Campaigns(tmp_path)
    try:
        yield made
        eventually(lambda: not made.processes(), limit_s=10.0)
    finally:
        made.end_all()
