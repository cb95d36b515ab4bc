"""The manifest of a checkpoint and the search for damage; needs no MPI.

``MANIFEST.json`` is written last, lists every other file with size and SHA-256, and carries a digest of its
own. No byte of another file is parsed before all of that file agrees with its digest.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsr_hpc import __version__
from lsr_hpc.checkpoint.files import FileRecord, persistently
from lsr_hpc.errors import EnvironmentProblem, JobError
from lsr_hpc.store import file_digest, read_manifest, write_manifest

__all__ = [
    "MANIFEST",
    "STATE",
    "TEMPORARY",
    "WHOLE",
    "CheckpointId",
    "Fault",
    "Manifest",
    "Part",
    "StoredArray",
    "checkpoint_directories",
    "examine",
    "file_fault",
    "listing_faults",
    "load_manifest",
    "number",
    "save_manifest",
]

MANIFEST = "MANIFEST.json"
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


@dataclass(frozen=True)
class Fault:
    """Something wrong with a checkpoint.

    Attributes:
        file: The file concerned.
        kind: manifest, missing, extra, size, digest or unreadable.
        text: The fault in words.
    """

    file: str
    kind: str
    text: str

    def __str__(self) -> str:
        """The file and the fault in words."""
        return f"{self.file} {self.text}"


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
    fault = _readable(path)
    if fault:
        return fault
    try:
        sha256 = persistently(lambda: file_digest(path), f"read {path}")
        content = read_manifest(path)
    except OSError as error:
        return Fault(MANIFEST, "unreadable", f"cannot be read: {error.strerror}")
    except JobError:
        return Fault(MANIFEST, "manifest", "was changed or damaged")
    if content.get("kind") != _KIND or content.get("schema") != _SCHEMA:
        raise JobError(
            f"{path} is {content.get('kind')!r} of schema {content.get('schema')!r}, this version reads "
            f"{_KIND!r} of schema {_SCHEMA}: use the lsr_hpc version that wrote it"
        )
    return CheckpointId(directory.name, sha256), _from_json(content)


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


def listing_faults(directory: Path, manifest: Manifest) -> list[Fault]:
    """Compare names and kinds of the files that are there with those that should be.

    Args:
        directory: The checkpoint.
        manifest: Its manifest.

    Returns:
        What is missing or should not be there.
    """
    expected = {MANIFEST, *manifest.files}
    found = set(os.listdir(directory))
    missing = [Fault(name, "missing", "is missing") for name in sorted(expected - found)]
    return missing + [Fault(name, "extra", "does not belong there") for name in sorted(found - expected)]


def file_fault(path: Path, record: FileRecord) -> Fault | None:
    """Compare every byte of a file with its record.

    Args:
        path: The file.
        record: Size and digest that it should have.

    Returns:
        What is wrong with it, if anything.

    Raises:
        EnvironmentProblem: If it may be intact but cannot be read.
    """
    fault = _readable(path)
    if fault:
        return fault
    try:
        size = path.stat().st_size
        if size != record.size:
            return Fault(path.name, "size", f"has {size} bytes in place of {record.size}")
        if persistently(lambda: file_digest(path), f"read {path}") != record.sha256:
            return Fault(path.name, "digest", "differs from its SHA-256")
    except OSError as error:
        return Fault(path.name, "unreadable", f"cannot be read: {error.strerror}")
    return None


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
    faults = listing_faults(directory, manifest)
    missing = {fault.file for fault in faults}
    checked = [file_fault(directory / n, r) for n, r in manifest.files.items() if n not in missing]
    return faults + [fault for fault in checked if fault]


def _readable(path: Path) -> Fault | None:
    """Whether a regular file can be opened; what is no fault of its bytes is raised."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return Fault(path.name, "extra", "is not a regular file")
        with path.open("rb"):
            return None
    except FileNotFoundError:
        return Fault(path.name, "missing", "is missing")
    except PermissionError as error:
        raise EnvironmentProblem(
            f"{path} cannot be read ({error.strerror}): give yourself permission, then resume"
        ) from error
    except OSError as error:
        return Fault(path.name, "unreadable", f"cannot be read: {error.strerror}")
