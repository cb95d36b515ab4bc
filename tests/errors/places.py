"""Files and directories."""

from __future__ import annotations

from pathlib import Path

from tests.errors.case import Case

WEIGHTS = '[problem]\nfunction = "mine.py:build"\nweights = "w.safetensors"\n[subspace]\nrank = 5\n'
TAKES = "def build(weights):\n    return problem()\n"


def saved(home: Path) -> bytes:
    import torch
    from safetensors.torch import save

    return save({"weight": torch.ones(300)})


def recorded(home: Path, of: bytes) -> None:
    import hashlib

    from lsr_hpc.store import write_manifest

    write_manifest(home / "w.json", {"sha256": hashlib.sha256(of).hexdigest()})


def foreign(home: Path) -> None:
    (home / "out").mkdir()
    (home / "out" / "letter.txt").write_text("mine")


def changed(home: Path) -> None:
    content = saved(home)
    recorded(home, content)
    (home / "w.safetensors").write_bytes(content[:-1] + b"\x01")


def damaged_record(home: Path) -> None:
    (home / "w.safetensors").write_bytes(saved(home))
    recorded(home, saved(home))
    text = (home / "w.json").read_text()
    (home / "w.json").write_text(text.replace('"sha256": "', '"sha256": "0', 1))


def pickled(home: Path) -> None:
    import torch

    torch.save({"weight": torch.ones(3)}, home / "w.safetensors")


CASES = [
    Case(
        what="weights that are not there",
        job=WEIGHTS,
        build=TAKES,
        says="weights file HERE/w.safetensors does not exist: check the path, or make it with `lsr-hpc train`",
    ),
    Case(
        what="no weights for a shipped problem",
        job='problem = "poisson"\n',
        says="problem.weights is missing: name the trained weights, or make them with `lsr-hpc train`",
    ),
    Case(
        what="weights that are a directory",
        job=WEIGHTS,
        build=TAKES,
        given=lambda home: (home / "w.safetensors").mkdir(),
        says="weights file HERE/w.safetensors is not a file: check the path, or make it with `lsr-hpc train`",
    ),
    Case(
        what="weights that are cut off",
        job=WEIGHTS,
        build=TAKES,
        given=lambda home: (home / "w.safetensors").write_bytes(saved(home)[:-9]),
        says="HERE/w.safetensors is cut off, or no safetensors file (Error while deserializing header: incomplete metadata, file not fully covered): restore it; a state_dict of torch.save is converted by safetensors.torch.save_file",
    ),
    Case(
        what="weights that are no safetensors (`torch.save`)",
        job=WEIGHTS,
        build=TAKES,
        given=pickled,
        says="HERE/w.safetensors is cut off, or no safetensors file (Error while deserializing header: header too large): restore it; a state_dict of torch.save is converted by safetensors.torch.save_file",
    ),
    Case(
        what="weights that differ from their record",
        job=WEIGHTS,
        build=TAKES,
        given=changed,
        says="HERE/w.safetensors differs from its recorded SHA-256 (...): it was changed or damaged; restore it or make it again",
    ),
    Case(
        what="a record of weights that was changed",
        job=WEIGHTS,
        build=TAKES,
        given=damaged_record,
        says="HERE/w.json was changed or damaged after it was written: restore it or make it again",
    ),
    Case(
        what="`--out` is a file",
        given=lambda home: (home / "out").write_text("mine"),
        says="--out out is a file: name a directory",
    ),
    Case(
        what="`--out` holds something else",
        given=foreign,
        says="--out out is not empty and not a run of lsr-hpc: name another directory",
    ),
    Case(
        what="`--out` below a file",
        argv="refine job.toml --out job.toml/out",
        says="--out job.toml/out: HERE/job.toml is a file; name a place in a directory",
    ),
    Case(
        what="`--out` is the current directory",
        argv="refine job.toml --out .",
        says="--out . is the current directory or above it: name a new directory inside",
    ),
    Case(
        what="`--out` of a name that is not kept",
        argv="refine job.toml --out out.previous",
        says="--out out.previous: names in .previous are those of earlier runs, replaced unasked: name another",
    ),
    Case(
        what="`--out` of a name that is too long",
        argv="refine job.toml --out " + "o" * 201,
        says="--out ooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooo: the name is longer than 200 bytes, use a shorter one",
    ),
    Case(
        what="`--out` in a directory that cannot be written",
        argv="refine job.toml --out locked/out",
        disk="locked",
        says="--out locked/out: no permission to write in HERE/locked; name another place",
    ),
    Case(
        what="`--out` on a full disk",
        argv="refine job.toml --out full/out",
        disk="full",
        code=76,
        says="HERE/full/.out.running-... cannot be written: No space left on device; free some of the disk, or name another --out. Instances finished before are in HERE/full/.out.running-.../metrics.jsonl",
    ),
]
