"""What an interrupted computation needs to go on: named arrays, some cut over the MPI ranks, and values.

Pure data: whoever computes makes a :class:`Snapshot` and reads a :class:`SavedState`, and knows no files.
:mod:`lsr_hpc.checkpoint` is what lies between the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DTYPES",
    "Boundary",
    "Cut",
    "MemoryState",
    "SavedState",
    "Snapshot",
    "check_range",
    "no_boundary",
]

Array = NDArray[Any]

DTYPES = ("float64", "float32", "int64")


@dataclass(frozen=True)
class Cut:
    """This rank's range of an array that is cut along its last axis over all ranks, in rank order.

    Attributes:
        local: Shape (..., n_local); float64, float32 or int64; n_local may be 0.
        first: Global index of its first column.
        n_global: Length of the whole last axis.

    Raises:
        ValueError: If the dtype is another or the range lies outside [0, n_global).
    """

    local: Array
    first: int
    n_global: int

    def __post_init__(self) -> None:
        _check_dtype("a cut array", self.local)
        if self.local.ndim == 0:
            raise ValueError("a cut array needs an axis to be cut along, this one has none")
        if not 0 <= self.first <= self.behind <= self.n_global:
            raise ValueError(f"range [{self.first}, {self.behind}) lies outside [0, {self.n_global})")

    @property
    def behind(self) -> int:
        """Global index behind the last column."""
        return self.first + int(self.local.shape[-1])


@dataclass(frozen=True)
class Snapshot:
    """State of a computation between two of its steps.

    Attributes:
        arrays: Plain arrays are equal on all ranks; a :class:`Cut` is this rank's range.
        values: JSON (dicts with text keys, lists, text, numbers, booleans, None), equal on all ranks; no NaN
            or Inf.

    Raises:
        ValueError: If an array has a dtype that cannot be stored, or a value would not come back as it was.
    """

    arrays: Mapping[str, Array | Cut] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, array in self.arrays.items():
            if not isinstance(array, Cut):
                _check_dtype(f"array {name!r}", array)
        try:
            again = json.loads(json.dumps(self.values, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"values of a snapshot must be JSON with finite numbers: {error}") from error
        changed = [k for k, v in self.values.items() if again.get(k) != v]
        if changed or len(again) != len(self.values):
            raise ValueError(
                f"values {changed or list(self.values)} would come back as something else: "
                "use text keys and lists, no tuples"
            )

    def merged(self, other: Snapshot) -> Snapshot:
        """Both together; names must be distinct.

        Args:
            other: Another part of the state.

        Returns:
            A snapshot with the arrays and values of both.

        Raises:
            ValueError: If a name is in both.
        """
        common = (self.arrays.keys() & other.arrays.keys()) | (self.values.keys() & other.values.keys())
        if common:
            raise ValueError(f"both snapshots have {sorted(common)}")
        return Snapshot({**self.arrays, **other.arrays}, {**self.values, **other.values})


Boundary = Callable[[Callable[[], Snapshot]], None]
"""What long computations call between two of their steps, on all ranks together, with what makes a snapshot
of the state there. It may keep the snapshot; to end the computation it raises
:class:`lsr_hpc.errors.StopRequested` on every rank."""


def no_boundary(snapshot: Callable[[], Snapshot]) -> None:
    """The boundary of a computation that nobody interrupts.

    Args:
        snapshot: Not called.
    """


class SavedState(Protocol):
    """A snapshot that was kept, readable on any number of ranks."""

    @property
    def values(self) -> Mapping[str, Any]:
        """The values, equal on all ranks."""

    @property
    def names(self) -> frozenset[str]:
        """Names of the arrays."""

    def whole(self, name: str) -> Array:
        """A whole array, whether it was cut or not; not collective.

        Args:
            name: Its name.

        Returns:
            The array, which the caller owns.

        Raises:
            KeyError: If there is no such array.
        """

    def part(self, name: str, first: int, behind: int) -> Array:
        """A range of an array's last axis, however it was cut when it was kept; not collective.

        Args:
            name: Its name.
            first: First column.
            behind: Column behind the last one.

        Returns:
            Shape (..., behind - first), which the caller owns. Only what overlaps the range is read.

        Raises:
            KeyError: If there is no such array.
            ValueError: If the range does not lie inside the array.
        """


class MemoryState:
    """The :class:`SavedState` of a snapshot that one process holds whole.

    Args:
        snapshot: Its cut arrays, if any, must own the whole range.

    Raises:
        ValueError: If a cut array is not whole.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._arrays: dict[str, Array] = {}
        for name, array in snapshot.arrays.items():
            if isinstance(array, Cut) and array.local.shape[-1] != array.n_global:
                raise ValueError(f"array {name!r} is here from {array.first} to {array.behind} only")
            self._arrays[name] = array.local if isinstance(array, Cut) else array
        self.values: Mapping[str, Any] = snapshot.values

    @property
    def names(self) -> frozenset[str]:
        """Names of the arrays."""
        return frozenset(self._arrays)

    def whole(self, name: str) -> Array:
        """A copy of an array.

        Args:
            name: Its name.

        Returns:
            The copy.
        """
        return self._arrays[name].copy()

    def part(self, name: str, first: int, behind: int) -> Array:
        """A copy of a range of an array's last axis.

        Args:
            name: Its name.
            first: First column.
            behind: Column behind the last one.

        Returns:
            Shape (..., behind - first).
        """
        array = self._arrays[name]
        check_range(name, array.shape, first, behind)
        return array[..., first:behind].copy()


def check_range(name: str, shape: tuple[int, ...], first: int, behind: int) -> None:
    """Refuse a range outside an array's last axis, where slicing would shorten it in silence.

    Args:
        name: Name of the array, for the message.
        shape: Its whole shape.
        first: First column.
        behind: Column behind the last one.

    Raises:
        ValueError: If there is no last axis or the range does not lie inside it.
    """
    if not shape or not 0 <= first <= behind <= shape[-1]:
        raise ValueError(f"range [{first}, {behind}) lies outside array {name!r} of shape {shape}")


def _check_dtype(what: str, array: Array) -> None:
    if not isinstance(array, np.ndarray) or array.dtype.name not in DTYPES:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{what} is {kind}: only numpy arrays of {', '.join(DTYPES)} can be kept")
