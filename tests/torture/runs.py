"""A run that can be killed at any place, and what can be seen of it from outside."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from lsr_hpc.checkpoint.manifest import TEMPORARY, checkpoint_directories, load_manifest
from lsr_hpc.checkpoint.retention import Stored
from lsr_hpc.integrity import Fault
from lsr_hpc.pipeline.layout import RunLayout
from tests.mpi.conftest import REPOSITORY, mpi_environment

__all__ = ["JOB", "VICTIMS", "TormentedRun", "largest_difference"]

MARK = "LSR_TORTURE"
# Three real rounds, each of a second of computing, with a checkpoint at every boundary.
JOB = [
    "jobs/poisson_iterative.toml",
    *("--preset", "small"),
    *(
        word
        for override in (
            "problem.args.points=400",
            "problem.args.boundary_points=20",
            "subspace.rank=60",
            "iterate.tangent_rank=60",
            "iterate.rounds=3",
            "iterate.steps=4",
            "run.checkpoint_seconds=0",
        )
        for word in ("--set", override)
    ),
]
VICTIMS = ("controller", "one rank", "all ranks", "mpiexec", "light worker", "during a checkpoint write")


class TormentedRun:
    """Controllers of one run directory, one after the other; all their processes carry its mark."""

    def __init__(self, root: Path, job: list[str]) -> None:
        self.layout = RunLayout(root)
        self.output = root.with_name(f"{root.name}.log")
        self.controller: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self._job = job

    def start(self, ranks: int = 2) -> None:
        """The command that a user types, the first time and after every kill."""
        command = [sys.executable, "-m", "lsr_hpc.cli", "run", *self._job]
        with self.output.open("ab") as output:
            self.controller = subprocess.Popen(
                [*command, "--ranks", str(ranks), "--out", str(self.layout.root)],
                cwd=REPOSITORY,
                env=mpi_environment()
                | {"PYTHONPATH": str(REPOSITORY), MARK: str(self.layout.root), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.starts += 1

    def is_running(self) -> bool:
        return self.controller is not None and self.controller.poll() is None

    def processes(self) -> dict[int, str]:
        """Command lines of the living processes by their numbers."""
        found = {}
        mark = f"{MARK}={self.layout.root}".encode()
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                # Killed ones that nobody has asked about yet have an empty environment.
                if mark in (directory / "environ").read_bytes().split(b"\0"):
                    command = (directory / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(directory.name)] = command.decode(errors="replace")
        return found

    def pids(self, victim: str, rng: random.Random) -> list[int]:
        """What has to be killed; nothing if it is not there at the moment."""
        assert self.controller is not None
        if victim == "controller":
            return [self.controller.pid]
        processes = self.processes()
        if victim == "light worker":
            lights = [pid for pid, command in processes.items() if "spawn_main" in command]
            return [rng.choice(lights)] if lights else []
        of_step = {pid: c for pid, c in processes.items() if "lsr_hpc.pipeline.worker" in c}
        launchers = [pid for pid, command in of_step.items() if command.startswith("mpiexec ")]
        ranks = [pid for pid, command in of_step.items() if command.startswith(sys.executable)]
        if victim == "mpiexec":
            return launchers
        return ranks if victim == "all ranks" else rng.sample(ranks, min(1, len(ranks)))

    def is_writing(self) -> bool:
        """Whether a checkpoint is being written."""
        with suppress(OSError):
            return any(TEMPORARY in name for name in os.listdir(self.layout.checkpoints(0)))
        return False

    def newest(self) -> tuple[int, int]:
        """Round and state within it of the newest checkpoint; (0, 0) if there is none."""
        stored = []
        for directory in checkpoint_directories(self.layout.checkpoints(0)):
            # It may be deleted while we look.
            with suppress(OSError):
                loaded = load_manifest(directory)
                if not isinstance(loaded, Fault):
                    stored.append(Stored.of(*loaded))
        return max((s.progress for s in stored), default=(0, 0))

    def age_of_newest(self) -> float:
        """Seconds since something was last gained: a checkpoint, or at first the start."""
        root = self.layout.checkpoints(0)
        ages = [self.layout.root.stat().st_ctime] if self.layout.root.exists() else []
        for path in checkpoint_directories(root):
            with suppress(OSError):
                ages.append(path.stat().st_ctime)
        return time.time() - max(ages, default=time.time())

    def is_all_gone(self, limit_s: float = 10.0) -> bool:
        """Whether every process ends by itself before long."""
        until = time.monotonic() + limit_s
        while self.processes():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def end(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.controller is not None:
            self.controller.wait()


def largest_difference(undisturbed: TormentedRun, run: TormentedRun) -> float:
    """Largest relative difference of a tensor of predictor or network; exactly 0 if all bytes are equal."""
    from safetensors.numpy import load_file

    worst = 0.0
    for path in sorted(undisturbed.layout.root.glob("[np]*/*.safetensors")):
        other = run.layout.root / path.relative_to(undisturbed.layout.root)
        if path.read_bytes() == other.read_bytes():
            continue
        here, there = load_file(path), load_file(other)
        if here.keys() != there.keys():
            return float("inf")
        for name, tensor in here.items():
            change = float(np.linalg.norm(tensor - there[name]) / max(np.linalg.norm(tensor), 1e-300))
            # Equal values in files that differ are a difference too.
            worst = max(worst, change, 5e-324)
    return worst
