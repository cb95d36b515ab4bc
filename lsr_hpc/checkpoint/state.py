"""Reading a checkpoint on any number of ranks: of cut arrays only the shards that a range overlaps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.checkpoint.manifest import WHOLE, Manifest, Part, StoredArray
from lsr_hpc.snapshot import check_range

__all__ = ["DiskState"]

Array = NDArray[Any]


class DiskState:
    """The :class:`lsr_hpc.snapshot.SavedState` of a checkpoint whose bytes were checked.

    Arrays are read when they are asked for: read what you need before the next checkpoint is written, which
    may delete this one.

    Args:
        directory: The checkpoint.
        manifest: Its manifest.
        values: Content of its ``state.json``.
    """

    def __init__(self, directory: Path, manifest: Manifest, values: Mapping[str, Any]) -> None:
        self.values = values
        self._directory = directory
        self._arrays = manifest.arrays

    @property
    def names(self) -> frozenset[str]:
        """Names of the arrays."""
        return frozenset(self._arrays)

    def whole(self, name: str) -> Array:
        """Read a whole array.

        Args:
            name: Its name.

        Returns:
            The array.

        Raises:
            KeyError: If there is no such array.
        """
        shape = self._stored(name).shape
        if self._stored(name).parts is None:
            return self._read(WHOLE, name, ())
        return self.part(name, 0, shape[-1])

    def part(self, name: str, first: int, behind: int) -> Array:
        """Read columns [first, behind) of an array.

        Args:
            name: Its name.
            first: First column.
            behind: Column behind the last one.

        Returns:
            Shape (..., behind - first).

        Raises:
            KeyError: If there is no such array.
            ValueError: If the range does not lie inside the array.
        """
        array = self._stored(name)
        check_range(name, array.shape, first, behind)
        columns = (slice(None),) * (len(array.shape) - 1)
        if array.parts is None:
            return self._read(WHOLE, name, (*columns, slice(first, behind)))

        def read_piece(lo: int, hi: int, part: Part) -> Array:
            return self._read(part.file, name, (*columns, slice(lo - part.first, hi - part.first)))

        pieces = [
            (max(first, part.first), min(behind, part.behind), part)
            for part in array.parts
            if part.first < behind and first < part.behind
        ]
        if len(pieces) == 1:
            return read_piece(*pieces[0])
        result = np.empty((*array.shape[:-1], behind - first), array.dtype)
        for lo, hi, part in pieces:
            result[..., lo - first : hi - first] = read_piece(lo, hi, part)
        return result

    def _stored(self, name: str) -> StoredArray:
        if name not in self._arrays:
            raise KeyError(f"the checkpoint holds no array {name!r}; it holds {', '.join(self._arrays)}")
        return self._arrays[name]

    def _read(self, file: str, name: str, index: tuple[slice, ...]) -> Array:
        from safetensors import safe_open

        with safe_open(self._directory / file, framework="numpy") as tensors:
            if not index:
                whole: Array = tensors.get_tensor(name)
                return whole
            part: Array = tensors.get_slice(name)[index]
            return part
