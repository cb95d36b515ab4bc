"""Files of a checkpoint: written once, hashed on the way, flushed to disk.

Arrays are stored as safetensors: eight bytes with the length of a JSON header, the header, the arrays one
after another. They are written here and not by the safetensors library because that would copy them all, hash
in a second pass, and hide the errno by which a full disk is told from a broken one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.errors import CheckpointWriteError
from lsr_hpc.integrity import FileRecord, persistently

__all__ = ["at", "write_arrays", "write_bytes", "write_error"]

_DTYPE_CODES = {"float64": "F64", "float32": "F32", "int64": "I64"}
_CHUNK_BYTES = 8 * 2**20


def at(step: str) -> None:
    """Called at every step of writing a checkpoint; tests put something here that kills the process.

    Args:
        step: Name of the step that is about to be taken.
    """


def write_bytes(path: Path, chunks: Callable[[], Iterator[bytes | memoryview]]) -> FileRecord:
    """Write a file and flush it to disk; a passing error of the file system is met by writing it anew.

    Args:
        path: File to write; what is there is overwritten.
        chunks: Makes the content, piece by piece.

    Returns:
        Size and digest of what was handed to the operating system.

    Raises:
        OSError: If it cannot be written.
    """

    def attempt() -> FileRecord:
        sha256, size = hashlib.sha256(), 0
        at(f"open {path.name}")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            for chunk in chunks():
                sha256.update(chunk)
                size += len(chunk)
                file.write(chunk)
            at(f"flush {path.name}")
            file.flush()
            os.fsync(file.fileno())
        return FileRecord(size, sha256.hexdigest())

    return persistently(attempt, f"write {path}")


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> FileRecord:
    """Write arrays as safetensors; needs a copy only of an array that is not contiguous.

    Args:
        path: File to write.
        arrays: float64, float32 or int64 arrays by name.

    Returns:
        Size and digest.

    Raises:
        OSError: If it cannot be written.
    """
    # Wide dtypes first keeps every array aligned to its own item size.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        array = arrays[name]
        first, end = end, end + array.nbytes
        header[name] = {
            "dtype": _DTYPE_CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [first, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for name in names:
            array = arrays[name]
            at(f"array {name}")
            little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
            content = little_endian.reshape(-1).view(np.uint8).data
            for lo in range(0, len(content), _CHUNK_BYTES):
                yield content[lo : lo + _CHUNK_BYTES]

    return write_bytes(path, chunks)


def write_error(path: Path, error: OSError) -> CheckpointWriteError:
    """Put an error of writing in words.

    Args:
        path: What was to be written.
        error: What the operating system said.

    Returns:
        The error to raise, with advice.
    """
    place = error.filename or path
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        remedy = "free some of the disk, then resume"
    elif error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}:
        remedy = "make the run directory writable again, then resume"
    else:
        remedy = "look at the file system, then resume"
    return CheckpointWriteError(
        f"checkpoint {place} cannot be written: {error.strerror or error}; {remedy}. Earlier checkpoints are "
        "as they were"
    )
