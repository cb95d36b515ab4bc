"""A look at a residual block on a handful of points before any work starts.

Finds the rows per point, the floating-point operations and the temporary numbers that one Jacobian-vector
product needs per point, and refuses a residual that breaks the contract. The counts are exact
operation counts, not timings, so every rank and every run plans the same way.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lsr_hpc.autodiff import pull_back, push_forward
from lsr_hpc.errors import JobError
from lsr_hpc.explaining import in_one_line, line_of
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.problem import ResidualBlock

__all__ = ["BlockProbe", "OperationCounter", "probe_block"]


@dataclass(frozen=True)
class BlockProbe:
    """What one point of a block costs.

    Attributes:
        rows_per_point: Residual rows per point.
        flops_per_point: Matrix-product flops of one Jacobian-vector product, per point, at least 1.
        numbers_per_point: Numbers alive at once in one such product, per point.
        touched: Boolean mask over the P parameters: False where no row of the probe depends on it.
    """

    rows_per_point: int
    flops_per_point: int
    numbers_per_point: int
    touched: Tensor


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts matrix-product flops, and the elements of operation outputs that are alive.

    Not torch's ``FlopCounterMode``, which refuses ``torch.func.grad`` inside.

    Attributes:
        live: Elements alive now.
        peak: Their largest number so far.
        flops: Flops so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.flops = 0

    def _released(self, numel: int) -> None:
        self.live -= numel

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            # A complex product is four real ones.
            self.flops += int(count(*args, **kwargs, out_val=out)) * (4 if out.is_complex() else 1)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                numbers = tensor.numel() * (2 if tensor.is_complex() else 1)
                self.live += numbers
                weakref.finalize(tensor, self._released, numbers)
        self.peak = max(self.peak, self.live)
        return out


def probe_block(block: ResidualBlock, model: FunctionalModel) -> BlockProbe:
    """Evaluate a block and its derivative on up to four points.

    Args:
        block: The block.
        model: The network; the probe runs on its device.

    Returns:
        The counts.

    Raises:
        JobError: If the residual fails, returns a wrong shape or dtype, mixes points, or cannot be
            differentiated by ``torch.func``.
    """
    n = min(4, block.n_points)
    tensors = tuple(
        t.to(model.device) for t in block.take(np.linspace(0, block.n_points - 1, n).astype(np.int64))
    )
    for i, tensor in enumerate(tensors):
        if tensor.is_complex():
            raise JobError(
                f"residual block {block.name!r}: {'points' if i == 0 else f'data[{i - 1}]'} is complex; "
                "split real and imaginary parts into two columns"
            )

    versions = [t._version for t in tensors]
    values = _call(block, model, tensors)
    _check_values(block, values, n)
    if [t._version for t in tensors] != versions:
        raise JobError(
            f"residual block {block.name!r} writes into its points or data: it is called many times on the "
            "same tensors, so use no in-place operations on them"
        )
    _check_repeatable(block, values, _call(block, model, tensors))
    if n > 1:
        _check_independence(block, values, _call(block, model, tuple(t[: n // 2] for t in tensors)))

    half = tuple(t[: n // 2] for t in tensors) if n > 1 else tensors
    flops, numbers = _count(block, model, tensors)
    flops_half, numbers_half = _count(block, model, half) if n > 1 else (0, 0)
    per = n - n // 2 if n > 1 else 1
    return BlockProbe(
        rows_per_point=values.numel() // n,
        flops_per_point=max(1, (flops - flops_half) // per),
        numbers_per_point=max(1, (numbers - numbers_half) // per),
        touched=_touched(block, model, tensors),
    )


def _call(block: ResidualBlock, model: FunctionalModel, tensors: tuple[Tensor, ...]) -> Tensor:
    points = tensors[0]
    what = f"residual block {block.name!r} failed on {len(points)} points of shape {tuple(points.shape)}"
    try:
        with torch.no_grad():
            return block.residual(model.field(), *tensors)
    except Exception as error:
        how = "it is called as residual(u, points, *data) with u the network"
        raise JobError(f"{what}{line_of(error)}: {in_one_line(error)}; {how}") from error


def _check_values(block: ResidualBlock, values: Any, n: int) -> None:
    if not isinstance(values, Tensor):
        raise JobError(
            f"residual block {block.name!r} returned {type(values).__name__}: return a tensor of shape (n,) "
            "or (n, m)"
        )
    if values.dim() not in {1, 2} or values.shape[0] != n or values.numel() == 0:
        raise JobError(
            f"residual block {block.name!r} returned shape {tuple(values.shape)} for {n} points: "
            f"expected ({n},) or ({n}, m)"
        )
    if values.is_complex():
        raise JobError(
            f"residual block {block.name!r} returned {values.dtype}: rows are real; return real and "
            "imaginary parts as two rows, by torch.view_as_real"
        )
    if values.dtype != torch.float64:
        raise JobError(
            f"residual block {block.name!r} returned {values.dtype}: parameters and points arrive as "
            "float64; do not cast inside the residual"
        )


def _tolerance(values: Tensor) -> float:
    # A residual far smaller than the output that it is a difference of holds few digits.
    return 1e-12 + 1e-6 * float(values.abs().nan_to_num(0.0, 0.0).max())


def _check_repeatable(block: ResidualBlock, values: Tensor, again: Tensor) -> None:
    """Compare two calls on the same points: nothing may be drawn, counted or remembered."""
    _check_values(block, again, len(values))
    same = again.shape == values.shape
    if not same or not torch.allclose(again, values, rtol=0.0, atol=_tolerance(values), equal_nan=True):
        raise JobError(
            f"residual block {block.name!r} returned other values when it was called again on the same "
            "points: no random numbers, dropout or counters in residual and network"
        )


def _check_independence(block: ResidualBlock, values: Tensor, head: Tensor) -> None:
    """Compare a batch with its first half: the values of a point must not change."""
    _check_values(block, head, len(values) // 2)
    if head.shape[1:] != values.shape[1:]:
        raise JobError(
            f"residual block {block.name!r} returned shape {tuple(values.shape)} for {len(values)} points "
            f"and {tuple(head.shape)} for {len(head)}: probably (n, 1) and (n,) were broadcast to (n, n)"
        )
    if not torch.allclose(head, values[: len(head)], rtol=0.0, atol=_tolerance(values), equal_nan=True):
        raise JobError(
            f"residual block {block.name!r}: the residual at a point changes with the other points of "
            "its batch; row i may depend on point i alone (no batch statistics, no sums over points)"
        )


def _count(block: ResidualBlock, model: FunctionalModel, tensors: tuple[Tensor, ...]) -> tuple[int, int]:
    """Matrix-product flops and largest number of live temporaries of one Jacobian-vector product."""
    tangent = model.layout.unflatten(torch.ones_like(model.theta0))
    counter = OperationCounter()
    try:
        with torch.no_grad(), counter:
            push_forward(
                lambda p: block.residual(model.field_of_tensors(p), *tensors), model.theta0_tensors, tangent
            )
    except Exception as error:
        raise _not_differentiable(block, "jvp", error) from error
    return counter.flops, counter.peak


def _touched(block: ResidualBlock, model: FunctionalModel, tensors: tuple[Tensor, ...]) -> Tensor:
    """Which parameters any row of the probe depends on, by one pull-back per residual component."""
    try:
        values, pull = pull_back(
            lambda p: block.residual(model.field_of_tensors(p), *tensors), model.theta0_tensors
        )
        components = values.reshape(values.shape[0], -1)
        touched = torch.zeros_like(model.theta0, dtype=torch.bool)
        # Different cotangents per point, so that contributions do not cancel by symmetry.
        weights = torch.linspace(1.0, 1.7, values.shape[0], dtype=torch.float64, device=values.device)
        for m in range(components.shape[1]):
            cotangent = torch.zeros_like(components)
            cotangent[:, m] = weights
            touched |= model.layout.flatten(pull(cotangent.reshape(values.shape))) != 0
        return touched
    except Exception as error:
        raise _not_differentiable(block, "vjp", error) from error


def _not_differentiable(block: ResidualBlock, how: str, error: Exception) -> JobError:
    return JobError(
        f"residual block {block.name!r} cannot be differentiated with respect to the parameters by "
        f"torch.func.{how}{line_of(error)}: {in_one_line(error)}; stay in torch, take input derivatives by "
        "lsr_hpc.derivatives or torch.func, and do nothing in place or by the values"
    )
