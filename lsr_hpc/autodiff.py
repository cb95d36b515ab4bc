"""Forward and reverse derivatives by ``torch.func``, with types.

Thin names for the two operations the method is made of; they compose with each other and with ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.func import jvp, vjp

__all__ = ["after_transforms", "pull_back", "push_forward"]

X = TypeVar("X", Tensor, dict[str, Tensor])


def push_forward(function: Callable[[X], Tensor], x: X, tangent: X) -> tuple[Tensor, Tensor]:
    """Value and directional derivative (Jacobian-vector product).

    Args:
        function: Differentiable function of a tensor or of named tensors.
        x: Where.
        tangent: In which direction; shaped like ``x``.

    Returns:
        ``function(x)`` and ``function'(x) tangent``.
    """
    value, derivative = jvp(function, (x,), (tangent,))[:2]
    return value, derivative


def pull_back(function: Callable[[X], Tensor], x: X) -> tuple[Tensor, Callable[[Tensor], X]]:
    """Value and the map from cotangents to gradients (vector-Jacobian product).

    Args:
        function: Differentiable function of a tensor or of named tensors.
        x: Where.

    Returns:
        ``function(x)`` and ``u -> function'(x)^T u``, shaped like ``x``.
    """
    value, pull = vjp(function, x)[:2]

    def gradient(cotangent: Tensor) -> X:
        result: Any = pull(cotangent)[0]
        return result  # type: ignore[no-any-return]

    return value, gradient


def after_transforms(value: Tensor) -> Tensor:
    """A value taken out of transforms that have ended, for use outside of them.

    torch strips the wrapper of one transform from such a value by itself, and fails on those of two nested
    ones, as in second derivatives.

    Args:
        value: Tensor noted inside of them, independent of what they differentiate.

    Returns:
        The same value as the transforms still running see it.
    """
    while (inner := unwrap_if_dead(value)) is not value:
        value = inner
    return value
