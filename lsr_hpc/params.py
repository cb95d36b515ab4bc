"""Flat view of a network's trainable parameters.

LSR works in parameter space R^P. This module fixes the order of that space (``named_parameters``
order, each tensor row-major) and converts between the flat vector and named tensors, also for a block of b
vectors at once.

The space is real. A complex parameter is the pairs of its real and imaginary parts (``torch.view_as_real``),
so J is the derivative by both; the network alone sees complex numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import torch
from torch import Tensor, nn

__all__ = ["ParameterLayout", "digest"]


@dataclass(frozen=True)
class ParameterLayout:
    """Order and shapes of the trainable parameters of one network.

    Attributes:
        names: Parameter names, in ``named_parameters`` order.
        shapes: Shapes of their real numbers, in the same order; of a complex one with a last axis of 2.
        complex_names: Those that are complex.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    complex_names: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: nn.Module) -> ParameterLayout:
        """Read the layout of ``model``'s parameters that require gradients.

        Args:
            model: Any module; a parameter shared between layers counts once.

        Returns:
            The layout.
        """
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        return cls(
            tuple(n for n, _ in named),
            tuple((*p.shape, 2) if p.is_complex() else tuple(p.shape) for _, p in named),
            frozenset(n for n, p in named if p.is_complex()),
        )

    @property
    def size(self) -> int:
        """Number of unknowns P."""
        return sum(prod(s) for s in self.shapes)

    @property
    def ranges(self) -> dict[str, slice]:
        """Where each parameter lies in the flat vector."""
        ends = list(accumulate(prod(s) for s in self.shapes))
        return {n: slice(e - prod(s), e) for n, s, e in zip(self.names, self.shapes, ends, strict=True)}

    def flatten(self, tensors: dict[str, Tensor]) -> Tensor:
        """Stack tensors into flat vectors.

        Args:
            tensors: One tensor per name, each of shape ``(*batch, *shape)`` with a common batch.

        Returns:
            Tensor of shape ``(*batch, P)``.
        """
        batch = tensors[self.names[0]].dim() - len(self.shapes[0])
        return torch.cat(
            [
                tensors[n].flatten(start_dim=batch) if s else tensors[n].unsqueeze(-1)
                for n, s in zip(self.names, self.shapes, strict=True)
            ],
            dim=-1,
        )

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Split flat vectors into named real tensors (views where the memory allows).

        Args:
            flat: Shape ``(*batch, P)``.

        Returns:
            One tensor of shape ``(*batch, *shape)`` per parameter name.
        """
        pieces = torch.split(flat, [prod(s) for s in self.shapes], dim=-1)
        return {
            n: piece.reshape((*flat.shape[:-1], *s))
            for n, s, piece in zip(self.names, self.shapes, pieces, strict=True)
        }

    def reals_of(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters of a network as the real tensors of this layout.

        Args:
            parameters: Parameters by name; others than those of the layout are left out.

        Returns:
            One real tensor per name, views of the parameters.
        """
        return {
            n: torch.view_as_real(parameters[n]) if n in self.complex_names else parameters[n]
            for n in self.names
        }

    def parameters_of(self, reals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Real tensors as the parameters that the network takes; the inverse of :meth:`reals_of`.

        Args:
            reals: Some real tensors by name (tangents and batches of ``torch.func`` allowed).

        Returns:
            Parameters by name, differentiable in ``reals``.
        """
        # Not view_as_complex: a piece of a flat vector may not have the even offset in memory that it wants.
        return {
            n: torch.complex(t[..., 0], t[..., 1]) if n in self.complex_names else t for n, t in reals.items()
        }

    def read(self, model: nn.Module) -> Tensor:
        """Copy the parameters of ``model`` into one flat, detached vector of shape (P,).

        Args:
            model: A module with this layout.

        Returns:
            The flat vector, in the parameters' own precision.
        """
        reals = self.reals_of(dict(model.named_parameters()))
        return self.flatten({n: t.detach() for n, t in reals.items()}).clone()

    def write(self, model: nn.Module, flat: Tensor) -> None:
        """Set the parameters of ``model`` to those of a flat vector, in place.

        Args:
            model: A module with this layout.
            flat: Shape (P,).
        """
        named = dict(model.named_parameters())
        with torch.no_grad():
            for name, values in self.parameters_of(self.unflatten(flat)).items():
                named[name].copy_(values)

    def owner(self, index: int) -> str:
        """Name the parameter that flat coordinate ``index`` belongs to.

        Args:
            index: Coordinate, 0 <= index < P.

        Returns:
            The parameter's name.

        Raises:
            IndexError: If the coordinate lies outside the parameter space.
        """
        for name, shape in zip(self.names, self.shapes, strict=True):
            if index < prod(shape):
                return name
            index -= prod(shape)
        raise IndexError("coordinate outside the parameter space")


def digest(flat: Tensor) -> str:
    """SHA-256 of a flat parameter vector, taken over its float64 little-endian bytes.

    Args:
        flat: Shape (P,), any real dtype.

    Returns:
        Hexadecimal digest; equal for float32 weights and their exact float64 copy.
    """
    return hashlib.sha256(flat.detach().cpu().double().numpy().astype("<f8").tobytes()).hexdigest()
