"""Runs of the real step on a disk that fills up, and on a read-only one; needs the right to mount."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from lsr_hpc.pipeline.layout import RunLayout
from tests.pipeline.conftest import Runs, result
from tests.pipeline.test_faults import begun

pytestmark = pytest.mark.mpi


@pytest.fixture
def on_small_disk(runs: Runs, small_disk: Path) -> RunLayout:
    """A run that has its identity and nothing else."""
    shutil.copytree(begun(runs).root, small_disk / "run")
    return RunLayout(small_disk / "run")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Predictor and network of the same job."""
    runs = Runs(tmp_path_factory.mktemp("undisturbed"))
    layout = begun(runs)
    runs.lsr("resume", layout.root)
    return delivered(layout)


def delivered(layout: RunLayout) -> dict[str, bytes]:
    paths = sorted(layout.root.glob("[np]*/*.safetensors"))
    assert paths
    return {path.relative_to(layout.root).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("pages_left", [0, 1, 8, 16, 32])
def test_full_disk_ends_the_run_in_words_and_once_freed_it_goes_on(
    runs, on_small_disk, undisturbed, pages_left
):
    """The fewer pages are left, the earlier: in the specification, a checkpoint or the delivery."""
    ballast = on_small_disk.root.parent / "ballast"
    state = os.statvfs(ballast.parent)
    ballast.write_bytes(bytes((state.f_bavail - pages_left) * state.f_frsize))

    printed = runs.lsr("resume", on_small_disk.root, code=76)
    assert "No space left on device" in printed
    assert "Traceback" not in printed
    assert f"lsr-hpc resume {on_small_disk.root}" in printed

    ballast.unlink()
    runs.lsr("resume", on_small_disk.root)
    assert result(on_small_disk)["status"] == "done"
    assert delivered(on_small_disk) == undisturbed
    runs.lsr("verify", on_small_disk.root)


def test_read_only_disk_is_refused_and_nothing_is_lost(runs, on_small_disk, undisturbed):
    disk = str(on_small_disk.root.parent)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    printed = runs.lsr("resume", on_small_disk.root, code=2)
    assert "no permission to write" in printed
    assert "Traceback" not in printed
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    runs.lsr("resume", on_small_disk.root)
    assert delivered(on_small_disk) == undisturbed
