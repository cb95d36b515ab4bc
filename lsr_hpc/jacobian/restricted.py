"""J restricted to some of the parameters: all others keep their trained value.

Panels over the parameters shrink with the restriction, and with them memory and orthogonalisation; a product
costs as much as before. The explicit Jacobian restricts itself, and holds the free columns alone.
"""

# Legend: P parameters, P' <= P of them free.

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor

from lsr_hpc.errors import JobError
from lsr_hpc.jacobian.operator import JacobianOperator
from lsr_hpc.params import ParameterLayout
from lsr_hpc.sampling import uniform_rows

__all__ = ["RestrictedJacobian", "choose_parameters"]

_STREAM_PARAMETERS = 6


def choose_parameters(layout: ParameterLayout, names: Sequence[str], fraction: float, seed: int) -> Tensor:
    """Flat coordinates of the free parameters.

    Args:
        layout: All parameters.
        names: Patterns of parameter names (``*`` and ``?`` as in a shell); empty for all.
        fraction: Share of the numbers in them that are free, drawn at random.
        seed: Seed of the draw.

    Returns:
        Increasing coordinates, shape (P',), int64; equal on every rank.

    Raises:
        JobError: If a pattern fits no parameter, or nothing is left.
    """
    for pattern in names:
        if not any(fnmatchcase(name, pattern) for name in layout.names):
            raise JobError(
                f"subspace.parameters: {pattern!r} fits no trainable parameter; their names are like "
                f"{', '.join(layout.names[:: max(1, len(layout.names) // 6)])}"
            )
    free = torch.cat([
        torch.full(
            (where.stop - where.start,), not names or any(fnmatchcase(name, pattern) for pattern in names)
        )
        for name, where in layout.ranges.items()
    ])
    if fraction < 1.0:
        draws = uniform_rows(seed, _STREAM_PARAMETERS, 0, layout.size, 1)[:, 0]
        free &= torch.from_numpy(np.less(draws, fraction))
    chosen = torch.nonzero(free).flatten()
    if len(chosen) == 0:
        raise JobError(f"subspace.parameter_fraction = {fraction} leaves no parameter free: raise it")
    return chosen


class RestrictedJacobian:
    """Columns of another operator.

    Args:
        operator: All columns.
        free: Coordinates of the free parameters, shape (P',).
    """

    def __init__(self, operator: JacobianOperator, free: Tensor) -> None:
        self._operator = operator
        self._free = free

    @property
    def n_rows(self) -> int:
        """Local number of rows."""
        return self._operator.n_rows

    @property
    def n_parameters(self) -> int:
        """Number of free parameters P'."""
        return len(self._free)

    @property
    def flops_per_column(self) -> float:
        """Flops of one column."""
        return self._operator.flops_per_column

    def jv(self, v: Tensor) -> Tensor:
        """``J V`` for V of shape (b, P'); returns (b, N_local)."""
        whole = v.new_zeros(len(v), self._operator.n_parameters)
        whole[:, self._free] = v
        return self._operator.jv(whole)

    def jtu(self, u: Tensor) -> Tensor:
        """``J^T U`` over the local rows for U of shape (b, N_local); returns (b, P')."""
        return self._operator.jtu(u)[:, self._free.to(u.device)]
