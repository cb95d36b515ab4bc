"""Tensors in single or double precision, complex ones too, which ``Module.double`` leaves as they are."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["in_precision", "module_in_precision"]

Module = TypeVar("Module", bound=nn.Module)


def in_precision(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert floating point, real to real and complex to complex.

    Args:
        tensor: Any tensor.
        dtype: A real type, ``torch.float32`` or ``torch.float64``.

    Returns:
        The tensor in that precision; integers and truth values as they are.
    """
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def module_in_precision(module: Module, dtype: torch.dtype) -> Module:
    """Convert parameters and buffers of a module in place.

    Args:
        module: The module.
        dtype: A real type, ``torch.float32`` or ``torch.float64``.

    Returns:
        The module.
    """
    return module._apply(lambda tensor: in_precision(tensor, dtype))  # type: ignore[no-untyped-call, no-any-return]
