"""Files and directories that appear whole or not at all.

They are written under a hidden name beside their final place, flushed to disk, and renamed. Anything wrong
with the place is said before the work whose result is to go there.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lsr_hpc.errors import EnvironmentProblem, JobError

__all__ = [
    "RUNNING",
    "RUN_MARKER",
    "PendingDirectory",
    "check_directory",
    "check_file",
    "flush",
    "publish_directory",
    "publish_file",
    "publish_text",
    "unfinished",
]

# File by which the directory of a finished run is known.
RUN_MARKER = "result.json"
# In the name of a directory that is being filled.
RUNNING = ".running-"
# Directories of other commands, by a file in them.
_KINDS = {
    "run.json": "rounds of `lsr-hpc run`",
    "campaign.json": "a campaign",
    RUN_MARKER: "a refinement",
}
# Room for what is put around a name: ".previous", ".NAME.running-01234567".
_LONGEST_NAME = 200


def check_directory(place: Path, marker: str, label: str = "directory") -> Path:
    """Refuse a place where a directory of ours cannot or should not appear.

    Args:
        place: Where it is to appear.
        marker: File by which a directory of the same kind is known; one that holds it may be replaced.
        label: What the user calls the place, for messages.

    Returns:
        The place with symbolic links resolved.

    Raises:
        JobError: If the place is a file, holds something that is not ours, cannot be renamed or written.
    """
    final = _resolved(place, label)
    what = f"{label} {place}"
    try:
        if final.exists() and not final.is_dir():
            raise JobError(f"{what} is a file: name a directory")
        if final == Path.cwd() or final in Path.cwd().parents:
            raise JobError(f"{what} is the current directory or above it: name a new directory inside")
        if final.name.endswith(".previous"):
            raise JobError(
                f"{what}: names in .previous are those of earlier runs, replaced unasked: name another"
            )
        if os.path.ismount(final):
            raise JobError(f"{what} is a mount point, which cannot be renamed: name a directory inside it")
        if not _is_free(final, marker):
            raise JobError(f"{what} {_kind_of(final)}: name another directory")
        if final.exists() and any(final.iterdir()) and not _is_free(_previous(final), marker):
            raise JobError(
                f"{what}: what is there would become {_previous(final)}, which is something else and not of "
                "lsr-hpc: move that away, or name another directory"
            )
    except OSError as error:
        raise JobError(f"{what} cannot be used: {error.strerror}; name another directory") from error
    _check_parent(final, what)
    return final


def check_file(place: Path, suffix: str | tuple[str, ...], label: str) -> Path:
    """Refuse a place where a file cannot or should not appear.

    Args:
        place: Where it is to appear; a file that is there would be replaced.
        suffix: What the name has to end in; one of several.
        label: What the user calls the place, for messages.

    Returns:
        The place with symbolic links resolved.

    Raises:
        JobError: If it is a directory or something special, has another suffix, or cannot be written.
    """
    final = _resolved(place, label)
    suffixes = (suffix,) if isinstance(suffix, str) else suffix
    endings = " or ".join(suffixes)
    if final.exists() and not final.is_file():
        raise JobError(f"{label} {place} is there and no file: name a new file that ends in {endings}")
    if place.suffix not in suffixes:
        raise JobError(f"{label} {place}: name a file that ends in {endings}")
    _check_parent(final, f"{label} {place}")
    return final


def unfinished(place: Path) -> list[Path]:
    """Temporary directories of the same place, of processes that were killed or are still at work.

    They are for the user to see and never removed: on a shared file system nobody can tell the one from the
    other, and what a killed run has finished may be wanted.

    Args:
        place: Final place of the directory.

    Returns:
        Paths.
    """
    final = place.resolve()
    prefix = f".{final.name}{RUNNING}"
    return sorted(p for p in final.parent.glob(f".*{RUNNING}*") if p.name.startswith(prefix))


def _resolved(place: Path, label: str) -> Path:
    try:
        final = place.resolve()
        final.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise JobError(f"{label} {place} cannot be used: {error}") from error
    if len(os.fsencode(final.name)) > _LONGEST_NAME:
        raise JobError(f"{label} {place}: the name is longer than {_LONGEST_NAME} bytes, use a shorter one")
    return final


def _check_parent(final: Path, what: str) -> None:
    parent = next(p for p in final.parents if p.exists())
    if not parent.is_dir():
        raise JobError(f"{what}: {parent} is a file; name a place in a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise JobError(f"{what}: no permission to write in {parent}; name another place")


def _kind_of(directory: Path) -> str:
    """What a directory is that may not be replaced."""
    for marker, kind in _KINDS.items():
        if (directory / marker).exists():
            return f"holds {kind}"
    return "is not empty and not a run of lsr-hpc"


def _is_free(directory: Path, marker: str) -> bool:
    """Whether a directory is absent, empty or one of ours."""
    if not os.path.lexists(directory):
        return True
    is_own = directory.is_dir() and not directory.is_symlink()
    return is_own and ((directory / marker).is_file() or not any(directory.iterdir()))


def _previous(final: Path) -> Path:
    return final.with_name(final.name + ".previous")


class PendingDirectory:
    """A directory under a temporary name, ``.NAME.running-XXXXXXXX`` beside its final place.

    Args:
        place: Where it is to appear. An earlier directory there is kept as ``NAME.previous``, in place of
            an older one.
        marker: File by which a directory of this kind is known. Nothing without it is ever replaced.
        label: What the user calls the place, for messages.

    Attributes:
        final: The final place.
        path: The temporary directory, open for writing.

    Raises:
        JobError: If the place cannot be used.
    """

    def __init__(self, place: Path, marker: str, label: str = "directory") -> None:
        self.final = check_directory(place, marker, label)
        self._marker = marker
        self._made: list[Path] = []
        try:
            for parent in reversed([p for p in self.final.parents if not p.exists()]):
                parent.mkdir()
                self._made.append(parent)
            self.path = self.final.with_name(f".{self.final.name}{RUNNING}{secrets.token_hex(4)}")
            self.path.mkdir()
        except OSError as error:
            self._remove_parents()
            raise JobError(
                f"{label} {place} cannot be made: {error.strerror} ({error.filename}); name another directory"
            ) from error

    def publish(self) -> None:
        """Flush everything to disk and rename the directory to its final place.

        Raises:
            EnvironmentProblem: If that fails; the finished directory then stays under its temporary name.
        """
        try:
            for path in [*self.path.rglob("*"), self.path]:
                flush(path)
            if self.final.exists():
                self._keep_earlier()
            self.path.rename(self.final)
            flush(self.final.parent)
        except (OSError, JobError) as error:
            raise EnvironmentProblem(
                f"{self.final} could not be put in place ({error}); all of it is in {self.path}: "
                "move it yourself"
            ) from error

    def _keep_earlier(self) -> None:
        check_directory(self.final, self._marker)
        if not any(self.final.iterdir()):
            self.final.rmdir()
            return
        previous = _previous(self.final)
        if previous.exists():
            shutil.rmtree(previous)
        self.final.rename(previous)

    def discard(self) -> None:
        """Remove the temporary directory, and parents that were made for it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._remove_parents()

    def _remove_parents(self) -> None:
        with suppress(OSError):
            for parent in reversed(self._made):
                parent.rmdir()


@contextmanager
def publish_directory(place: Path, marker: str) -> Iterator[Path]:
    """Fill a temporary directory and rename it to its final place when the block ends well.

    Args:
        place: Where the directory is to appear; see :class:`PendingDirectory`.
        marker: File by which a directory of this kind is known.

    Yields:
        The temporary directory.

    Raises:
        JobError: If the place cannot be used.
    """
    pending = PendingDirectory(place, marker)
    try:
        yield pending.path
    except BaseException:
        pending.discard()
        raise
    pending.publish()


@contextmanager
def publish_file(final: Path) -> Iterator[Path]:
    """Write a temporary file and rename it to its final place when the block ends well.

    Args:
        final: Where the file is to appear; one that is there is replaced.

    Yields:
        The temporary file, not yet there.
    """
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish_text(final: Path, text: str) -> None:
    """Put a text file in its place, whole or not at all.

    Args:
        final: Where; a file that is there is replaced.
        text: Its content, written as UTF-8.

    Raises:
        OSError: If it cannot be written.
    """
    with publish_file(final) as temporary:
        temporary.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Have the disk hold what a file, or the list of names in a directory, holds.

    Args:
        path: File or directory.

    Raises:
        OSError: If it cannot be opened or flushed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
