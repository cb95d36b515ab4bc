"""Measures of a field on evaluation data, whose points are cut over MPI ranks and taken a few at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.comm import all_sum, even_ranges
from lsr_hpc.problem import Evaluation, Field
from lsr_hpc.rows import points_at_once

if TYPE_CHECKING:
    from mpi4py import MPI

    from lsr_hpc.prepare import PreparedProblem

__all__ = ["Evaluator"]

Array = NDArray[np.float64]


class Evaluator:
    """What fields are worth on evaluation data; every method is collective, its result equal on all ranks.

    Args:
        comm: Communicator; each rank evaluates its share of the points.
        evaluation: Checked evaluation data.
        prepared: Says how many points to evaluate at once, and on which device; of its world nothing else.
    """

    def __init__(self, comm: MPI.Comm, evaluation: Evaluation, prepared: PreparedProblem) -> None:
        self._comm = comm
        self._evaluation = evaluation
        self._device = prepared.model.device
        self._size = points_at_once(max(p.numbers_per_point for p in prepared.fit_rows.probes))

    def error(self, field: Field) -> float:
        """Relative L2 error, of several groups the mean of theirs."""
        return float(self.errors(field).mean())

    def errors(self, field: Field) -> Array:
        """Relative L2 error in every group of points; absolute where the reference is zero.

        Args:
            field: The field.

        Returns:
            Shape (groups,).
        """

        def squares(values: Tensor, reference: Tensor) -> Tensor:
            rows = (values - reference, reference)
            return torch.stack([row.square().flatten(1).sum(dim=1) for row in rows], dim=1)

        difference, norm = np.sqrt(self._sums(field, squares, 2)).T
        errors: Array = np.divide(difference, norm, out=difference.copy(), where=norm > 0)
        return errors

    def accuracy(self, field: Field) -> float:
        """Share of the points whose largest output is that of the reference."""

        def is_right(values: Tensor, reference: Tensor) -> Tensor:
            return (values.argmax(dim=1) == reference.argmax(dim=1)).double()[:, None]

        return float(self._sums(field, is_right, 1).sum()) / self._evaluation.n_points

    def _sums(self, field: Field, measure: Callable[[Tensor, Tensor], Tensor], n_measures: int) -> Array:
        """Sums of the measures (n, m) of n points over each group, shape (groups, m)."""
        evaluation = self._evaluation
        per_group = evaluation.n_points // evaluation.groups
        lo, hi = even_ranges(evaluation.n_points, self._comm.size)[self._comm.rank]
        sums = np.zeros((evaluation.groups, n_measures))
        for first in range(lo, hi, self._size):
            inputs, reference = evaluation.take(slice(first, min(first + self._size, hi)))
            with torch.no_grad():
                values = evaluation.judged(field(*(t.to(self._device) for t in inputs))).cpu()
            group = np.arange(first, first + len(reference)) // per_group
            np.add.at(sums, group, measure(values, reference).numpy())
        total: Array = all_sum(self._comm, sums)
        return total
