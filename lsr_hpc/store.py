"""Files that are either whole or absent, with digests that notice any flipped byte.

A directory is written as a fresh temporary one beside its final place, every file is flushed to disk, the
manifest with the SHA-256 of each file comes last, and one rename publishes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lsr_hpc.errors import JobError

__all__ = [
    "file_digest",
    "publish_directory",
    "read_manifest",
    "read_tensors",
    "sync_file",
    "write_manifest",
    "write_tensors",
]


def sync_file(path: Path) -> None:
    """Flush a file or directory to disk.

    Args:
        path: What to flush.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        Hexadecimal digest.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def publish_directory(final: Path) -> Iterator[Path]:
    """Fill a temporary directory and rename it to its final place when the block ends well.

    A directory that is already there is kept as ``NAME.previous`` (replacing an older one).

    Args:
        final: Where the directory is to appear.

    Yields:
        The temporary directory.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            sync_file(path)
        if final.exists():
            previous = final.with_name(final.name + ".previous")
            shutil.rmtree(previous, ignore_errors=True)
            final.rename(previous)
        temporary.rename(final)
        sync_file(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors.

    Args:
        path: File to write.
        tensors: Tensors by name.

    Returns:
        The file's SHA-256.
    """
    from safetensors.torch import save_file

    save_file({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, path)
    return file_digest(path)


def read_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read safetensors, refusing damaged files; nothing is ever unpickled.

    Args:
        path: File to read.
        sha256: Expected digest, or None to trust the file.

    Returns:
        Tensors by name.

    Raises:
        JobError: If the file is missing, unreadable or differs from its digest.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise JobError(f"weights file {path} does not exist: check the path, or make it with `lsr-hpc train`")
    if sha256 is not None and file_digest(path) != sha256:
        raise JobError(
            f"{path} differs from its recorded SHA-256 ({sha256[:12]}...): it was changed or damaged; "
            "restore it or make it again"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise JobError(
            f"{path} is not a readable safetensors file ({error}); convert a state_dict with "
            "safetensors.torch.save_file"
        ) from error


def _json_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that carries its own digest.

    Args:
        path: File to write.
        content: JSON-compatible content without NaN.
    """
    signed = {**content, "sha256_of_content": _json_digest(content)}
    path.write_text(json.dumps(signed, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a JSON file written by :func:`write_manifest`.

    Args:
        path: File to read.

    Returns:
        Its content, digest removed.

    Raises:
        JobError: If it is missing, unreadable or was changed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("sha256_of_content")
    except FileNotFoundError:
        raise JobError(f"{path} does not exist: is this the right directory?") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise JobError(f"{path} is damaged ({type(error).__name__}): restore it or make it again") from error
    if digest != _json_digest(content):
        raise JobError(f"{path} was changed or damaged after it was written: restore it or make it again")
    return dict(content)
