"""Controllers as processes of their own, under time limits, and a look at what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from lsr_hpc.job import load_job
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.record import write_record
from tests.mpi.conftest import REPOSITORY, mpi_environment

MARK = "LSR_TEST_RUN"


class Runs:
    """Run directories and controllers of one test; all their processes carry the test's mark."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.mark = str(home)
        self._started: list[subprocess.Popen[str]] = []

    def job(self, body: str, *, instances: int = 1, **settings: object) -> Path:
        """A job file."""
        # The shipped functions read checkpoints, which these bodies do not write.
        values = {
            "ranks": 2,
            "body": f"tests.pipeline.bodies:{body}",
            "after_round": [],
            "at_end": [],
        } | settings
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        path = self.home / "job.toml"
        path.write_text(
            "\n".join([
                '[problem]\nfunction = "tests.pipeline.problem:build"\n[problem.args]',
                f"instances = {instances}\n[run]",
                *lines,
            ])
        )
        return path

    def begun(self, body: str, *, instances: int = 1, name: str = "run", **settings: object) -> RunLayout:
        """A run directory without any step yet, so that no test but one has to look at the problem."""
        layout = RunLayout(self.home / name)
        layout.root.mkdir(mode=0o700)
        job = load_job(self.job(body, instances=instances, **settings))
        write_record(layout, job, "toy", instances)
        return layout

    def layout(self, root: Path) -> RunLayout:
        return RunLayout(root)

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """A command in the background."""
        process = subprocess.Popen(
            [sys.executable, "-m", "lsr_hpc.cli", *map(str, words)],
            cwd=REPOSITORY,
            env=mpi_environment() | {"PYTHONPATH": str(REPOSITORY), MARK: self.mark, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def lsr(self, *words: str | Path, code: int = 0, limit_s: float = 60.0) -> str:
        """A command to its end; returns what it printed."""
        return self.ended(self.start(*words), code, limit_s)

    def ended(self, process: subprocess.Popen[str], code: int = 0, limit_s: float = 60.0) -> str:
        """Wait for the end of a command; returns what it printed."""
        output, _ = process.communicate(timeout=limit_s)
        assert process.returncode == code, output
        return output

    def processes(self, word: str = "") -> list[int]:
        """Living processes of this test whose command line has a word."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (directory / "environ").read_bytes().split(b"\0")
                command = (directory / "cmdline").read_bytes().decode(errors="replace")
                if f"{MARK}={self.mark}".encode() in environment and word in command:
                    found.append(int(directory.name))
        return found

    def ranks(self) -> list[int]:
        """Living ranks, not the launcher in front of them."""
        return [
            pid
            for pid in self.processes("lsr_hpc.pipeline.worker")
            if "python" in Path(f"/proc/{pid}/exe").readlink().name
        ]

    def end_all(self) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._started:
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def eventually(condition: Callable[[], object], limit_s: float = 20.0) -> object:
    """Wait until a condition holds; returns what made it hold."""
    until = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return found


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """Every process that a test has started must be gone soon after the command has ended."""
    made = Runs(tmp_path)
    try:
        yield made
        eventually(lambda: not made.processes(), limit_s=10.0)
    finally:
        made.end_all()


def events(layout: RunLayout, kind: str) -> list[dict[str, object]]:
    """Events of a kind in the order in which they were written."""
    lines = [json.loads(line) for line in layout.metrics.read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def result(layout: RunLayout) -> dict[str, object]:
    """The result of a run."""
    content: dict[str, object] = json.loads(layout.result.read_text())
    return content
