"""Mean, median, ninetieth percentile and worst of a figure over the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Spread", "spread"]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How a figure is spread over the targets.

    Attributes:
        mean: Arithmetic mean.
        median: Median.
        p90: Ninetieth percentile, linear between values.
        worst: Largest.
    """

    mean: float
    median: float
    p90: float
    worst: float


def spread(values: Sequence[float | None]) -> Spread | None:
    """Describe figures.

    Args:
        values: Numbers, or None where one is not known.

    Returns:
        Their spread; None if there are none, or one is not known.
    """
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return None
    return Spread(
        mean=float(np.mean(known)),
        median=float(np.median(known)),
        p90=float(np.percentile(known, 90)),
        worst=max(known),
    )
