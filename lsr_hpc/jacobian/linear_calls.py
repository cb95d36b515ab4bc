"""Finds the linear layers that act on bound parameters while a residual is evaluated.

Layers are numbered in the order of their evaluation, which is the same in every evaluation of a residual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lsr_hpc.autodiff import after_transforms
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.problem import ResidualBlock

__all__ = ["LinearCalls", "Product", "SharedLayers", "shared_outputs"]


@dataclass(frozen=True)
class Product:
    """One product with a weight: ``a W^T``, or ``a W`` in reverse-mode input derivatives.

    Attributes:
        layer: Number of the call of ``linear`` that it belongs to, in order of evaluation.
        weight: Name of the weight.
        bias: Name of the trainable bias added to it, or None.
        transposed: Whether it is ``a W``.
        primal: False for the tangents and cotangents that pass through the layer.
        per_point: Whether a point enters it.
    """

    layer: int
    weight: str
    bias: str | None
    transposed: bool = False
    primal: bool = True
    per_point: bool = False

    def passed_on(self, reverse: bool = False) -> Product:
        """The product that a tangent, or in reverse a cotangent, of this one passes through."""
        return Product(self.layer, self.weight, None, self.transposed != reverse, primal=False)


@dataclass(frozen=True)
class SharedLayers:
    """Linear layers that no point enters, by number; each is evaluated once, not once per point.

    Attributes:
        outputs: Those on whose results the residual depends directly, ascending.
        inside: The others: their results only enter further shared layers.
    """

    outputs: tuple[int, ...]
    inside: tuple[int, ...]


class LinearCalls(TorchFunctionMode):
    """Numbers the calls of ``linear`` with a bound parameter as weight and hands them to ``_linear``.

    Args:
        tensors: The parameters as they are bound, recognised by identity.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._calls = 0

    def _name(self, tensor: Any) -> str | None:
        return self._names.get(id(tensor))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            a, weight, bias = _linear_arguments(*args, **kwargs)
            name = self._name(weight)
            if name is not None and weight.dim() == 2:
                self._calls += 1
                return self._linear(Product(self._calls - 1, name, self._name(bias)), a, weight, bias)
        return self._other(func, args, kwargs)

    def _linear(self, product: Product, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _other(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)


def _linear_arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


class _Collector(LinearCalls):
    """Keeps the outputs of some linear layers."""

    def __init__(self, tensors: dict[str, Tensor], layers: tuple[int, ...]) -> None:
        super().__init__(tensors)
        self._layers = layers
        self.outputs: list[Tensor] = []

    def _linear(self, product: Product, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        z = functional.linear(a, weight, bias)
        if product.layer in self._layers:
            self.outputs.append(z.reshape(-1))
        return z


def shared_outputs(
    block: ResidualBlock,
    model: FunctionalModel,
    point: tuple[Tensor, ...],
    *,
    shared: SharedLayers,
    explicit: frozenset[str],
) -> Callable[[dict[str, Tensor]], Tensor]:
    """What the shared layers put out, as a function of the parameters.

    Args:
        block: The block.
        model: The network.
        point: Any one point with its data; the outputs do not depend on it.
        shared: Layers that no point enters, at least one of them an output.
        explicit: Parameters used otherwise, as in :func:`record`.

    Returns:
        Function of all named parameters, for ``torch.func``; its value is one vector.
    """

    def outputs(tensors: dict[str, Tensor]) -> Tensor:
        collector = _Collector({n: t for n, t in tensors.items() if n not in explicit}, shared.outputs)
        with collector:
            block.residual(model.field_of_tensors(tensors), *point)
        return torch.cat([after_transforms(output) for output in collector.outputs])

    return outputs
