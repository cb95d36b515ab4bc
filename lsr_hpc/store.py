"""Tensors and JSON with digests that notice any flipped byte; :mod:`lsr_hpc.publish` puts them in place."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr_hpc.errors import JobError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "file_digest",
    "is_manifest",
    "read_manifest",
    "read_tensors",
    "write_manifest",
    "write_tensors",
]

# Names of the tensors that are pairs of real and imaginary parts, in a file's metadata.
_OF_PAIRS = "complex"


def file_digest(path: Path) -> str:
    """SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        Hexadecimal digest.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors; complex ones as pairs of real numbers, marked in the header.

    Args:
        path: File to write.
        tensors: Tensors by name.

    Returns:
        The file's SHA-256.

    Raises:
        OSError: If it cannot be written, for example because the disk is full.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    of_pairs = sorted(name for name, tensor in tensors.items() if tensor.is_complex())
    metadata = {_OF_PAIRS: json.dumps(of_pairs)} if of_pairs else None
    reals = {n: torch.view_as_real(t.resolve_conj()) if n in of_pairs else t for n, t in tensors.items()}
    try:
        save_file({n: t.detach().cpu().contiguous().clone() for n, t in reals.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    # safetensors makes files that the owner alone may read; the umask can be read only by setting it.
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
    return file_digest(path)


def read_tensors(
    path: Path,
    sha256: str | None = None,
    if_missing: str = "check the path, or make it with `lsr-hpc train`",
) -> dict[str, Tensor]:
    """Read safetensors, refusing damaged files; nothing is ever unpickled.

    Args:
        path: File to read.
        sha256: Expected digest, or None to trust the file.
        if_missing: What to do when there is no such file.

    Returns:
        Tensors by name.

    Raises:
        JobError: If the file is missing, unreadable or differs from its digest.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not path.is_file():
        missing = "is not a file" if path.exists() else "does not exist"
        raise JobError(f"weights file {path} {missing}: {if_missing}")
    try:
        if sha256 is not None and file_digest(path) != sha256:
            raise JobError(
                f"{path} differs from its recorded SHA-256 ({sha256[:12]}...): it was changed or damaged; "
                "restore it or make it again"
            )
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            of_pairs = json.loads((file.metadata() or {}).get(_OF_PAIRS, "[]"))
        return tensors | {name: torch.view_as_complex(tensors[name].clone()) for name in of_pairs}
    except JobError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise JobError(
            f"{path} is cut off, or no safetensors file ({error}): restore it; a state_dict of torch.save is "
            "converted by safetensors.torch.save_file"
        ) from error


def _signed_text(content: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
    signed = {**content, "sha256_of_content": digest}
    return json.dumps(signed, indent=1, allow_nan=False) + "\n"


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that carries its own digest.

    Args:
        path: File to write.
        content: JSON-compatible content without NaN.
    """
    path.write_text(_signed_text(content), encoding="utf-8")


def is_manifest(path: Path) -> bool:
    """Whether a file is, or may be the damaged remains of, one that :func:`write_manifest` wrote.

    Args:
        path: File to look at.

    Returns:
        False if there is no file, or readable JSON without a digest of its own.
    """
    if not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(content, dict) and not {"sha256_of_content", "sha256"}.isdisjoint(content)


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
        text = path.read_bytes().decode()
        content = json.loads(text)
        del content["sha256_of_content"]
        # Compared as text, so that not even a changed space or the case of an exponent goes unnoticed.
        is_intact = text == _signed_text(content)
    except FileNotFoundError:
        raise JobError(f"{path} does not exist: is this the right directory?") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise JobError(
            f"{path} is damaged or not a file of lsr_hpc ({type(error).__name__}): restore it or make it "
            "again"
        ) from error
    if not is_intact:
        raise JobError(f"{path} was changed or damaged after it was written: restore it or make it again")
    return dict(content)
