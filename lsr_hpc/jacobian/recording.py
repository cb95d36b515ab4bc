"""Records every product with a weight matrix while a residual is evaluated, for the factored Jacobian.

Each use of a weight in a residual is a product ``z = a W^T + b``: also in input derivatives, whose tangents
and cotangents pass through the same weights. A recording keeps ``a`` and takes ``D = df/dz`` of all products
from one reverse pass per residual component; then

    df[n, c] / dW = sum over products and positions s of  D[n, c, s] (outer) a[n, s]

The residual is evaluated under ``vmap`` over points, each seen as a tile of one point. So the axis of the
points is known in every product, whatever the shapes inside the residual, and a product that no point enters
(the branch of a DeepONet with its input function fixed) is told apart: it is *shared*, evaluated once, and J
follows from its own derivative by the chain rule.
"""

# Legend: n points, C residual components per point, S positions (or channels) of a product.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.linear_calls import LinearCalls, Product, SharedLayers
from lsr_hpc.problem import ResidualBlock

__all__ = ["Recording", "record", "survey"]


@dataclass(frozen=True)
class Recording:
    """What one reverse pass per component tells about a tile of n points.

    Attributes:
        products: Products on which the residual depends directly.
        inputs: Their ``a``, each (n, S, in); None for a shared product.
        gradients: Their ``D``, each (n, C, S, out), ``out`` being the width of the result; for a shared
            product the direct dependence alone, not that through further shared products.
        explicit: ``df/dp`` of parameters that act on their own, each (n, C, numel).
    """

    products: tuple[Product, ...]
    inputs: tuple[Tensor | None, ...]
    gradients: tuple[Tensor, ...]
    explicit: dict[str, Tensor]


@dataclass
class _Tape:
    """Products at the base level, where all derivative levels of the residual have been resolved."""

    shared: SharedLayers

    products: list[Product] = field(default_factory=list)
    inputs: list[Tensor | None] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    # One number of each point, under vmap; with it as an argument every product is one per point.
    point: Tensor | None = None
    is_open: bool = True


def _times(a: Tensor, matrix: Tensor) -> Tensor:
    """``a @ matrix`` as one matrix product, where ``matmul`` may take one per point."""
    return (a.reshape(-1, a.shape[-1]) @ matrix).reshape(*a.shape[:-1], -1)


class _Recorded(torch.autograd.Function):
    """The product itself. Its tangents and cotangents are products with the same weight, recorded alike.

    ``jvp`` must do nothing but apply the function again: torch switches forward mode off inside, so that any
    other operation there would lose the tangents of outer levels.
    """

    @staticmethod
    def forward(a: Tensor, weight: Tensor, point: Tensor | None, product: Product, tape: _Tape) -> Tensor:
        if product.layer in tape.shared.outputs:
            # All points hold the same row: compute it once, but give one result per point, so that the
            # reverse pass finds each point's direct dependence on it.
            z = _times(a[0], weight.mT).expand(len(a), *a.shape[1:-1], -1)
            tape.inputs.append(None)
        else:
            z = _times(a, weight if product.transposed else weight.mT)
            tape.inputs.append(a.detach())
        tape.products.append(product)
        tape.outputs.append(z)
        return z

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, weight, _, ctx.product, ctx.tape = inputs
        ctx.save_for_backward(weight)
        ctx.save_for_forward(weight)

    @staticmethod
    def jvp(ctx: Any, a_tangent: Tensor, *_: Any) -> Any:
        (weight,) = ctx.saved_tensors
        return _Recorded.apply(a_tangent, weight, ctx.tape.point, ctx.product.passed_on(), ctx.tape)  # type: ignore[no-untyped-call]

    @staticmethod
    def backward(ctx: Any, z_cotangent: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        product, tape = ctx.product, ctx.tape
        if not ctx.needs_input_grad[0]:
            gradient = None
        elif tape.is_open:
            # An input derivative taken in reverse mode inside the residual.
            product = product.passed_on(reverse=True)
            gradient = _Recorded.apply(z_cotangent, weight, tape.point, product, tape)  # type: ignore[no-untyped-call]
        elif product.layer in tape.shared.outputs:
            gradient = None
        else:
            gradient = _times(z_cotangent, weight.mT if product.transposed else weight)
        return gradient, None, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        a: Tensor,
        weight: Tensor,
        point: Tensor | None,
        product: Product,
        tape: _Tape,
    ) -> Any:
        rows = a.expand(info.batch_size, *a.shape) if in_dims[0] is None else a.movedim(in_dims[0], 0)
        return _Recorded.apply(rows, weight, point, replace(product, per_point=True), tape), 0  # type: ignore[no-untyped-call]


class _Recorder(LinearCalls):
    """Routes linear layers through :class:`_Recorded` and notes what else parameters are used for."""

    def __init__(self, tensors: dict[str, Tensor], tape: _Tape) -> None:
        super().__init__(tensors)
        self.tape = tape
        self.other_uses: dict[str, str] = {}

    def _linear(self, product: Product, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self._note(functional.linear, [a])
        if product.layer in self.tape.shared.inside:
            return functional.linear(a, weight, bias)
        z: Tensor = _Recorded.apply(a, weight, self.tape.point, product, self.tape)  # type: ignore[no-untyped-call]
        return z if bias is None else z + bias

    def _other(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if any(isinstance(item, Tensor) for item in _items(result)):
            self._note(func, (*args, *kwargs.values()))
        return result

    def _note(self, func: Any, arguments: Iterable[Any]) -> None:
        for item in _items(arguments):
            name = self._name(item)
            if name is not None:
                self.other_uses.setdefault(name, _readable(func))


def _items(value: Any) -> Iterator[Any]:
    """The value itself, or what is in its lists, tuples and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _items(item)
    else:
        yield value


def _readable(func: Any) -> str:
    """Name of a torch function; of the attribute where the function is an attribute's getter."""
    name = getattr(func, "__name__", str(func))
    return str(getattr(func.__self__, "__name__", name)) if name == "__get__" else name


def survey(
    block: ResidualBlock, model: FunctionalModel, tensors: tuple[Tensor, ...], explicit: frozenset[str]
) -> tuple[list[Product], dict[str, str]]:
    """Evaluate a residual on a few points to see how it uses the parameters.

    Args:
        block: The block.
        model: The network.
        tensors: Points and data.
        explicit: Names of parameters that are not looked at.

    Returns:
        Its products, and the parameters that are used otherwise, with the name of a function that does.
    """
    leaves = _leaves(model, explicit)
    recorder = _Recorder(leaves, _Tape(SharedLayers((), ())))
    others = {name: model.theta0_tensors[name] for name in explicit}
    _evaluate(block, model, tensors, recorder, {**leaves, **others}, {})
    return recorder.tape.products, recorder.other_uses


def record(
    block: ResidualBlock,
    model: FunctionalModel,
    tensors: tuple[Tensor, ...],
    *,
    shared: SharedLayers,
    explicit: frozenset[str],
) -> Recording:
    """Evaluate a residual and take its gradients with respect to every product.

    Args:
        block: The block.
        model: The network.
        tensors: Points and data of the tile.
        shared: Layers that no point enters.
        explicit: Names of parameters that are used otherwise.

    Returns:
        The recording, without graph.
    """
    n = len(tensors[0])
    leaves = _leaves(model, explicit)
    # One copy per point: their gradients are J's columns.
    own = {
        name: t.detach().expand(n, *t.shape).requires_grad_()
        for name, t in model.theta0_tensors.items()
        if name in explicit
    }
    tape = _Tape(shared)
    values = _evaluate(block, model, tensors, _Recorder(leaves, tape), leaves, own, every_point=True)
    tape.is_open = False
    gradients = _per_component(values, [*tape.outputs, *own.values()])
    m = len(tape.outputs)
    # Outputs hold the graph, whose nodes hold the tape: without this cut the graph waits for the collector.
    tape.outputs.clear()
    kept = [i for i in range(m) if gradients[i] is not None]
    return Recording(
        products=tuple(tape.products[i] for i in kept),
        inputs=tuple(None if a is None else _with_positions(a, 1) for a in (tape.inputs[i] for i in kept)),
        gradients=tuple(_with_positions(g, 2) for i in kept if (g := gradients[i]) is not None),
        explicit={
            name: g.flatten(2) if g.dim() > 2 else g.unsqueeze(-1)
            for name, g in zip(own, gradients[m:], strict=True)
            if g is not None
        },
    )


def _leaves(model: FunctionalModel, explicit: frozenset[str]) -> dict[str, Tensor]:
    """Parameters at theta0, but for the explicit ones, each a tensor of its own to be recognised by."""
    return {
        name: t.detach().requires_grad_() for name, t in model.theta0_tensors.items() if name not in explicit
    }


def _evaluate(
    block: ResidualBlock,
    model: FunctionalModel,
    tensors: tuple[Tensor, ...],
    recorder: _Recorder,
    leaves: dict[str, Tensor],
    own: dict[str, Tensor],
    every_point: bool = False,
) -> Tensor:
    """The residual of every point, shape (n, C), with its graph; ``own`` holds one tensor per point."""

    def at_point(point: tuple[Tensor, ...], own_of_point: dict[str, Tensor], number: Tensor) -> Tensor:
        recorder.tape.point = number if every_point else None
        residual = block.residual(
            model.field_of_tensors({**leaves, **own_of_point}), *(t.unsqueeze(0) for t in point)
        )
        return residual.reshape(-1)

    with torch.enable_grad(), recorder:
        values: Tensor = vmap(at_point)(tensors, own, torch.arange(len(tensors[0]), device=model.device))
    return values


def _per_component(values: Tensor, leaves: list[Tensor]) -> list[Tensor | None]:
    """Gradients of every component, stacked as axis 1; None where no component depends on the leaf."""
    # Row n depends on point n alone, so one reverse pass of the sum gives every row's own gradient.
    if not values.requires_grad or not leaves:
        return [None] * len(leaves)
    last = values.shape[1] - 1
    with torch.enable_grad():
        sums = values.sum(dim=0).unbind()
    passes = [
        torch.autograd.grad(component, leaves, retain_graph=c < last, allow_unused=True)
        for c, component in enumerate(sums)
    ]
    stacked: list[Tensor | None] = []
    for leaf, gradients in zip(leaves, zip(*passes, strict=True), strict=True):
        if all(g is None for g in gradients):
            stacked.append(None)
        else:
            stacked.append(torch.stack([torch.zeros_like(leaf) if g is None else g for g in gradients], 1))
    return stacked


def _with_positions(values: Tensor, leading: int) -> Tensor:
    """Merge all axes between the leading ones and the last into one axis of positions."""
    return values.reshape(*values.shape[:leading], -1, values.shape[-1])
