"""Sizes and digests of files, and the search for what does not agree with them."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from lsr_hpc.errors import EnvironmentProblem, JobError
from lsr_hpc.publish import publish_file
from lsr_hpc.store import file_digest, read_manifest, write_manifest

__all__ = [
    "MANIFEST",
    "Fault",
    "FileRecord",
    "check_kind",
    "digest_fault",
    "file_fault",
    "names_faults",
    "persistently",
    "read_seal",
    "read_signed",
    "seal",
    "seal_faults",
]

T = TypeVar("T")

_log = logging.getLogger(__name__)

MANIFEST = "MANIFEST.json"
_SCHEMA = 1
_KIND = "lsr_hpc files"
# Errors of network file systems that may pass, and the pauses before trying again.
_PASSING = (errno.EIO, errno.ESTALE)
_PAUSES_S = (0.5, 2.0)


@dataclass(frozen=True)
class FileRecord:
    """What a manifest says of a file.

    Attributes:
        size: Bytes.
        sha256: Digest of all of them.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class Fault:
    """Something wrong with a file.

    Attributes:
        file: Its name.
        kind: manifest, missing, extra, size, digest or unreadable.
        text: The fault in words.
    """

    file: str
    kind: str
    text: str

    def __str__(self) -> str:
        """The file and the fault in words."""
        return f"{self.file} {self.text}"


def persistently(action: Callable[[], T], what: str) -> T:
    """Try three times where the file system reports an error that may pass (EIO, ESTALE).

    Args:
        action: What to do; must start anew each time.
        what: What it does, for the log.

    Returns:
        What the action returned.

    Raises:
        OSError: The action's own, if it is another or does not pass.
    """
    for pause_s in _PAUSES_S:
        try:
            return action()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            _log.warning("could not %s (%s); trying again in %g s", what, error.strerror, pause_s)
            time.sleep(pause_s)
    return action()


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
    fault = _access_fault(path)
    size = 0 if fault else path.stat().st_size
    if fault is None and size != record.size:
        fault = Fault(path.name, "size", f"has {size} bytes in place of {record.size}")
    return fault or digest_fault(path, record.sha256)


def digest_fault(path: Path, sha256: str) -> Fault | None:
    """Compare every byte of a file with a digest.

    Args:
        path: The file.
        sha256: Digest that it should have.

    Returns:
        What is wrong with it, if anything.

    Raises:
        EnvironmentProblem: If it may be intact but cannot be read.
    """
    fault = _access_fault(path)
    if fault:
        return fault
    try:
        if persistently(lambda: file_digest(path), f"read {path}") != sha256:
            return Fault(path.name, "digest", "differs from its SHA-256")
    except OSError as error:
        return Fault(path.name, "unreadable", f"cannot be read: {error.strerror}")
    return None


def read_signed(path: Path) -> dict[str, Any] | Fault:
    """Read a JSON file that :func:`lsr_hpc.store.write_manifest` wrote.

    Args:
        path: The file.

    Returns:
        Its content, or what is wrong with it.

    Raises:
        EnvironmentProblem: If it may be intact but cannot be read.
    """
    fault = _access_fault(path)
    if fault:
        return fault
    try:
        persistently(path.read_bytes, f"read {path}")
        return read_manifest(path)
    except OSError as error:
        return Fault(path.name, "unreadable", f"cannot be read: {error.strerror}")
    except JobError:
        return Fault(path.name, "manifest", "was changed or damaged")


def check_kind(path: Path, content: Mapping[str, Any], kind: str, schema: int) -> None:
    """Refuse an intact file that this version does not understand.

    Args:
        path: The file, for the message.
        content: What it holds.
        kind: Kind that it should be of.
        schema: Version of the kind.

    Raises:
        JobError: If it is another.
    """
    if (content.get("kind"), content.get("schema")) != (kind, schema):
        raise JobError(
            f"{path} is {content.get('kind')!r} of schema {content.get('schema')!r}, this version reads "
            f"{kind!r} of schema {schema}: use the lsr_hpc version that wrote it"
        )


def names_faults(directory: Path, expected: set[str]) -> list[Fault]:
    """Compare the names in a directory with those that should be there.

    Args:
        directory: The directory.
        expected: Names.

    Returns:
        What is missing or should not be there.
    """
    found = set(os.listdir(directory))
    missing = [Fault(name, "missing", "is missing") for name in sorted(expected - found)]
    return missing + [Fault(name, "extra", "does not belong there") for name in sorted(found - expected)]


def seal(directory: Path, files: Sequence[Path] | None = None) -> None:
    """Record files below a directory in its ``MANIFEST.json``, which appears whole; to be done last.

    Args:
        directory: The directory.
        files: Which of them; None takes all.

    Raises:
        OSError: If a file cannot be read or the manifest not be written.
    """
    manifest = directory / MANIFEST
    if files is None:
        files = [path for path in directory.rglob("*") if path.is_file() and path != manifest]
    records = {
        p.relative_to(directory).as_posix(): asdict(FileRecord(p.stat().st_size, file_digest(p)))
        for p in sorted(files)
    }
    with publish_file(manifest) as temporary:
        write_manifest(temporary, {"schema": _SCHEMA, "kind": _KIND, "files": records})


def read_seal(directory: Path) -> Mapping[str, FileRecord] | Fault:
    """Read what :func:`seal` wrote.

    Args:
        directory: The directory.

    Returns:
        Records by path below the directory, or what is wrong with the manifest.

    Raises:
        JobError: If it is of another kind or version.
        EnvironmentProblem: If it may be intact but cannot be read.
    """
    content = read_signed(directory / MANIFEST)
    if isinstance(content, Fault):
        return content
    check_kind(directory / MANIFEST, content, _KIND, _SCHEMA)
    return {name: FileRecord(**record) for name, record in content["files"].items()}


def seal_faults(directory: Path) -> list[Fault]:
    """Compare every byte of the sealed files with the seal.

    Args:
        directory: The directory.

    Returns:
        What is wrong, files named by their path below the directory; a seal that is missing is a fault.

    Raises:
        JobError: If the seal is of another kind or version.
        EnvironmentProblem: If a file may be intact but cannot be read.
    """
    records = read_seal(directory)
    if isinstance(records, Fault):
        return [records]
    found = [(name, file_fault(directory / name, record)) for name, record in records.items()]
    return [Fault(name, fault.kind, fault.text) for name, fault in found if fault]


def _access_fault(path: Path) -> Fault | None:
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
            f"{path} cannot be read ({error.strerror}): give yourself permission, then try again"
        ) from error
    except OSError as error:
        return Fault(path.name, "unreadable", f"cannot be read: {error.strerror}")
