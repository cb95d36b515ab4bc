"""The manifest of a checkpoint and the search for damage; needs no MPI.

``MANIFEST.json`` is written last, lists every other file with size and SHA-256, and carries a digest of its
own. No byte of another file is parsed before all of that file agrees with its digest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsr_hpc import __version__
from lsr_hpc.integrity import MANIFEST, Fault, FileRecord, check_kind, file_fault, names_faults, read_signed
from lsr_hpc.store import file_digest, write_manifest

__all__ = [
    "STATE",
    "TEMPORARY",
    "WHOLE",
    "CheckpointId",
    "Manifest",
    "Part",
    "StoredArray",
    "checkpoint_directories",
    "examine",
    "load_manifest",
    "number",
    "save_manifest",
]

STATE = "state.json"
WHOLE = "whole.safetensors"
# In the name of a directory that is being written or deleted.
TEMPORARY = ".tmp-"
_SCHEMA = 1
_KIND = "lsr_hpc checkpoint"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.(?P<number>[1-9][0-9]*))?")


@dataclass(frozen=True)
class CheckpointId:
    """A checkpoint and its content.

    Attributes:
        name: Name of its directory.
        sha256: Digest of its manifest, and so of all its bytes.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Part:
    """Columns [first, behind) of a cut array lie in ``file``."""

    file: str
    first: int
    behind: int


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies.

    Attributes:
        dtype: Name of its numpy dtype.
        shape: Whole shape.
        parts: Ranges of the last axis in order; None for a plain array, which is in ``whole.safetensors``.
    """

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...] | None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
        job_sha256: Digest of the job it belongs to.
        progress: (round, step within the round).
        is_finished: Whether the round is.
        score: Validation measure of a finished round, lower is better.
        parent: The checkpoint before it on the way, if any.
        files: Every file but the manifest.
        arrays: Every array.
    """

    job_sha256: str
    progress: tuple[int, int]
    is_finished: bool
    score: float | None
    parent: CheckpointId | None
    files: Mapping[str, FileRecord]
    arrays: Mapping[str, StoredArray]

    @property
    def names(self) -> set[str]:
        """Names of all files of the checkpoint."""
        return {MANIFEST, *self.files}


def checkpoint_directories(root: Path) -> list[Path]:
    """Directories of checkpoints, intact or not, in no order.

    Args:
        root: Directory of a store; need not exist.

    Returns:
        Paths; what is being written, set aside, or not of this package is left out.
    """
    if not root.is_dir():
        return []
    return [p for p in root.iterdir() if p.is_dir() and p.name != "quarantine" and _NAME.fullmatch(p.name)]


def number(name: str) -> int:
    """Which of several checkpoints of one name this is.

    Args:
        name: Name of a checkpoint's directory, such as ``round-0007.2``.

    Returns:
        The number behind the dot, 1 if there is none.
    """
    found = _NAME.fullmatch(name)
    return int(found["number"] or 1) if found else 1


def save_manifest(directory: Path, manifest: Manifest) -> str:
    """Write the manifest of a checkpoint.

    Args:
        directory: The checkpoint.
        manifest: Its content.

    Returns:
        The manifest's SHA-256.

    Raises:
        OSError: If it cannot be written.
    """
    path = directory / MANIFEST
    versions = {"lsr_hpc": __version__, "numpy": np.__version__}
    write_manifest(path, {"schema": _SCHEMA, "kind": _KIND, **asdict(manifest), "versions": versions})
    path.chmod(0o600)
    return file_digest(path)


def load_manifest(directory: Path) -> tuple[CheckpointId, Manifest] | Fault:
    """Read the manifest of a checkpoint.

    Args:
        directory: The checkpoint.

    Returns:
        Identity and content, or what is wrong with it.

    Raises:
        JobError: If it was written by another version of this package.
        EnvironmentProblem: If it may be intact but cannot be read.
    """
    path = directory / MANIFEST
    content = read_signed(path)
    if isinstance(content, Fault):
        return content
    check_kind(path, content, _KIND, _SCHEMA)
    return CheckpointId(directory.name, file_digest(path)), _from_json(content)


def _from_json(content: Mapping[str, Any]) -> Manifest:
    return Manifest(
        job_sha256=content["job_sha256"],
        progress=(content["progress"][0], content["progress"][1]),
        is_finished=content["is_finished"],
        score=content["score"],
        parent=None if content["parent"] is None else CheckpointId(**content["parent"]),
        files={name: FileRecord(**record) for name, record in content["files"].items()},
        arrays={
            name: StoredArray(
                dtype=array["dtype"],
                shape=tuple(array["shape"]),
                parts=None if array["parts"] is None else tuple(Part(**part) for part in array["parts"]),
            )
            for name, array in content["arrays"].items()
        },
    )


def examine(directory: Path) -> list[Fault]:
    """Check every byte of a checkpoint.

    Args:
        directory: The checkpoint.

    Returns:
        All that is wrong with it.

    Raises:
        JobError: If it was written by another version of this package.
        EnvironmentProblem: If it may be intact but cannot be read.
    """
    loaded = load_manifest(directory)
    if isinstance(loaded, Fault):
        return [loaded]
    manifest = loaded[1]
    faults = names_faults(directory, manifest.names)
    missing = {fault.file for fault in faults}
    checked = [file_fault(directory / n, r) for n, r in manifest.files.items() if n not in missing]
    return faults + [fault for fault in checked if fault]
