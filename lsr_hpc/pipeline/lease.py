"""The right to do an attempt and to publish its result, which one program has and a second one is refused."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from contextlib import suppress

from lsr_hpc.pipeline.layout import AttemptFiles

__all__ = ["Lease", "revoke", "take"]


class Lease:
    """A lease that this process has taken.

    Args:
        files: The attempt.
        token: What the lease file has to hold.
    """

    def __init__(self, files: AttemptFiles, token: str) -> None:
        self._files = files
        self._token = token

    def is_valid(self) -> bool:
        """Whether the attempt is still this process's, and still wanted."""
        try:
            content = json.loads(self._files.lease.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return content.get("token") == self._token and not self._files.revoked.exists()


def take(files: AttemptFiles) -> Lease | None:
    """Take the lease of an attempt; on one rank only, the others are told.

    Args:
        files: The attempt.

    Returns:
        The lease, or None if another program has, or had, it, or the controller gave the attempt up.

    Raises:
        OSError: If the file system fails.
    """
    token = secrets.token_hex(16)
    content = {"token": token, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    try:
        # Exclusive creation is the one step that only one of several programs can do.
        descriptor = os.open(files.lease, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")
        file.flush()
        os.fsync(file.fileno())
    lease = Lease(files, token)
    return lease if lease.is_valid() else None


def revoke(files: AttemptFiles) -> None:
    """Give an attempt up: should its program still be alive somewhere, it will not publish.

    Args:
        files: The attempt.
    """
    with suppress(FileExistsError):
        files.revoked.touch(mode=0o600, exist_ok=False)
