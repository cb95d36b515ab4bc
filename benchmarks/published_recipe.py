"""The published recipe of one-shot LSR, from its formulas, in plain torch on one process.

    Y = J Omega,   Q R = Y,   B = J^T Q,   B^T = U S W^T,   V = W_r / S_r,   min over c of ||r0 + J V c||

Omega is uniform on [0, 1), as most published scripts have it; no power iteration, no cut, no choice of the
rank. Products are vectorised over chunks of columns, all rows at once.

Source: Cao and Zhang, arXiv:2601.13989.
"""

# Legend: N rows, P parameters, r wanted rank, k = r + oversampling columns.

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import vmap

from benchmarks.cases import Linearised
from lsr_hpc.autodiff import pull_back, push_forward

__all__ = ["published_recipe"]


def published_recipe(
    linear: Linearised, *, rank: int, oversampling: int = 10, columns_per_chunk: int = 100, seed: int = 0
) -> Tensor:
    """One-shot LSR as published.

    Args:
        linear: The problem, in the dtype of the arm.
        rank: Number of directions r.
        oversampling: Extra columns of the sketch.
        columns_per_chunk: Columns differentiated at once; 4 to 1500 in the published scripts.
        seed: Seed of Omega.

    Returns:
        The parameter correction delta, shape (P,).
    """
    residual, theta0, layout = linear.residual, linear.theta0, linear.layout

    def push(v: Tensor) -> Tensor:
        return push_forward(residual, theta0, layout.unflatten(v))[1]

    def j_times(v: Tensor) -> Tensor:
        """``J V`` for V of shape (columns, P), as (N, columns)."""
        return torch.cat([vmap(push)(chunk) for chunk in torch.split(v, columns_per_chunk)]).T

    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        k = min(rank + oversampling, linear.n_rows, linear.n_parameters)
        omega = torch.rand(k, linear.n_parameters, dtype=linear.dtype, generator=generator)
        # Steps 1 and 2: sketch the range of J.
        q = torch.linalg.qr(j_times(omega))[0]
        # Step 3: back to parameter space.
        r0, pull = pull_back(residual, theta0)
        b = torch.cat([layout.flatten(vmap(pull)(chunk)) for chunk in torch.split(q.T, columns_per_chunk)])
        # Step 4: the SVD of the whole (r + p) x P block, and directions scaled by 1 / singular value.
        _, s, w = torch.linalg.svd(b, full_matrices=False)
        v = w[:rank] / s[:rank, None]
        # Steps 5 to 7: the reduced matrix by a second sweep of jvps, the library's least squares.
        c = torch.linalg.lstsq(j_times(v), -r0[:, None], rcond=1e-15).solution[:, 0]
        delta: Tensor = c @ v
        return delta
