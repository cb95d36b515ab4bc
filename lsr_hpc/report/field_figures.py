"""Figures of a field and its errors: curves in one dimension, maps in two, shares of points otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.field_sample import grid_axes
from lsr_hpc.report.style import COLOURS, MAP, new_figure

__all__ = ["field_figure"]

Array = NDArray[np.float64]

_NAMES = {"start": "error of the start", "refined": "error, refined", "network": "error, aligned network"}
_LINES = {"start": "-", "refined": "--", "network": "-."}
# Decades shown below the largest error; what is smaller is drawn at the lower end.
_DECADES = 12.0


def field_figure(fields: Mapping[str, Array]) -> Any:
    """Reference and errors, all errors on one logarithmic scale.

    Args:
        fields: What :func:`lsr_hpc.field_sample.sample_fields` returned; the first component is shown.

    Returns:
        The figure.
    """
    reference = fields["reference"][:, 0]
    errors = {name: np.abs(fields[name][:, 0]) for name in _NAMES if name in fields}
    low, high = _shared_scale(errors)
    points = fields.get("points")
    dimensions = 0 if points is None else points.shape[1]
    if points is not None and dimensions == 1:
        return _curves(points[:, 0], reference, errors, low, high)
    if points is not None and dimensions == 2:
        return _maps(points, reference, errors, low, high)
    return _shares(errors, low)


def _shared_scale(errors: Mapping[str, Array]) -> tuple[float, float]:
    """From the first percentile of the smallest errors to the largest one, at most twelve decades."""
    positive = [e[e > 0] for e in errors.values() if (e > 0).any()]
    if not positive:
        return 1e-17, 1.0
    high = float(max(e.max() for e in positive))
    low = float(min(np.percentile(e, 1) for e in positive))
    return max(low, high * 10**-_DECADES, 1e-300), high


def _curves(x: Array, reference: Array, errors: Mapping[str, Array], low: float, high: float) -> Any:
    order = np.argsort(x)
    figure, axes = new_figure(1, 2, height=3.0)
    axes[0, 0].plot(x[order], reference[order], color=COLOURS["reference"])
    axes[0, 0].set_title("reference", fontsize=9)
    for name, error in errors.items():
        axes[0, 1].semilogy(
            x[order],
            np.maximum(error[order], low),
            _LINES[name],
            color=COLOURS[name],
            linewidth=1.2,
            label=_NAMES[name],
        )
    axes[0, 1].set_ylim(low / 2, 2 * high)
    axes[0, 1].set_title("absolute error", fontsize=9)
    axes[0, 1].legend(fontsize=8)
    for one in axes[0]:
        one.set_xlabel("x")
    return figure


def _maps(points: Array, reference: Array, errors: Mapping[str, Array], low: float, high: float) -> Any:
    from matplotlib.colors import LogNorm

    n = 1 + len(errors)
    figure, axes = new_figure(1, n, width=2.9 * n + 0.6, height=2.9)
    norm = LogNorm(low, max(high, 1.001 * low))
    shown = _draw_map(axes[0, 0], points, reference, None)
    figure.colorbar(shown, ax=axes[0, 0], shrink=0.85).ax.tick_params(labelsize=7)
    axes[0, 0].set_title("reference", fontsize=9)
    for one, (name, error) in zip(axes[0, 1:], errors.items(), strict=True):
        shown = _draw_map(one, points, np.maximum(error, low), norm)
        one.set_title(_NAMES[name], fontsize=9)
    figure.colorbar(shown, ax=list(axes[0, 1:]), shrink=0.85, label="absolute error").ax.tick_params(
        labelsize=7
    )
    for one in axes[0]:
        one.grid(visible=False)
        one.set_xlabel("x1")
    axes[0, 0].set_ylabel("x2")
    return figure


def _draw_map(one: Any, points: Array, values: Array, norm: Any) -> Any:
    axes = grid_axes(points)
    if axes is None:
        return one.scatter(*points.T, c=values, norm=norm, cmap=MAP, s=4, linewidths=0, rasterized=True)
    order = np.lexsort((points[:, 1], points[:, 0]))
    table = values[order].reshape(len(axes[0]), len(axes[1]))
    return one.pcolormesh(*axes, table.T, norm=norm, cmap=MAP, shading="nearest", rasterized=True)


def _shares(errors: Mapping[str, Array], low: float) -> Any:
    figure, axes = new_figure(height=3.0)
    for name, error in errors.items():
        share = np.arange(1, len(error) + 1) / len(error)
        axes[0, 0].semilogx(
            np.sort(np.maximum(error, low)), share, _LINES[name], color=COLOURS[name], label=_NAMES[name]
        )
    axes[0, 0].set_xlabel("absolute error")
    axes[0, 0].set_ylabel("share of the points below it")
    axes[0, 0].legend(fontsize=8)
    return figure
