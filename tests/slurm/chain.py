"""A job of rounds through disturbances, one after the other: ``python -m tests.slurm.chain --seed 0``.

Iterative LSR on two nodes of the private cluster goes on after each of them by itself. Its residual is slow
until the last one is over. Then predictor and network are compared, byte by byte, with those of a run that
nothing has disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lsr_hpc.checkpoint.manifest import checkpoint_directories
from lsr_hpc.pipeline.heartbeat import read_heartbeat
from lsr_hpc.pipeline.layout import RunLayout
from tests.mpi.conftest import REPOSITORY
from tests.slurm.cluster import private_cluster, until, why_not
from tests.slurm.conftest import ENDED, Jobs

__all__ = ["KINDS", "Chain", "differing", "faults_of", "undisturbed", "write_job"]

JOB = """
[problem]
function = "tests.slurm.problem:build"
path = {path}
[problem.args]
gate = {gate}
[subspace]
rank = 12
[iterate]
rounds = {rounds}
patience = {rounds}
steps = 4
tangent_rank = 10
[run]
ranks = 2
rounds_per_step = {rounds_per_step}
checkpoint_seconds = {checkpoint_s}
after_round = []
"""
CHECKPOINT_S = 3.0
MOST_LOST_S = 15.0
# slurmd that is silent for so long is taken for dead by the cluster of a chain.
SILENCE_S = 15
# Of whatever is waited for; the machine may be busy.
_LIMIT_S = 300.0
_LOOK_EVERY_S = 0.1


@dataclass
class Disturbance:
    """What became of a disturbance.

    Attributes:
        kind: One of :data:`KINDS`.
        restarts: How often SLURM has started the job again for it.
        back_s: Seconds from the disturbance until the run has got further, by ranks that were started after
            it, unless it did not notice anything.
        lost_s: Seconds from the last checkpoint before it to the last sign of life of the ranks at work.
    """

    kind: str
    restarts: int = 0
    back_s: float = 0.0
    lost_s: float = 0.0


class Chain:
    """A job on the cluster, and what can be done to it.

    Args:
        jobs: Where it runs.
        rng: Moments and nodes.
        rounds: Enough of them that they are not done before the last disturbance.
    """

    def __init__(self, jobs: Jobs, rng: random.Random, rounds: int = 6) -> None:
        self.jobs = jobs
        self.rng = rng
        self.gate = jobs.home / "gate"
        self.layout = RunLayout(jobs.home / "run")
        self.watch = _Watch(self)
        self.faults: list[str] = []
        self._dead: list[str] = []
        write_job(jobs.home / "job.toml", self.gate, rounds)
        self.number = jobs.iterate(self.layout, "--time=30", "--signal=B:USR1@120", MAX_RESTARTS="100")

    def suffer(self, kind: str) -> Disturbance:
        """Disturb the job once it is at work, and wait until it has got further than before."""
        self._wait_for_progress(self.watch.newest())
        time.sleep(self.rng.uniform(0.0, 2.0 * CHECKPOINT_S))
        done = Disturbance(kind)
        restarts, at_work = self.jobs.job(self.number).restarts, self.watch.attempts()
        moment = time.time()
        KINDS[kind](self)
        if kind in REQUEUED:
            until(
                lambda: self.jobs.job(self.number).restarts > restarts, _LIMIT_S, f"a new start after {kind}"
            )
            at_work = self.watch.attempts()
        if kind not in UNNOTICED:
            until(lambda: self.watch.attempts() > at_work, _LIMIT_S, f"ranks after {kind}")
            done.lost_s = self.watch.lost_s(at_work)
        self._wait_for_progress(self.watch.newest())
        done.back_s = time.time() - moment
        # Not before, so that what lives on there has had its chance to disturb.
        while self._dead:
            self.jobs.cluster.begin(self._dead.pop())
        done.restarts = self.jobs.job(self.number).restarts - restarts
        expected = int(kind in REQUEUED)
        if done.restarts != expected:
            self.faults.append(f"{kind}: {done.restarts} restarts, not {expected}")
        if done.lost_s > MOST_LOST_S:
            self.faults.append(f"{kind}: {done.lost_s:.1f} s of work were lost")
        return done

    def to_its_end(self) -> None:
        """Let it run, and wait for its end."""
        self.gate.touch()
        job = self.jobs.ended(self.number, _LIMIT_S)
        if (job.state, job.exit_code) != ("COMPLETED", "0:0"):
            self.faults.append(f"the job ends with {job}")

    def processes(self) -> list[int]:
        """Living processes of the run: controllers, light workers, ranks and what has started them."""
        cluster = self.jobs.cluster
        words = (str(self.layout.root), "spawn_main", "pipeline.node_worker")
        return [pid for word in words for pid in cluster.processes(word)]

    def _wait_for_progress(self, before: object) -> None:
        def further() -> bool:
            job = self.jobs.job(self.number)
            assert job.state not in ENDED, f"{job}\n{self.jobs.log(self.number)}"
            return self.watch.newest() != before

        until(further, _LIMIT_S, "a checkpoint")

    # --- what can be done to it -------------------------------------------------------------------------

    def time_limit(self) -> None:
        shown = self.jobs.cluster.command("squeue", "--noheader", "--format=%M", f"--jobs={self.number}")
        minutes = int(shown.split(":")[-2]) + 60 * (int(shown.split(":")[-3]) if shown.count(":") > 1 else 0)
        restarts = self.jobs.job(self.number).restarts
        # One to two minutes are left: within the notice of 120 s that the job has asked for.
        self._set_limit(minutes + 2)
        until(
            lambda: self.jobs.job(self.number).restarts > restarts,
            _LIMIT_S,
            "the signal before the time limit",
        )
        self._set_limit(30)

    def _set_limit(self, minutes: int) -> None:
        self.jobs.cluster.command("scontrol", "update", f"jobid={self.number}", f"timelimit={minutes}")

    def preemption(self) -> None:
        words = ("-p", "urgent", "-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
        assert self.jobs.ended(self.jobs.sbatch(*words), _LIMIT_S).state == "COMPLETED"

    def requeue(self) -> None:
        self.jobs.cluster.command("scontrol", "requeue", self.number)

    def signal_to_ranks(self) -> None:
        self.jobs.cluster.command("scancel", "--signal=TERM", self.number)

    def signal_to_script(self) -> None:
        self.jobs.cluster.command("scancel", "--batch", "--signal=USR1", self.number)

    def node_set_down(self) -> None:
        node = self._node()
        self.jobs.cluster.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def slurmd_killed(self) -> None:
        self._dead.append(self._node())
        self.jobs.cluster.kill(self._dead[-1])

    def slurmctld_killed(self) -> None:
        self.jobs.cluster.kill("slurmctld")
        time.sleep(self.rng.uniform(2.0, 10.0))
        self.jobs.cluster.begin("slurmctld")
        until(self.jobs.cluster.answers, _LIMIT_S, "slurmctld")

    def controller_killed(self) -> None:
        self.jobs.kill_controller(self.layout)

    def rank_killed(self) -> None:
        os.kill(self.rng.choice(until(self.jobs.ranks, 30, "ranks")), signal.SIGKILL)

    def _node(self) -> str:
        listed = self.jobs.cluster.command("scontrol", "show", "hostnames", self.jobs.job(self.number).nodes)
        return self.rng.choice(listed.split())


KINDS: dict[str, Callable[[Chain], None]] = {
    "time limit": Chain.time_limit,
    "preemption": Chain.preemption,
    "scontrol requeue": Chain.requeue,
    "TERM to the ranks": Chain.signal_to_ranks,
    "USR1 to the script": Chain.signal_to_script,
    "node set down": Chain.node_set_down,
    "slurmd killed": Chain.slurmd_killed,
    "slurmctld killed": Chain.slurmctld_killed,
    "controller killed": Chain.controller_killed,
    "rank killed": Chain.rank_killed,
}
# What the run does not notice, and what does not end the job's start.
UNNOTICED = {"slurmctld killed"}
REQUEUED = KINDS.keys() - UNNOTICED - {"rank killed"}


class _Watch:
    """Looks at the run all the time: its newest checkpoint, and that nothing is there twice."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._newest: tuple[str, float] | None = None
        # Newest checkpoint when the ranks of an attempt were last seen, by number of the attempt.
        self._at_end: dict[int, float] = {}
        self._end = threading.Event()
        self.faults: set[str] = set()

    @contextmanager
    def looking(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def newest(self) -> tuple[str, float] | None:
        """Name of the newest checkpoint, and when it was written."""
        return self._newest

    def attempts(self) -> int:
        """How many attempts have had ranks at work."""
        return len(self._begun())

    def lost_s(self, number: int) -> float:
        """Seconds between the last checkpoint and the last sign of life of an attempt, counted from 1."""
        begun = self._begun()[number - 1]
        beat = read_heartbeat(begun)
        saved = self._at_end.get(number)
        return 0.0 if beat is None or saved is None else max(0.0, beat["time"] - saved)

    def _begun(self) -> list[Path]:
        beats = (files.heartbeat for _, _, files in self._chain.layout.attempts(0))
        existing = [beat for beat in beats if beat.exists()]
        return sorted(
            existing, key=lambda beat: json.loads((beat.parent / "spec.json").read_text())["sequence"]
        )

    def _look(self) -> None:
        while not self._end.wait(_LOOK_EVERY_S):
            found = []
            for path in checkpoint_directories(self._chain.layout.checkpoints(0)):
                with suppress(OSError):
                    found.append((path.name, path.stat().st_ctime))
            if found:
                self._newest = max(found, key=lambda item: item[1])
                self._at_end[self.attempts()] = self._newest[1]
            self._look_for_doubles()

    def _look_for_doubles(self) -> None:
        at_work = {_spec_of(pid) for pid in self._chain.jobs.ranks()} - {""}
        if len(at_work) > 1:
            self.faults.add(f"ranks of {len(at_work)} attempts at once: {sorted(at_work)}")


def _spec_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").rpartition(b"\0")[2].decode()
    return ""


def write_job(path: Path, gate: Path | None = None, rounds: int = 6) -> Path:
    """The job of a chain, slow as long as there is no file ``gate``; a round then lasts half a minute."""
    text = JOB.format(
        path=json.dumps(str(REPOSITORY)),
        gate=json.dumps(str(gate) if gate else ""),
        checkpoint_s=CHECKPOINT_S,
        rounds=rounds,
        rounds_per_step=rounds // 2,
    )
    path.write_text(text)
    return path


def undisturbed(jobs: Jobs, rounds: int = 6) -> RunLayout:
    """The same run on as many ranks, with nothing to disturb it."""
    layout = RunLayout(jobs.home / "undisturbed")
    words = ("run", write_job(jobs.home / "undisturbed.toml", rounds=rounds), "--out", layout.root)
    jobs.finished(jobs.start(*words), limit_s=_LIMIT_S)
    return layout


def differing(here: RunLayout, there: RunLayout) -> list[str]:
    """Files of predictor and network that are not alike, byte by byte."""
    names = [path.relative_to(there.root) for path in there.root.glob("[np]*/*.safetensors")]
    assert len(names) >= 3, names
    pairs = [(here.root / name, there.root / name) for name in names]
    return [str(a) for a, b in pairs if not a.exists() or a.read_bytes() != b.read_bytes()]


def faults_of(chain: Chain, other: RunLayout) -> list[str]:
    """What is wrong with a chain that has come to its end."""
    faults = chain.faults + sorted(chain.watch.faults)
    faults += [f"{name} is not as in the undisturbed run" for name in differing(chain.layout, other)]
    verified = chain.jobs.start("verify", chain.layout.root)
    printed, _ = verified.communicate(timeout=60)
    if verified.returncode:
        faults.append(f"verify ends with {verified.returncode}: {printed}")
    try:
        until(lambda: not chain.processes(), 15, "")
    except TimeoutError:
        faults.append(f"left running: {chain.processes()}")
    listed = chain.jobs.cluster.command("squeue", "--noheader", "--states=all", "--format=%i %j %Z")
    jobs = [line.split()[0] for line in listed.splitlines() if line.endswith(f"iterate {chain.jobs.home}")]
    if jobs != [chain.number]:
        faults.append(f"jobs {jobs}, not one")
    return faults


def _carried_out(jobs: Jobs, rng: random.Random, kinds: list[str]) -> list[str]:
    """A chain from its beginning to its end, and what is wrong with it."""
    rounds = 2 * (3 + len(kinds))
    other = undisturbed(jobs, rounds)
    chain = Chain(jobs, rng, rounds)
    with chain.watch.looking():
        print("| disturbance | restarts | goes on after | lost work |\n| --- | --- | --- | --- |", flush=True)
        for kind in kinds:
            done = chain.suffer(kind)
            print(f"| {kind} | {done.restarts} | {done.back_s:.0f} s | {done.lost_s:.1f} s |", flush=True)
        chain.to_its_end()
    return faults_of(chain, other)


def main() -> int:
    """Run a chain and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.chain", description=__doc__)
    parser.add_argument("--disturbances", type=int, default=2 * len(KINDS), metavar="N")
    parser.add_argument("--only", choices=sorted(KINDS), action="append", help="of these kinds alone")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    kinds: list[str] = []
    while len(kinds) < options.disturbances:
        kinds += rng.sample(sorted(options.only or KINDS), len(options.only or KINDS))
    home = Path(tempfile.mkdtemp(prefix="lsr-chain-"))
    if reason := why_not():
        print(f"no private SLURM: {reason}")
        return 76
    with private_cluster(SILENCE_S) as cluster:
        jobs = Jobs(cluster, home)
        try:
            faults = _carried_out(jobs, rng, kinds[: options.disturbances])
        finally:
            jobs.end_all()
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"{len(faults)} faults; {home} is kept" if faults else "no faults")
    if not faults:
        shutil.rmtree(home)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
