"""A thinned copy of the evaluation data with the errors on it, small enough to be kept with every run."""

# Legend: n points kept, d coordinates, C components.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.problem import Evaluation, as_tensor
from lsr_hpc.store import read_tensors, write_tensors

__all__ = ["grid_axes", "read_fields", "sample_fields", "write_fields"]

Array = NDArray[np.float64]

# Points kept of one instance, of all instances of a family together, and of one instance at least.
_MOST_POINTS, _MOST_POINTS_IN_ALL, _FEWEST_POINTS = 20_000, 400_000, 64
_MOST_COMPONENTS = 4
_POINTS_AT_ONCE = 1024


def sample_fields(
    evaluation: Evaluation, fields: Mapping[str, Callable[..., Tensor]], n_instances: int
) -> dict[str, Tensor]:
    """Evaluate fields at some of the evaluation points.

    Args:
        evaluation: Checked evaluation data.
        fields: Fields by name; each maps the inputs, (n, ...), to all outputs.
        n_instances: How many instances share the room.

    Returns:
        float32: ``points`` (n, d), where the inputs are one array of coordinates; ``reference`` (n, C); and
        for every field its difference from the reference, (n, C). At most 20,000 points, evenly thinned; a
        grid stays a grid; at most four components.
    """
    limit = min(_MOST_POINTS, max(_FEWEST_POINTS, _MOST_POINTS_IN_ALL // n_instances))
    sources = evaluation.inputs
    has_coordinates = len(sources) == 1 and len(sources[0].shape) == 2
    points = as_tensor(sources[0][:]) if has_coordinates else None
    chosen = _thinned(evaluation.n_points, None if points is None else points.numpy(), limit)
    index = torch.from_numpy(chosen)
    inputs = [
        as_tensor(source[index] if isinstance(source, Tensor) else source[chosen]) for source in sources
    ]
    whole = evaluation.reference
    reference = as_tensor(whole[index] if isinstance(whole, Tensor) else whole[chosen])
    kept = {"reference": reference}
    if points is not None:
        kept["points"] = points[index]
    kept |= {
        name: evaluation.judged(_in_batches(field, inputs)) - reference for name, field in fields.items()
    }
    return {
        name: (t.flatten(1)[:, :_MOST_COMPONENTS] if name != "points" else t).float()
        for name, t in kept.items()
    }


def _in_batches(field: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """A field at all points, a few at a time: it must not be what a run's memory peaks at."""
    with torch.no_grad():
        return torch.cat([
            field(*(x[lo : lo + _POINTS_AT_ONCE] for x in inputs))
            for lo in range(0, len(inputs[0]), _POINTS_AT_ONCE)
        ])


def write_fields(path: Path, kept: Mapping[str, Tensor]) -> None:
    """Write what :func:`sample_fields` returned.

    Args:
        path: File, ending in ``.safetensors``; its directory is made.
        kept: Tensors by name.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, kept)


def read_fields(path: Path) -> dict[str, Array]:
    """Read it back.

    Args:
        path: File.

    Returns:
        float64 arrays by name.

    Raises:
        JobError: If it cannot be read.
    """
    return {name: t.double().numpy() for name, t in read_tensors(path, if_missing="refine again").items()}


def grid_axes(points: Array) -> tuple[Array, Array] | None:
    """Axes of a plane grid, whatever the order of its points.

    Args:
        points: Shape (n, 2).

    Returns:
        Coordinates along both axes, increasing; None if the points are no full grid.
    """
    if points.ndim != 2 or points.shape[1] != 2:
        return None
    first, second = np.unique(points[:, 0]), np.unique(points[:, 1])
    if len(first) * len(second) != len(points) or min(len(first), len(second)) < 2:
        return None
    cells = np.searchsorted(first, points[:, 0]) * len(second) + np.searchsorted(second, points[:, 1])
    return (first, second) if len(np.unique(cells)) == len(points) else None


def _thinned(n: int, points: Array | None, limit: int) -> NDArray[np.int64]:
    """Numbers of the points to keep, increasing."""
    if n <= limit:
        return np.arange(n)
    axes = None if points is None else grid_axes(points)
    if axes is None or points is None:
        return np.unique(np.linspace(0, n - 1, limit).round().astype(np.int64))
    step = next(s for s in range(2, n) if -(-len(axes[0]) // s) * -(-len(axes[1]) // s) <= limit)
    kept = [np.isin(points[:, i], axis[::step]) for i, axis in enumerate(axes)]
    return np.flatnonzero(kept[0] & kept[1])
