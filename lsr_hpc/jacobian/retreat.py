"""J that goes on where memory has run out: in smaller tiles, then in a representation that holds less.

The plan of :mod:`lsr_hpc.plan` keeps to a budget; what else lives on a machine or a GPU it cannot know. A
product that an allocator refuses is done again, by this rank alone, since no product communicates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lsr_hpc.errors import LsrError
from lsr_hpc.jacobian.operator import JacobianOperator

__all__ = ["RetreatingJacobian", "Rung", "is_out_of_memory"]

log = logging.getLogger(__name__)

# What torch says on a CPU, where it has no exception of its own for that.
_REFUSED = ("can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Rung:
    """One way of applying J.

    Attributes:
        words: What it is called.
        make: Makes the operator.
    """

    words: str
    make: Callable[[], JacobianOperator]


class RetreatingJacobian:
    """This rank's rows by the first of some representations for which there is memory.

    Args:
        rungs: Representations, the one to begin with first, each needing less memory than the one before.

    Attributes:
        operator: The representation in use.
        retreats: What was gone over to, in words; empty where memory sufficed.
    """

    def __init__(self, rungs: Sequence[Rung]) -> None:
        self._rungs = list(rungs)
        self.operator = self._rungs.pop(0).make()
        self._n_rows, self._n_parameters = self.operator.n_rows, self.operator.n_parameters
        self.retreats: list[str] = []

    @property
    def n_rows(self) -> int:
        """Local number of rows."""
        return self._n_rows

    @property
    def n_parameters(self) -> int:
        """Number of unknowns P'."""
        return self._n_parameters

    @property
    def flops_per_column(self) -> float:
        """Flops of one column of the representation in use."""
        return self.operator.flops_per_column

    def jv(self, v: Tensor) -> Tensor:
        """``J V``.

        Args:
            v: Shape (b, P'), float64.

        Returns:
            Shape (b, N_local).

        Raises:
            LsrError: If there is no memory for any representation.
        """
        return self._product(lambda: self.operator.jv(v))

    def jtu(self, u: Tensor) -> Tensor:
        """``J^T U`` summed over the local rows.

        Args:
            u: Shape (b, N_local), float64.

        Returns:
            Shape (b, P').

        Raises:
            LsrError: If there is no memory for any representation.
        """
        return self._product(lambda: self.operator.jtu(u))

    def _product(self, product: Callable[[], Tensor]) -> Tensor:
        while True:
            try:
                return product()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Out here, where the exception no longer holds the tensors that it met on its way.
            self._retreat()

    def _retreat(self) -> None:
        if not self._rungs:
            raise LsrError(
                "out of memory even with the smallest tiles: start more ranks, lower subspace.rank, or see "
                "what else uses the memory of this machine or GPU"
            )
        rung = self._rungs.pop(0)
        # Before the next one is made.
        del self.operator
        torch.cuda.empty_cache()
        self.operator = rung.make()
        self.retreats.append(rung.words)
        log.warning("out of memory: J goes on %s", rung.words)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused.

    Args:
        error: What was raised.

    Returns:
        Whether less memory would have helped.
    """
    is_refusal = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
    return is_refusal or any(words in str(error) for words in _REFUSED)
