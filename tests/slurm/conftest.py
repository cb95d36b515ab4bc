"""The private cluster, and jobs on it under time limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lsr_hpc.pipeline.layout import RunLayout
from tests.mpi.conftest import REPOSITORY, mpi_environment
from tests.pipeline.conftest import Runs
from tests.slurm.cluster import Cluster, private_cluster, until, why_not

BIN = Path(sys.executable).parent
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}


# These bodies leave no checkpoints that anything else could read.
_ALONE: dict[str, Any] = {"after_round": [], "at_end": []}


@dataclass(frozen=True)
class Job:
    """A job as ``scontrol`` shows it."""

    state: str
    restarts: int
    exit_code: str
    nodes: str


class Jobs:
    """Jobs of one test."""

    def __init__(self, cluster: Cluster, home: Path) -> None:
        self.cluster = cluster
        self.home = home
        self.runs = Runs(home)
        self._started: list[subprocess.Popen[str]] = []
        self.environment = (
            mpi_environment()
            | cluster.environment
            | {
                "PYTHONPATH": str(REPOSITORY),
                "LSR_BIN": str(BIN),
                # "Nodes" of one machine would share memory files and crash.
                "OMPI_MCA_btl": "self,tcp",
                "PATH": f"{home}:{os.environ['PATH']}",
            }
        )

    def begun(self, body: str, **settings: Any) -> RunLayout:
        """A run directory without any step yet."""
        return self.runs.begun(body, **_ALONE | settings)

    def job_file(self, body: str) -> Path:
        """A job file, without a run."""
        return self.runs.job(body, **_ALONE)

    def sbatch(self, *words: str | Path, **environment: str) -> str:
        """Submit; the job's number."""
        done = subprocess.run(
            ["sbatch", "--parsable", *map(str, words)],
            cwd=self.home,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def iterate(self, layout: RunLayout, *options: str, **environment: str) -> str:
        """Submit ``slurm/iterate.sbatch`` for a run of two ranks on two nodes."""
        shape = ["--nodes=2", "--ntasks-per-node=1"]
        script = REPOSITORY / "slurm" / "iterate.sbatch"
        return self.sbatch(
            *shape, *options, script, self.home / "job.toml", RUN=str(layout.root), **environment
        )

    def start(self, *words: str | Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """A command of ours in the background, outside any job."""
        process = subprocess.Popen(
            [*launcher, BIN / "lsr-hpc", *words],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._started.append(process)
        return process

    def finished(self, process: subprocess.Popen[str], code: int = 0, limit_s: float = 90) -> str:
        """What a command has printed at its end."""
        printed, _ = process.communicate(timeout=limit_s)
        assert process.returncode == code, printed
        return printed

    def lsr(self, *words: str | Path, code: int = 0, launcher: tuple[str, ...] = ()) -> str:
        """A command of ours to its end, outside any job; what it printed."""
        return self.finished(self.start(*words, launcher=launcher), code)

    def end_all(self) -> None:
        """End what this test has started here and left."""
        for process in self._started:
            process.terminate()
            process.communicate(timeout=20)

    def job(self, number: str) -> Job:
        """What SLURM says of a job."""
        words = self.cluster.command("scontrol", "show", "job", "--oneliner", number).split()
        shown = dict(word.partition("=")[::2] for word in words)
        return Job(shown["JobState"], int(shown["Restarts"]), shown["ExitCode"], shown.get("NodeList", ""))

    def ended(self, number: str, limit_s: float = 300) -> Job:
        """Wait for the end of a job."""
        try:
            until(lambda: self.job(number).state in ENDED, limit_s, f"the end of job {number}")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.job(number)}\n{self.log(number)}") from error
        return self.job(number)

    def log(self, number: str) -> str:
        """What a job has printed."""
        path = self.home / f"lsr-{number}.log"
        return path.read_text() if path.exists() else "no log"

    def steps(self, number: str) -> list[str]:
        """Running steps of a job that are not its batch shell."""
        listed = self.cluster.command("squeue", "--steps", "--noheader", "--format=%i", f"--jobs={number}")
        return [step for step in listed.split() if not step.endswith(("batch", "extern"))]

    def ranks(self) -> list[int]:
        """Living ranks of steps, and nothing that has started them."""
        found = []
        for pid in self.cluster.processes("lsr_hpc.pipeline.worker"):
            # It may end while we look.
            with suppress(OSError):
                if "python" in Path(f"/proc/{pid}/exe").resolve().name:
                    found.append(pid)
        return found

    def kill_controller(self, layout: RunLayout) -> None:
        (pid,) = [p for p in self.cluster.processes("--ranks") if str(layout.root) in _command_line(p)][-1:]
        os.kill(pid, signal.SIGKILL)


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """SLURM for the session; absence of its programs is a failure where LSR_REQUIRE_SLURM=1 says so."""
    if reason := why_not():
        if os.environ.get("LSR_REQUIRE_SLURM") == "1":
            pytest.fail(f"LSR_REQUIRE_SLURM=1, but {reason}", pytrace=False)
        pytest.skip(reason)
    with private_cluster() as made:
        yield made


@pytest.fixture
def jobs(cluster: Cluster, tmp_path: Path) -> Iterator[Jobs]:
    """Jobs of one test; afterwards the queue is empty, the nodes are idle and no rank is left."""
    made = Jobs(cluster, tmp_path)
    try:
        yield made
        until(lambda: not made.ranks(), 15, "the end of the ranks")
    finally:
        made.end_all()
        cluster.command("scancel", "--user=root")
        until(lambda: not cluster.command("squeue", "--noheader"), 20, "an empty queue")
        # A node that was set down comes back by itself.
        until(cluster.is_idle, 30, "idle nodes")
