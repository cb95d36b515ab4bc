"""What every subspace method returns, and the promises checked on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.comm import all_sum
from lsr_hpc.errors import AccuracyError
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.rows import FitAndHeld
from lsr_hpc.sampling import gaussian_rows

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Basis", "captured_energy", "check_orthonormal"]

Array = NDArray[np.float64]
_STREAM_ENERGY = 3
# Loss of orthogonality above which a basis is refused; TSQR and CholeskyQR2 stay near 1e-14.
WORST_ORTHOGONALITY = 1e-8


@dataclass(frozen=True)
class Basis:
    """Orthonormal parameter directions, most important first.

    Attributes:
        v_local: This rank's parameters of every direction, shape (k, P_local), float64.
        singular_values: Estimates of J's singular values in the order of the directions, shape (k,), or
            None where the method has none.
        orthogonality: Largest entry of ``|V^T V - I|``.
        detail: What the method did, in words, for the result file.
        image: J V where the method has computed it.
    """

    v_local: Array
    singular_values: Array | None
    orthogonality: float
    detail: str
    image: FitAndHeld | None = None

    @property
    def rank(self) -> int:
        """Number of directions k."""
        return int(self.v_local.shape[0])


def check_orthonormal(comm: MPI.Comm, v_local: Array) -> float:
    """Measure the loss of orthogonality and refuse a basis that has lost it.

    Args:
        comm: Communicator.
        v_local: Shape (k, P_local).

    Returns:
        Largest entry of ``|V^T V - I|``, equal on all ranks.

    Raises:
        AccuracyError: If it exceeds 1e-8; raised on every rank.

    Collective: one sum of k*k numbers.
    """
    gram = all_sum(comm, v_local @ v_local.T)
    loss = float(np.abs(gram - np.eye(len(gram))).max(initial=0.0))
    if not loss <= WORST_ORTHOGONALITY:
        raise AccuracyError(
            f"the basis is not orthonormal: |V^T V - I| = {loss:.1e}; set "
            'subspace.orthogonalization = "tsqr" or lower subspace.rank',
            on_every_rank=True,
        )
    return loss


def captured_energy(
    jacobian: DistributedJacobian, v_local: Array, jv_norm_squared: float, seed: int, probes: int = 4
) -> float:
    """Share of ||J||_F^2 that lies in the span of V.

    The remainder ||J (I - V V^T)||_F^2 is estimated with a few Gaussian vectors, the captured part is exact,
    so the estimate is sharp when the remainder is small (Hutch++, Meyer et al. 2021).

    Args:
        jacobian: J.
        v_local: Orthonormal basis, shape (k, P_local).
        jv_norm_squared: ||J V||_F^2 over all ranks.
        seed: Seed of the probes.
        probes: Number of Gaussian vectors.

    Returns:
        Between 0 and 1.

    Collective: one block product of ``probes`` columns, two small sums.
    """
    lo, hi = jacobian.my_parameters
    omega = np.ascontiguousarray(gaussian_rows(seed, _STREAM_ENERGY, lo, hi, probes).T)
    # Twice, so that the deflated probes carry no rounding of the large directions.
    for _ in range(2):
        omega -= all_sum(jacobian.comm, omega @ v_local.T) @ v_local
    image = jacobian.jv(omega)
    remainder = float(all_sum(jacobian.comm, np.array([np.sum(image**2)]))[0]) / probes
    return jv_norm_squared / (jv_norm_squared + remainder) if jv_norm_squared > 0 else 0.0
