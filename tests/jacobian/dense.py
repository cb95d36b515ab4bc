"""The dense Jacobian that every representation is compared with, and how."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from lsr_hpc.jacobian.operator import JacobianOperator
from lsr_hpc.problem import ResidualBlock

# Both sides are exact derivatives in float64; sums of a few hundred terms in another order differ by less.
RELATIVE = 1e-12


def dense_jacobian(model: nn.Module, blocks: Sequence[ResidualBlock]) -> Tensor:
    """J entry by entry from the user's own functions, in float64; shares no code with the operators."""
    # A copy: a layer with two names keeps what functional_call binds to it.
    module = copy.deepcopy(model).double()
    parameters = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}

    def residual(tensors: dict[str, Tensor]) -> Tensor:
        def u(*inputs: Tensor) -> Tensor:
            return functional_call(module, tensors, inputs)

        parts = []
        for block in blocks:
            values = block.residual(u, block.points, *block.data)
            parts.append((block.weight / values.numel()) ** 0.5 * values.reshape(-1))
        return torch.cat(parts)

    pieces = jacrev(residual)(parameters)
    return torch.cat([pieces[n].reshape(-1, p.numel()) for n, p in parameters.items()], dim=1)


def panel(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns)))


def assert_single(jacobian: JacobianOperator, dense: Tensor) -> None:
    """Products in float32 are those of the dense matrix, to the rounding of float32 and not better."""
    v = panel(5, jacobian.n_parameters, seed=3).float()
    u = panel(4, jacobian.n_rows, seed=4).float()
    expected = (v.double() @ dense.T, u.double() @ dense)
    for product, exact in zip((jacobian.jv(v), jacobian.jtu(u)), expected, strict=True):
        assert product.dtype == torch.float32
        error = float((product.double() - exact).norm() / exact.norm())
        # Sums of a few hundred terms; in double precision the error would be that of the result's rounding.
        assert 1e-9 < error <= 1e-5


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float64
    assert actual.shape == expected.shape
    assert float((actual - expected).norm()) <= RELATIVE * float(expected.norm())
