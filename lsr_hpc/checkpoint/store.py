"""The checkpoints of one computation: written whole or not at all, by all ranks together.

Writing: the first rank makes ``NAME.tmp-<random>``; every rank writes and flushes its own files; the first
rank adds the manifest, flushes and renames. A kill at any moment leaves earlier checkpoints untouched.
Reading: the first rank alone looks at the directory and decides, all ranks share the checking of digests.
"""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr_hpc.checkpoint.layout import pieces_of, plan_layout
from lsr_hpc.checkpoint.manifest import (
    STATE,
    TEMPORARY,
    CheckpointId,
    Manifest,
    checkpoint_directories,
    load_manifest,
)
from lsr_hpc.checkpoint.retention import Stored, superfluous
from lsr_hpc.checkpoint.state import DiskState
from lsr_hpc.checkpoint.writing import LATEST, begin, delete, discard, publish, write_own
from lsr_hpc.comm import agree, on_first
from lsr_hpc.errors import CheckpointReadError, JobError, LsrError
from lsr_hpc.integrity import Fault, file_fault, names_faults
from lsr_hpc.snapshot import SavedState, Snapshot

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["CheckpointId", "CheckpointStore"]

_log = logging.getLogger(__name__)

_QUARANTINE = "quarantine"
_PART = "-part"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class CheckpointStore:
    """The checkpoints in one directory.

    Args:
        root: The directory; made, with mode 0700, when the first checkpoint is written.
        job_sha256: Digest of the job; checkpoints of another job are refused.
        keep: How many of the last finished rounds are kept, besides the best one; at least 2, so that there
            is one to fall back to.

    Raises:
        ValueError: If fewer are to be kept.
    """

    def __init__(self, root: Path, job_sha256: str, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError(f"keep = {keep}: at least 2 checkpoints, one to fall back to")
        self.root = root
        self._job_sha256 = job_sha256
        self._keep = keep
        self._parent: CheckpointId | None = None

    def save(
        self,
        comm: MPI.Comm,
        name: str,
        snapshot: Snapshot,
        *,
        progress: tuple[int, int],
        score: float | None,
    ) -> CheckpointId:
        """Write a checkpoint, then delete those that are no longer needed.

        Args:
            comm: Communicator.
            name: Letters, digits, ``_`` and ``-``. In ``-part`` at its end for a state inside a round. Where
                it is taken, a number is appended: nothing is ever overwritten.
            snapshot: What to keep.
            progress: (round, step within the round); the checkpoint of the highest is the newest.
            score: Validation measure of a finished round, lower is better; None inside a round.

        Returns:
            Name and digest, equal on all ranks.

        Raises:
            CheckpointWriteError: On every rank, if a file could not be written on one of them. What was
                written is deleted, what was there before stays.
            LsrError: On every rank, if the name, the score or the arrays are not as described, or anything
                else went wrong on one of them; nothing is left of the checkpoint then either.

        Collective: all ranks of ``comm``; a broadcast and four small gathers besides the files.
        """
        agree(comm, partial(_check_arguments, name, score))
        pieces = comm.allgather(pieces_of(snapshot))
        layout = agree(comm, lambda: plan_layout(pieces, comm.rank))
        temporary = on_first(comm, lambda: begin(self.root, name))

        def finish() -> CheckpointId:
            manifest = Manifest(
                job_sha256=self._job_sha256,
                progress=progress,
                is_finished=not name.endswith(_PART),
                score=score,
                parent=self._parent,
                files={file: record for own in gathered or [] for file, record in own.items()},
                arrays=layout.arrays,
            )
            return publish(temporary, name, manifest)

        try:
            records = agree(comm, lambda: write_own(temporary, snapshot, layout, with_common=comm.rank == 0))
            gathered = comm.gather(records)
            self._parent = on_first(comm, finish)
        except Exception:
            if comm.rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        if comm.rank == 0:
            self._delete_superfluous(self._parent)
        return self._parent

    def load_newest(self, comm: MPI.Comm) -> tuple[CheckpointId, SavedState] | None:
        """Find the newest checkpoint that is intact; damaged ones are moved to ``quarantine``.

        Args:
            comm: Communicator.

        Returns:
            The checkpoint, or None if there never was any.

        Raises:
            CheckpointReadError: On every rank, if there were some and none is intact.
            JobError: On every rank, if they belong to another job.
            EnvironmentProblem: On every rank, if one may be intact but cannot be read.

        Collective: all ranks of ``comm``; every byte of the newest checkpoint is read once.
        """
        candidates, tried = on_first(comm, self._candidates)
        for identifier, manifest in candidates:
            fault = self._first_fault(comm, identifier.name, manifest)
            if fault is None:
                self._parent = identifier
                return identifier, self._open(comm, identifier.name, manifest)
            tried.append(on_first(comm, partial(self._set_aside, identifier.name, fault)))
        if tried:
            raise CheckpointReadError(
                f"no checkpoint in {self.root} is intact, tried {'; '.join(tried)}: restore one from a copy, "
                "or start anew in another directory",
                on_every_rank=True,
            )
        return None

    def load(self, comm: MPI.Comm, identifier: CheckpointId) -> SavedState:
        """Open one checkpoint.

        Args:
            comm: Communicator.
            identifier: Its name and digest.

        Returns:
            What it holds.

        Raises:
            JobError: On every rank, if it has another digest or belongs to another job.
            CheckpointReadError: On every rank, if it is missing or damaged; it stays where it is.
            EnvironmentProblem: On every rank, if it may be intact but cannot be read.

        Collective: all ranks of ``comm``; every byte is read once.
        """
        manifest = on_first(comm, lambda: self._identified(identifier))
        fault = self._first_fault(comm, identifier.name, manifest)
        if fault is not None:
            raise CheckpointReadError(_damage(self.root / identifier.name, fault), on_every_rank=True)
        self._parent = identifier
        return self._open(comm, identifier.name, manifest)

    def stored(self) -> list[Stored]:
        """What is there, by its manifests; not collective, and no other file is looked at.

        Returns:
            Checkpoints with a readable manifest, newest first.

        Raises:
            JobError: If one was written by another version of this package.
            EnvironmentProblem: If a manifest may be intact but cannot be read.
        """
        loaded = [load_manifest(directory) for directory in checkpoint_directories(self.root)]
        found = [Stored.of(*entry) for entry in loaded if not isinstance(entry, Fault)]
        return sorted(found, key=lambda s: s.age, reverse=True)

    def names(self) -> list[str]:
        """Names of the checkpoints with a readable manifest; not collective.

        Returns:
            Names, newest first.

        Raises:
            JobError: If one was written by another version of this package.
            EnvironmentProblem: If a manifest may be intact but cannot be read.
        """
        return [s.identifier.name for s in self.stored()]

    def purge(self) -> None:
        """Delete what killed processes left half written; for the one process that may write here."""
        if self.root.is_dir():
            for path in self.root.glob(f"*{TEMPORARY}*"):
                delete(path)

    def _delete_superfluous(self, just_written: CheckpointId) -> None:
        try:
            stored = self.stored()
        except (OSError, LsrError) as error:
            _log.warning("no old checkpoint in %s is deleted: %s", self.root, error)
            return
        for old in superfluous(stored, self._keep, just_written):
            discard(self.root / old.identifier.name)

    def _candidates(self) -> tuple[list[tuple[CheckpointId, Manifest]], list[str]]:
        """Checkpoints with an intact manifest, newest first, and what was tried in vain, now or earlier."""
        quarantine = self.root / _QUARANTINE
        tried = (
            [f"{_QUARANTINE}/{p.name}" for p in sorted(quarantine.iterdir())] if quarantine.is_dir() else []
        )
        intact = []
        for directory in checkpoint_directories(self.root):
            loaded = load_manifest(directory)
            if isinstance(loaded, Fault):
                tried.append(self._set_aside(directory.name, loaded))
                continue
            self._check_job(directory, loaded[1])
            intact.append(loaded)
        if not intact and not tried and (self.root / LATEST).exists():
            tried.append(f"{LATEST} names a checkpoint, but none is there")
        return sorted(intact, key=lambda entry: Stored.of(*entry).age, reverse=True), tried

    def _check_job(self, directory: Path, manifest: Manifest) -> None:
        if manifest.job_sha256 != self._job_sha256:
            raise JobError(
                f"checkpoint {directory} belongs to another job (digest {manifest.job_sha256[:12]}..., this "
                f"one has {self._job_sha256[:12]}...): resume with the job it was made with, or name another "
                "--out"
            )

    def _identified(self, identifier: CheckpointId) -> Manifest:
        directory = self.root / identifier.name
        loaded = load_manifest(directory)
        if isinstance(loaded, Fault):
            raise CheckpointReadError(_damage(directory, loaded))
        found, manifest = loaded
        if found != identifier:
            raise JobError(
                f"checkpoint {directory} has digest {found.sha256[:12]}..., asked for is "
                f"{identifier.sha256[:12]}...: it is another one of the same name"
            )
        self._check_job(directory, manifest)
        return manifest

    def _first_fault(self, comm: MPI.Comm, name: str, manifest: Manifest) -> Fault | None:
        """Check a checkpoint, each rank its share of the files."""
        directory = self.root / name
        wrong = on_first(comm, lambda: names_faults(directory, manifest.names))
        if not wrong:
            by_size = sorted(manifest.files, key=lambda file: (-manifest.files[file].size, file))
            share = by_size[comm.rank :: comm.size]
            faults = agree(comm, lambda: [file_fault(directory / f, manifest.files[f]) for f in share])
            wrong = [fault for found in comm.allgather(faults) for fault in found if fault]
        return wrong[0] if wrong else None

    def _set_aside(self, name: str, fault: Fault) -> str:
        """Move a damaged checkpoint out of the way; returns a line for the message."""
        place = self.root / _QUARANTINE / f"{name}-{fault.kind}"
        try:
            place.parent.mkdir(mode=0o700, exist_ok=True)
            while place.exists():
                place = place.with_name(f"{name}-{fault.kind}-{secrets.token_hex(2)}")
            (self.root / name).rename(place)
            _log.warning("checkpoint %s is damaged (%s); moved to %s", self.root / name, fault, place)
        except OSError as error:
            _log.warning(
                "checkpoint %s is damaged (%s) and stays: %s", self.root / name, fault, error.strerror
            )
        return f"{name}: {fault}"

    def _open(self, comm: MPI.Comm, name: str, manifest: Manifest) -> DiskState:
        directory = self.root / name
        values = on_first(comm, lambda: _read_values(directory / STATE))
        return DiskState(directory, manifest, values)


def _check_arguments(name: str, score: float | None) -> None:
    if not _NAME.fullmatch(name) or name in {LATEST, _QUARANTINE}:
        raise ValueError(f"name {name!r} of a checkpoint: letters, digits, _ and - only")
    if score is not None and (name.endswith(_PART) or not math.isfinite(score)):
        raise ValueError(f"score {score} of {name!r}: a finite number for a finished round, else None")


def _read_values(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_bytes())
    return values


def _damage(directory: Path, fault: Fault) -> str:
    return f"checkpoint {directory} is damaged: {fault}; `lsr-hpc verify` tells which others are intact"
