"""Damage run directories at random places and see that nothing is taken: ``python -m tests.torture.damage``.

Three directories of the same job: finished, stopped in order, killed. One file at a time has a bit flipped,
a byte replaced, its end cut off, bytes added, or goes. Files with a digest must be named by ``verify``; a
changed predictor must be refused by ``predict``, a changed finished run by ``report``; and now and then the
command is typed again: it must end with the same bytes as the undisturbed run, or refuse and name the file.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import numpy as np

from lsr_hpc.checkpoint.writing import LATEST
from lsr_hpc.cli import main as lsr_hpc
from lsr_hpc.integrity import MANIFEST, read_seal
from tests.torture.runs import JOB, TormentedRun, largest_difference

__all__ = ["Count", "damaged", "has_digest", "is_noticed"]

# Files that nothing is computed from.
_WITHOUT_DIGEST = (
    "controller.lock",
    "lease",
    "heartbeat.json",
    "output.log",
    "command.txt",
    "revoked",
    "stop",
)
_KINDS = ("flipped", "flipped", "replaced", "cut", "longer", "removed")
_RESUME_LIMIT_S = 300.0


@dataclass
class Count:
    """What became of the changes in a directory."""

    changes: int = 0
    under_digest: int = 0
    noticed: int = 0
    predictor: int = 0
    refused: int = 0
    reports: int = 0
    not_reported: int = 0
    resumes: int = 0
    equal: int = 0
    declined: int = 0
    faults: list[str] = field(default_factory=list)


def main() -> int:
    """Damage three directories and print a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.damage", description=__doc__)
    parser.add_argument("--changes", type=int, default=1000, metavar="N", help="over all directories")
    parser.add_argument(
        "--resume-every", type=int, default=20, metavar="N", help="type the command after each N"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="lsr-damage-"))
    began = time.monotonic()
    runs = {
        "finished": _finished(home / "finished"),
        "stopped": _interrupted(home / "stopped", lambda run: _stop(run)),
        "killed": _interrupted(home / "killed", lambda run: run.end()),
    }
    # What is compared with is never damaged.
    intact = TormentedRun(home / "intact", JOB)
    shutil.copytree(runs["finished"].layout.root, intact.layout.root)
    counts = {name: Count() for name in runs}
    # What a report says depends on these alone.
    reported = {*read_seal(runs["finished"].layout.root), MANIFEST, "run.json", "job.toml"}
    for number in range(options.changes):
        rng = random.Random(f"{options.seed}-{number}")
        name = list(runs)[number % len(runs)]
        does_resume = number // len(runs) % options.resume_every == 0
        _one_change(
            runs[name],
            intact,
            rng,
            counts[name],
            reported=reported if name == "finished" else set(),
            does_resume=does_resume,
        )
    faults = [fault for count in counts.values() for fault in count.faults]
    print(f"\n{options.changes} changes, {time.monotonic() - began:.0f} s; faults: {len(faults)}\n")
    print(_table(counts))
    for fault in faults:
        print(f"FAULT {fault}")
    if not faults:
        shutil.rmtree(home)
    return 1 if faults else 0


def _finished(root: Path) -> TormentedRun:
    run = TormentedRun(root, JOB)
    run.start()
    assert run.controller is not None
    assert run.controller.wait(_RESUME_LIMIT_S) == 0, run.output
    return run


def _interrupted(root: Path, end: Callable[[TormentedRun], None]) -> TormentedRun:
    """A run that ended inside its second round, or later, with what it has left."""
    run = TormentedRun(root, JOB)
    run.start()
    while run.newest() < (1, 1):
        assert run.is_running(), run.output
        time.sleep(0.01)
    end(run)
    assert run.is_all_gone(), run.processes()
    return run


def _stop(run: TormentedRun) -> None:
    assert _lsr("stop", run.layout.root)[0] == 0
    assert run.controller is not None
    assert run.controller.wait(_RESUME_LIMIT_S) == 75, run.output
    run.layout.stop.unlink()


def _one_change(
    run: TormentedRun,
    intact: TormentedRun,
    rng: random.Random,
    count: Count,
    *,
    reported: set[str],
    does_resume: bool,
) -> None:
    root = run.layout.root
    path = rng.choice([path for path in sorted(root.rglob("*")) if path.is_file()])
    content = path.read_bytes()
    kind, changed = damaged(content, rng)
    what = f"{path.relative_to(root)} of the {root.name} run {kind}"
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    try:
        count.changes += 1
        if has_digest(path):
            count.under_digest += 1
            if is_noticed(root, path):
                count.noticed += 1
            else:
                count.faults.append(f"{what}: passed by verify")
        if path.is_relative_to(run.layout.predictor):
            count.predictor += 1
            if _is_refused(root):
                count.refused += 1
            else:
                count.faults.append(f"{what}: passed by predict")
        if path.relative_to(root).as_posix() in reported:
            count.reports += 1
            if _is_not_reported(root):
                count.not_reported += 1
            else:
                count.faults.append(f"{what}: passed by report")
        if does_resume:
            _resume(run, intact, path, what, count)
    finally:
        path.write_bytes(content)


def damaged(content: bytes, rng: random.Random) -> tuple[str, bytes | None]:
    """Change a file's content.

    Args:
        content: All its bytes.
        rng: What draws kind and place.

    Returns:
        The change in words, and the other content; None if the file is to go.
    """
    kind = rng.choice(_KINDS if content else _KINDS[-2:])
    if kind == "removed":
        return kind, None
    if kind == "longer":
        n = rng.randint(1, 64)
        return f"longer by {n} bytes", content + rng.randbytes(n)
    at = rng.randrange(len(content))
    if kind == "cut":
        return f"cut off at byte {at}", content[:at]
    new = content[at] ^ (1 << rng.randrange(8) if kind == "flipped" else rng.randint(1, 255))
    return f"{kind} at byte {at}: {content[at]} became {new}", content[:at] + bytes([new]) + content[at + 1 :]


def has_digest(path: Path) -> bool:
    """Whether ``verify`` answers for a file of a run directory.

    Args:
        path: The file.

    Returns:
        False for logs, locks, hints and the like, and for what is only sealed at the end of the run.
    """
    if path.name in _WITHOUT_DIGEST or path.name == LATEST or path.parent.name == "logs":
        return False
    root = next(parent for parent in path.parents if (parent / "checkpoints").is_dir())
    is_sealed_at_the_end = path.name in {"metrics.jsonl", "timeline.jsonl"} or path.parent.name == "figures"
    return (root / "MANIFEST.json").exists() or not is_sealed_at_the_end


def is_noticed(root: Path, path: Path) -> bool:
    """Whether ``verify`` names the unit that a damaged file belongs to.

    Args:
        root: The run directory.
        path: The file.

    Returns:
        False also where something else is called damaged instead.
    """
    code, text = _lsr("verify", root)
    lines = [line.split()[1] for line in text.splitlines() if line.startswith("damaged ")]
    relative = path.relative_to(root).as_posix().removeprefix("checkpoints/")
    return code == 70 and any(relative.startswith(name) for name in lines)


def _is_refused(root: Path) -> bool:
    points, output = root.with_name("points.npy"), root.with_name("values.npy")
    np.save(points, np.full((3, 2), 0.25))
    code, _ = _lsr("predict", root, "--input", points, "--output", output)
    return code == 2 and not output.exists()


def _is_not_reported(root: Path) -> bool:
    page = root.with_name("page")
    code, _ = _lsr("report", root, "--out", page)
    return code == 2 and not page.exists()


def _resume(run: TormentedRun, intact: TormentedRun, path: Path, what: str, count: Count) -> None:
    """Type the command again in a copy of the directory."""
    root = run.layout.root
    copy = TormentedRun(root.with_name(f"{root.name}-copy"), JOB)
    shutil.copytree(root, copy.layout.root)
    copy.start()
    assert copy.controller is not None
    try:
        code = copy.controller.wait(_RESUME_LIMIT_S)
        text = copy.output.read_text(errors="replace")
        count.resumes += 1
        if code == 0 and largest_difference(intact, copy) == 0.0:
            count.equal += 1
        elif code in {2, 70} and path.name in text and "Traceback" not in text:
            count.declined += 1
        else:
            count.faults.append(f"{what}: the next start ends with {code}: {text[-1500:]}")
    finally:
        copy.end()
        shutil.rmtree(copy.layout.root)
        copy.output.unlink()


def _lsr(*words: str | Path) -> tuple[int, str]:
    """A command of ``lsr-hpc`` that needs no MPI, in this process."""
    output = StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        code = lsr_hpc([str(word) for word in words])
    return code, output.getvalue()


def _table(counts: dict[str, Count]) -> str:
    lines = [
        "| run | changes | of files with digests | noticed by verify | of the predictor | refused by predict "
        "| of a report | refused by report | started again | ended with the same bytes "
        "| refused, naming the file |",
        "| --- " * 11 + "|",
    ]
    for name, c in counts.items():
        cells = (c.changes, c.under_digest, c.noticed, c.predictor, c.refused, c.reports, c.not_reported)
        cells += (c.resumes, c.equal, c.declined)
        lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
