"""Flat view of a network's trainable parameters.

LSR works in parameter space R^P. This module fixes the order of that space (``named_parameters``
order, each tensor row-major) and converts between the flat vector and the tensors of the network,
also for a block of b vectors at once.
"""

from __future__ import annotations

import hashlib
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
        shapes: Their shapes, in the same order.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, model: nn.Module) -> ParameterLayout:
        """Read the layout of ``model``'s parameters that require gradients.

        Args:
            model: Any module; a parameter shared between layers counts once.

        Returns:
            The layout.
        """
        named = [(n, tuple(p.shape)) for n, p in model.named_parameters() if p.requires_grad]
        return cls(tuple(n for n, _ in named), tuple(s for _, s in named))

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
        """Split flat vectors into tensors of the network (views where the memory allows).

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

    def read(self, model: nn.Module) -> Tensor:
        """Copy the parameters of ``model`` into one flat, detached vector of shape (P,).

        Args:
            model: A module with this layout.

        Returns:
            The flat vector, in the parameters' own dtype.
        """
        named = dict(model.named_parameters())
        return self.flatten({n: named[n].detach() for n in self.names}).clone()

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
