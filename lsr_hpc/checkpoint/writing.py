"""The steps of writing one checkpoint, each for a single rank; :mod:`lsr_hpc.checkpoint.store` joins them.

Until the last step, the rename, everything lies in ``NAME.tmp-<random>``, which no reader looks at.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lsr_hpc.checkpoint import files
from lsr_hpc.checkpoint.files import write_arrays, write_bytes, write_error
from lsr_hpc.checkpoint.layout import Layout
from lsr_hpc.checkpoint.manifest import (
    STATE,
    TEMPORARY,
    WHOLE,
    CheckpointId,
    Manifest,
    checkpoint_directories,
    number,
    save_manifest,
)
from lsr_hpc.integrity import MANIFEST, FileRecord, persistently
from lsr_hpc.publish import flush
from lsr_hpc.snapshot import Cut, Snapshot

__all__ = ["LATEST", "begin", "delete", "discard", "publish", "write_own"]

LATEST = "latest"

_log = logging.getLogger(__name__)


def begin(root: Path, name: str) -> Path:
    """Make the directory in which a checkpoint grows.

    Args:
        root: Directory of the store; made if it is not there.
        name: Name of the checkpoint.

    Returns:
        The temporary directory.

    Raises:
        CheckpointWriteError: If it cannot be made.
    """

    def attempt() -> Path:
        files.at("make directory")
        for directory in reversed([p for p in (root, *root.parents) if not p.exists()]):
            directory.mkdir(mode=0o700, exist_ok=True)
        temporary = _temporary(root / name)
        temporary.mkdir(mode=0o700)
        return temporary

    with _explaining(root / name):
        return persistently(attempt, f"make a directory in {root}")


def write_own(
    directory: Path, snapshot: Snapshot, layout: Layout, *, with_common: bool
) -> dict[str, FileRecord]:
    """Write this rank's ranges of the cut arrays.

    Args:
        directory: The temporary directory.
        snapshot: What to write.
        layout: Which arrays go into which file.
        with_common: Whether this rank also writes what all ranks have in common.

    Returns:
        Size and digest of every file.

    Raises:
        CheckpointWriteError: If one cannot be written.
    """
    local = {n: a.local if isinstance(a, Cut) else a for n, a in snapshot.arrays.items()}
    records: dict[str, FileRecord] = {}
    with _explaining(directory):
        for file, names in layout.own.items():
            records[file] = write_arrays(directory / file, {n: local[n] for n in names})
        if with_common:
            plain = {n: local[n] for n, array in layout.arrays.items() if array.parts is None}
            records[WHOLE] = write_arrays(directory / WHOLE, plain)
            text = json.dumps(snapshot.values, indent=1, allow_nan=False).encode()
            records[STATE] = write_bytes(directory / STATE, lambda: iter([text]))
    return records


def publish(temporary: Path, name: str, manifest: Manifest) -> CheckpointId:
    """Add the manifest and give the directory its name.

    Args:
        temporary: Directory with the files of all ranks.
        name: Name of the checkpoint; a number is appended if it is taken.
        manifest: What the ranks have written.

    Returns:
        The checkpoint.

    Raises:
        CheckpointWriteError: If that fails, or not every byte that was written has arrived.
    """
    root = temporary.parent
    with _explaining(temporary):
        _compare_sizes(temporary, manifest.files)
        sha256 = persistently(partial(_write_manifest, temporary, manifest), f"write {temporary / MANIFEST}")
        persistently(partial(flush, temporary), f"flush {temporary}")
        taken = [p.name for p in checkpoint_directories(root) if p.name.split(".")[0] == name]
        final = root / (f"{name}.{1 + max(map(number, taken))}" if taken else name)
        files.at("rename")
        persistently(partial(temporary.rename, final), f"rename {temporary}")
        files.at("flush parent")
        persistently(partial(flush, root), f"flush {root}")
    _point_at(final)
    return CheckpointId(final.name, sha256)


def discard(directory: Path) -> None:
    """Delete a checkpoint so that a kill meanwhile leaves nothing that looks like a damaged one.

    Args:
        directory: The checkpoint. What cannot be deleted is logged.
    """
    try:
        files.at("delete")
        doomed = _temporary(directory)
        directory.rename(doomed)
        files.at("delete renamed")
        delete(doomed)
    except OSError as error:
        _log.warning("old checkpoint %s could not be deleted: %s", directory, error.strerror)


def delete(path: Path) -> None:
    """Delete a file or directory.

    Args:
        path: What to delete. What cannot be deleted is logged.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        _log.warning("%s could not be deleted: %s", path, error.strerror)


def _temporary(place: Path) -> Path:
    return place.with_name(f"{place.name}{TEMPORARY}{secrets.token_hex(4)}")


def _write_manifest(directory: Path, manifest: Manifest) -> str:
    files.at("manifest")
    sha256 = save_manifest(directory, manifest)
    files.at("flush manifest")
    flush(directory / MANIFEST)
    return sha256


def _compare_sizes(directory: Path, records: Mapping[str, FileRecord]) -> None:
    """What the ranks say they wrote must be what this rank sees."""
    for name, record in records.items():
        # Opened, and not found by listing, because network file systems answer from memory otherwise.
        with (directory / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
        if size != record.size:
            raise OSError(errno.EIO, f"{size} of {record.size} bytes arrived", str(directory / name))


def _point_at(checkpoint: Path) -> None:
    """Replace ``latest``, a hint for people that is never trusted."""
    place = checkpoint.with_name(LATEST)
    hint = _temporary(place)
    try:
        files.at("latest")
        hint.write_text(checkpoint.name + "\n", encoding="utf-8")
        hint.replace(place)
    except OSError as error:
        _log.warning("%s could not be renewed: %s", place, error.strerror)


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error
