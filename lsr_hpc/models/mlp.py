"""Multilayer perceptron with fixed input scaling."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lsr_hpc.errors import JobError
from lsr_hpc.models.linear import glorot_linear

__all__ = ["ACTIVATIONS", "MLP"]


class TanhSin(nn.Module):
    """The activation tanh(sin(pi (x + 1))) + x."""

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape, number by number."""
        return torch.tanh(torch.sin(torch.pi * (x + 1))) + x


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh_sin": TanhSin,
}


class MLP(nn.Module):
    """``widths[0] -> ... -> widths[-1]``, an activation after every layer but the last.

    Args:
        widths: Layer sizes, input and output included.
        activation: Name of the activation.
        input_mean: Subtracted from the inputs, one number per input; none by default.
        input_std: Divides the inputs, one number per input.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        widths: Sequence[int],
        activation: str = "tanh",
        input_mean: Sequence[float] | None = None,
        input_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(input_mean or [0.0] * widths[0]))
        self.register_buffer("std", torch.tensor(input_std or [1.0] * widths[0]))
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [glorot_linear(n_in, n_out), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to outputs.

        Args:
            x: Shape (n, widths[0]).

        Returns:
            Shape (n, widths[-1]).

        Raises:
            JobError: If the inputs have another width, which subtracting the mean could broadcast.
        """
        if x.shape[-1:] != self.mean.shape:
            raise JobError(
                f"inputs of shape {tuple(x.shape)}: this network takes {len(self.mean)} numbers per point, "
                f"shape (n, {len(self.mean)})"
            )
        out: Tensor = self.layers((x - self.mean) / self.std)
        return out
