"""Points and values in files: ``.npy``, ``.npz`` and ``.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.errors import JobError

__all__ = ["SUFFIXES", "read_points", "write_values"]

SUFFIXES = (".npy", ".npz", ".csv")
_POINTS, _VALUES = "x", "y"
_WRITE = {
    ".npy": "write it by numpy.save, as numbers",
    ".npz": "write it by numpy.savez, as numbers",
    ".csv": "write a point per line, with commas between the numbers and at most one line of names above",
}


def read_points(path: Path) -> NDArray[np.float64]:
    """Read points.

    Args:
        path: ``.npy``; ``.npz`` with one array, or with one named ``x``; ``.csv`` with a point per line,
            commas between the numbers, and perhaps a line of names before them. Any other name is read as
            ``.npy``.

    Returns:
        Shape (n, ...), float64; (n,) becomes (n, 1).

    Raises:
        JobError: If there is no such file, or it does not hold finite real numbers.
    """
    try:
        x: Any = _read_csv(path) if path.suffix == ".csv" else _read_numpy(path)
        if isinstance(x, np.lib.npyio.NpzFile):
            with x:
                x = _only_array(path, x)
    except FileNotFoundError:
        raise JobError(f"--input {path} does not exist: check the path") from None
    except JobError:
        raise
    except (ValueError, OSError, EOFError) as error:
        kind = path.suffix if path.suffix in SUFFIXES else ".npy"
        raise JobError(f"--input {path} is not a readable {kind} array ({error}): {_WRITE[kind]}") from error
    if not isinstance(x, np.ndarray) or not np.issubdtype(x.dtype, np.number) or np.iscomplexobj(x):
        raise JobError(
            f"--input {path} holds {getattr(x, 'dtype', type(x).__name__)}: one array of real numbers is "
            "expected"
        )
    if x.ndim == 0 or len(x) == 0:
        raise JobError(
            f"--input {path} has shape {x.shape}: give points as (n, d) or (n,), at least one of them"
        )
    if not np.isfinite(x).all():
        bad = int(np.argwhere(~np.isfinite(x))[0][0])
        raise JobError(
            f"--input {path} holds NaN or Inf, first in point {bad} (from 0): leave such points out"
        )
    return np.ascontiguousarray(x[:, np.newaxis] if x.ndim == 1 else x, dtype=np.float64)


def write_values(path: Path, suffix: str, points: NDArray[np.float64], values: NDArray[np.float64]) -> None:
    """Write values at points.

    Args:
        path: File to write, whatever its name.
        suffix: ``.npy`` writes the values, ``.npz`` points and values as ``x`` and ``y``, ``.csv`` both side
            by side with names above them.
        points: Shape (n, d).
        values: Shape (n, C); with ``.npy`` and ``.npz`` also (instances, n, C).

    Raises:
        OSError: If it cannot be written.
    """
    with path.open("wb") as file:
        if suffix == ".npy":
            np.save(file, values)
        elif suffix == ".npz":
            np.savez(file, **{_POINTS: points, _VALUES: values})
        else:
            columns = [points.reshape(len(points), -1), values.reshape(len(values), -1)]
            names = [f"{name}{i}" for name, c in zip("xy", columns, strict=True) for i in range(c.shape[1])]
            np.savetxt(
                file, np.hstack(columns), fmt="%.17g", delimiter=",", header=",".join(names), comments=""
            )


def _only_array(path: Path, archive: np.lib.npyio.NpzFile) -> NDArray[Any]:
    names: Sequence[str] = archive.files
    name = _POINTS if _POINTS in names else names[0] if len(names) == 1 else None
    if name is None:
        raise JobError(f"--input {path} holds the arrays {', '.join(names)}: name the points {_POINTS!r}")
    found: NDArray[Any] = archive[name]
    return found


def _read_numpy(path: Path) -> Any:
    with path.open("rb") as file:
        if not file.read(6).startswith((b"\x93NUMPY", b"PK")):
            raise ValueError("it does not begin like one")
    return np.load(path, allow_pickle=False)


def _read_csv(path: Path) -> NDArray[np.float64]:
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline()
    return np.loadtxt(
        path, delimiter=",", ndmin=2, skiprows=0 if _is_numbers(first) else 1, encoding="utf-8-sig"
    )


def _is_numbers(line: str) -> bool:
    try:
        return bool([float(word) for word in line.split(",")])
    except ValueError:
        return False
