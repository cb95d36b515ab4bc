"""Which derivatives of the field a residual needs, and the residual as a function of their values.

A residual sees the field only through values ``D^m u(x)[t_1, ..., t_m]`` at its own points: *channels*, such
as u, u_x, u_xx and u_t of the Burgers equation. Each is linear in u, so where the field is affine in c the
channels are as well, and residual and derivative follow from them alone:

    q(c) = q0 + Phi c,     F(c) = N(q(c)),     dF/dc = (dN/dq) Phi

The channels are found by evaluating the residual with a stand-in for the field that notes where, and along
which tangents, ``torch.func.jvp`` differentiates it.
"""

# Legend: n points, E channel values per point, m residual components per point.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from lsr_hpc.autodiff import push_forward
from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.probe import probe_block
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.rows import Segment

__all__ = ["ChannelSegment", "NoChannels", "find_channels", "survey_channels"]


# Relative difference of two derivatives that is rounding.
_SAME_DERIVATIVE = 1e-12


class NoChannels(Exception):
    """The residual is not a function of derivatives of the field at fixed points."""


@dataclass(frozen=True)
class _Channel:
    """One derivative of the field.

    Attributes:
        parts: Inputs of the field, then the tangents one after another, each as numbers of noted tensors.
        shape: Shape of its value at one point.
    """

    parts: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ChannelSegment:
    """Channels at the points of a segment.

    Attributes:
        segment: The segment of the residual.
        width: Number E of channel values per point.
        columns: For each use of the field in the residual, in order of evaluation: its columns among the E,
            and the shape of its value at one point.
        places: Tensors at the points that the derivatives are taken at and along, each (n, ...).
        derivatives: Each channel: numbers of ``places`` (inputs, then one tangent after another), and the
            shape of its value at one point.
        rows: A segment whose "residual" is all channels, E rows per point, for products with their Jacobian;
            None where N is affine, so that the rows of the residual itself will do.
    """

    segment: Segment
    width: int
    columns: tuple[tuple[slice, tuple[int, ...]], ...]
    places: tuple[Tensor, ...]
    derivatives: tuple[tuple[tuple[tuple[int, ...], ...], tuple[int, ...]], ...]
    rows: Segment | None = None

    def residual(self, q: Tensor) -> Tensor:
        """N(q), row-scaled.

        Args:
            q: Channel values, shape (n, E), float64.

        Returns:
            Shape (n * m,).
        """
        return self.segment.residual(_stand_in(_Replay(self.columns), q))

    def derivative(self, q: Tensor) -> Tensor:
        """dN/dq, row-scaled.

        Args:
            q: Channel values, shape (n, E), float64.

        Returns:
            Shape (n, m, E).
        """
        q = q.detach().requires_grad_()
        with torch.enable_grad():
            values = self.residual(q).view(len(q), -1)
            # Row n depends on point n alone, so that one reverse pass of the sum gives every row's gradient.
            gradients = [
                torch.autograd.grad(component, q, retain_graph=True)[0]
                if component.requires_grad
                else torch.zeros_like(q)
                for component in values.sum(dim=0).unbind()
            ]
        return torch.stack(gradients, dim=1).detach()


def find_channels(
    segment: Segment, model: FunctionalModel, *, of_linear_rows: bool = False
) -> ChannelSegment:
    """Evaluate a residual once to see what it takes of the field.

    Args:
        segment: Points of one block.
        model: The network.
        of_linear_rows: Whether ``rows`` are wanted even where N is affine.

    Returns:
        The channels.

    Raises:
        NoChannels: If the residual differentiates in another way, or elsewhere than at its points.
    """
    whole = survey_channels(segment, model)
    if not of_linear_rows and _is_linear(whole):
        return whole

    def channels(u: Field, *tensors: Tensor) -> Tensor:
        n = len(tensors[0])
        return torch.cat(
            [
                _derivative(u, [tuple(tensors[i] for i in part) for part in parts]).reshape(n, -1)
                for parts, _ in whole.derivatives
            ],
            dim=1,
        )

    points, *data = whole.places
    block = ResidualBlock(name=segment.block.name, residual=channels, points=points, data=tuple(data))
    try:
        probe = probe_block(block, model)
    except JobError as error:
        raise NoChannels(str(error)) from error
    return replace(whole, rows=Segment(block, probe, (points, *data), 1.0))


def survey_channels(segment: Segment, model: FunctionalModel) -> ChannelSegment:
    """The same without the rows that products with the Jacobian of the channels need.

    Args:
        segment: Points of one block.
        model: The network.

    Returns:
        The channels, ``rows`` being None.

    Raises:
        NoChannels: As of :func:`find_channels`.
    """
    survey = _Survey(model, segment)
    try:
        with torch.no_grad():
            segment.residual(_stand_in(survey, segment.tensors[0].new_zeros(segment.n_points, 0)))
    except NoChannels:
        raise
    except Exception as error:  # whatever torch has to say about a transform that the stand-in does not know
        raise NoChannels(f"{type(error).__name__}: {error}".partition("\n")[0]) from error
    if not survey.uses:
        raise NoChannels("the residual does not use the field")
    found = list(dict.fromkeys(survey.uses))
    ends = torch.tensor([prod(channel.shape) for channel in found]).cumsum(0).tolist()
    where = {c: slice(end - prod(c.shape), end) for c, end in zip(found, ends, strict=True)}
    return ChannelSegment(
        segment,
        ends[-1],
        tuple((where[channel], channel.shape) for channel in survey.uses),
        tuple(survey.tensors),
        tuple((channel.parts, channel.shape) for channel in found),
    )


def _is_linear(segment: ChannelSegment) -> bool:
    """Whether N has the same derivative at two random places."""
    generator = torch.Generator().manual_seed(0)

    def derivative() -> Tensor:
        q = torch.randn(segment.segment.n_points, segment.width, dtype=torch.float64, generator=generator)
        return segment.derivative(q.to(segment.segment.tensors[0].device))

    one, other = derivative(), derivative()
    # A NaN is no agreement.
    return bool((one - other).abs().max() <= _SAME_DERIVATIVE * one.abs().max())


def _derivative(u: Field, parts: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """``D^m u(parts[0])[parts[1], ..., parts[m]]``."""
    inputs, tangents = parts[0], parts[1:]
    if not tangents:
        return u(*inputs)
    names = [str(i) for i in range(len(inputs))]
    return push_forward(
        lambda at: _derivative(u, [tuple(at.values()), *tangents[:-1]]),
        dict(zip(names, inputs, strict=True)),
        dict(zip(names, tangents[-1], strict=True)),
    )[1]


class _Survey:
    """Notes the channels; the values handed out are zeros."""

    def __init__(self, model: FunctionalModel, segment: Segment) -> None:
        self._model = model
        self._n = segment.n_points
        self.tensors: list[Tensor] = []
        self.uses: list[_Channel] = []
        self.columns = slice(0, 0)

    def take(self, q: Tensor, n_inputs: int, flat: tuple[Tensor, ...]) -> Tensor:
        for tensor in flat:
            if tensor.dim() == 0 or len(tensor) != self._n or not tensor.is_floating_point():
                raise NoChannels(f"the field is evaluated at {tuple(tensor.shape)}, not once at each point")
        numbers = [self._number(tensor.detach()) for tensor in flat]
        parts = tuple(tuple(numbers[i : i + n_inputs]) for i in range(0, len(numbers), n_inputs))
        value = self._model.field()(*(tensor[:1] for tensor in flat[:n_inputs]))
        self.uses.append(_Channel(parts, tuple(value.shape[1:])))
        return value.new_zeros(self._n, *value.shape[1:])

    def _number(self, tensor: Tensor) -> int:
        for i, known in enumerate(self.tensors):
            if known.shape == tensor.shape and torch.equal(known, tensor):
                return i
        self.tensors.append(tensor.clone())
        return len(self.tensors) - 1


class _Replay:
    """Hands out channel values in the order in which the survey noted the channels."""

    def __init__(self, columns: tuple[tuple[slice, tuple[int, ...]], ...]) -> None:
        self._uses = iter(columns)
        self.columns = slice(0, 0)

    def take(self, q: Tensor, n_inputs: int, flat: tuple[Tensor, ...]) -> Tensor:
        self.columns, shape = next(self._uses)
        return q[:, self.columns].reshape(len(q), *shape).clone()


def _stand_in(source: _Survey | _Replay, q: Tensor) -> Field:
    def field(*inputs: Tensor) -> Tensor:
        value: Tensor = _Field.apply(source, len(inputs), q, *inputs)  # type: ignore[no-untyped-call]
        return value

    return field


class _Field(torch.autograd.Function):
    """A derivative of the field; its own derivative along a tangent is the one of the next order.

    ``jvp`` must do nothing but apply the function again: torch switches forward mode off inside.
    """

    @staticmethod
    def forward(source: _Survey | _Replay, n_inputs: int, q: Tensor, *flat: Tensor) -> Tensor:
        return source.take(q, n_inputs, flat)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.source, ctx.n_inputs, q, *flat = inputs
        ctx.columns = ctx.source.columns
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(q, *flat)
        ctx.save_for_backward(q)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        q, *flat = ctx.saved_tensors
        along = tangents[3 : 3 + ctx.n_inputs]
        if any(t is not None for t in tangents[3 + ctx.n_inputs :]):
            raise NoChannels("the field is differentiated along a direction that varies itself")
        direction = [
            torch.zeros_like(x) if t is None else t for x, t in zip(flat[: ctx.n_inputs], along, strict=True)
        ]
        return _Field.apply(ctx.source, ctx.n_inputs, q, *flat, *direction)  # type: ignore[no-untyped-call]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        if any(ctx.needs_input_grad[3:]):
            raise NoChannels("the field is differentiated in reverse mode")
        (q,) = ctx.saved_tensors
        gradient = torch.zeros_like(q)
        gradient[:, ctx.columns] = cotangent.reshape(len(q), -1)
        return None, None, gradient, *([None] * (len(ctx.needs_input_grad) - 3))
