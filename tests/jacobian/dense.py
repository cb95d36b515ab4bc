"""The dense Jacobian that every representation is compared with, and how."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

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


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float64
    assert actual.shape == expected.shape
    assert float((actual - expected).norm()) <= RELATIVE * float(expected.norm())
