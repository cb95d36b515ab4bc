"""Kill runs at random moments until it is certain that nothing is lost: ``python -m tests.torture``.

Every run suffers some kills, each of a random victim at a random moment, and is typed again until it is done.
Then its predictor and network are compared with those of an undisturbed run, bit for bit if the number of MPI
ranks stayed the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.mpi.conftest import REPOSITORY
from tests.torture.runs import JOB, VICTIMS, TormentedRun, largest_difference

_MOST_STARTS = 12
_RUN_LIMIT_S = 600.0


@dataclass
class Tally:
    """What became of all kills of a victim."""

    kills: int = 0
    runs: int = 0
    starts: int = 0
    equal: int = 0
    compared: int = 0
    worst_same: float = 0.0
    worst_other: float = 0.0
    most_lost_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def main() -> int:
    """Torture runs and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, metavar="N")
    parser.add_argument("--kills-per-run", type=int, default=4, metavar="K")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the run directories here (default: a temporary one)")
    options = parser.parse_args()
    home: Path = options.out or Path(tempfile.mkdtemp(prefix="lsr-torture-"))
    home.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    undisturbed = TormentedRun(home / "undisturbed", JOB)
    if not undisturbed.layout.result.exists():
        undisturbed.start()
    if not _to_its_end(undisturbed, 2, random.Random(0)):
        print(f"the undisturbed run fails, see {undisturbed.output}")
        return 1
    seconds = json.loads(undisturbed.layout.metrics.read_text().splitlines()[-1])["wall_s"]
    print(f"undisturbed: {seconds:.1f} s", flush=True)
    tallies = {victim: Tally() for victim in VICTIMS}
    done = number = 0
    while done < options.kills:
        rng = random.Random(f"{options.seed}-{number}")
        run = TormentedRun(home / f"run-{number:03d}", JOB)
        try:
            kills = min(options.kills_per_run, options.kills - done)
            done += torment(run, undisturbed, rng, kills, seconds, tallies)
        finally:
            run.end()
        number += 1
    faults = [fault for tally in tallies.values() for fault in tally.faults]
    print(f"\n{done} kills in {number} runs, {time.monotonic() - started:.0f} s; faults: {len(faults)}\n")
    print(_table(tallies))
    for fault in faults:
        print(f"FAULT {fault}")
    if options.out is None and not faults:
        shutil.rmtree(home)
    return 1 if faults else 0


def torment(
    run: TormentedRun,
    undisturbed: TormentedRun,
    rng: random.Random,
    kills: int,
    seconds: float,
    tallies: dict[str, Tally],
) -> int:
    """Kill a run some times, let it end, and compare; returns the number of kills."""
    suffered: Counter[str] = Counter()
    # One run in five goes on with another number of ranks after the kills.
    ranks = rng.choice([2, 2, 2, 2, 1])
    faults: list[str] = []
    run.start()
    for _ in range(kills):
        victim = rng.choice(VICTIMS)
        if not _reached(run, victim, time.monotonic() + rng.uniform(0.0, 0.6 * seconds), rng):
            break
        newest, lost_s = run.newest(), run.age_of_newest()
        pids = _killed(run, victim, rng)
        if not pids:
            continue
        suffered[victim] += 1
        tallies[victim].most_lost_s = max(tallies[victim].most_lost_s, lost_s)
        where = f"{run.layout.root} after kill {sum(suffered.values())} ({victim})"
        if run.controller and run.controller.pid in pids:
            run.controller.wait()
            # At once, so that the new controller meets what the old one left; or when all of that is gone.
            if rng.random() < 0.5 and not run.is_all_gone():
                faults.append(f"{where}: left running {run.processes()}")
        if run.newest() < newest:
            faults.append(f"{where}: back from {newest} to {run.newest()}")
    if not _to_its_end(run, ranks, rng):
        faults.append(f"{run.layout.root} does not end")
    if not run.is_all_gone():
        faults.append(f"{run.layout.root}: left running {run.processes()}")
    faults += _left_over(run)
    difference = largest_difference(undisturbed, run) if not faults else float("inf")
    if difference > (0.0 if ranks == 2 else 1e-9):
        faults.append(f"{run.layout.root} on {ranks} ranks differs by {difference:.1e}")
    for victim in suffered:
        tally = tallies[victim]
        tally.kills += suffered[victim]
        tally.runs += 1
        tally.starts += run.starts
        tally.compared += ranks == 2
        tally.equal += ranks == 2 and difference == 0.0
        if ranks == 2:
            tally.worst_same = max(tally.worst_same, difference)
        else:
            tally.worst_other = max(tally.worst_other, difference)
    if suffered:
        tallies[next(iter(suffered))].faults += faults
    print(
        f"{run.layout.root.name}: {dict(suffered)}, {run.starts} starts, {ranks} ranks at the end, "
        f"difference {difference:.1e} {' '.join(faults)}",
        flush=True,
    )
    if not faults:
        shutil.rmtree(run.layout.root)
        run.output.unlink()
    return sum(suffered.values())


def _reached(run: TormentedRun, victim: str, moment: float, rng: random.Random) -> bool:
    """Wait for the moment and the victim, typing the command again where it has ended; False once done."""
    while True:
        if not run.is_running():
            if run.controller is not None and run.controller.returncode == 0:
                return False
            run.start()
        if time.monotonic() >= moment:
            if victim == "during a checkpoint write":
                if run.is_writing():
                    return True
                time.sleep(0.0005)
                continue
            if run.pids(victim, rng):
                return True
        time.sleep(0.02)


def _killed(run: TormentedRun, victim: str, rng: random.Random) -> list[int]:
    if victim == "during a checkpoint write":
        victim = rng.choice(["controller", "one rank", "all ranks", "mpiexec"])
    killed = []
    for pid in run.pids(victim, rng):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
    return killed


def _to_its_end(run: TormentedRun, ranks: int, rng: random.Random) -> bool:
    """Type the command until it ends well."""
    until = time.monotonic() + _RUN_LIMIT_S
    while time.monotonic() < until and run.starts < _MOST_STARTS:
        if run.controller is None or run.controller.poll() is not None:
            if run.layout.result.exists() and (run.controller is None or run.controller.returncode == 0):
                return True
            run.start(ranks)
        assert run.controller is not None
        with suppress(subprocess.TimeoutExpired):
            run.controller.wait(until - time.monotonic())
    return run.controller is not None and run.controller.poll() == 0


def _left_over(run: TormentedRun) -> list[str]:
    """What is wrong in the directory of a run that has ended."""
    found = []
    verified = subprocess.run(
        [sys.executable, "-m", "lsr_hpc.cli", "verify", run.layout.root],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    if verified.returncode:
        found.append(f"{run.layout.root}: verify ends with {verified.returncode}: {verified.stdout[-500:]}")
    names = [p.relative_to(run.layout.root) for p in run.layout.root.rglob("*")]
    temporary = [
        str(p) for p in names if ".tmp-" in p.name or ".running-" in p.name or p.name.endswith(".previous")
    ]
    hidden = [str(p) for p in names if p.name.startswith(".") and p.parts[0] != "steps"]
    if temporary or hidden:
        found.append(f"{run.layout.root}: left over {temporary + hidden}")
    if "Traceback" in (text := run.output.read_text(errors="replace")):
        found.append(f"{run.layout.root}: traceback in the output: {text[text.index('Traceback') :][:500]}")
    return found


def _table(tallies: dict[str, Tally]) -> str:
    lines = [
        "| victim | kills | runs with one | starts per run | bit-equal, same ranks | worst, same ranks "
        "| worst, other ranks | longest since a checkpoint |",
        "| --- " * 8 + "|",
    ]
    for victim, tally in tallies.items():
        lines.append(
            f"| {victim} | {tally.kills} | {tally.runs} | {tally.starts / max(1, tally.runs):.1f} "
            f"| {tally.equal} of {tally.compared} | {tally.worst_same:.0e} | {tally.worst_other:.0e} "
            f"| {tally.most_lost_s:.1f} s |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
