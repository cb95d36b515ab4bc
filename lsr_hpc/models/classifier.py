"""Classifier of square grey images: convolutions or linear layers, and softmax at the end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lsr_hpc.errors import JobError
from lsr_hpc.models.linear import glorot_linear

__all__ = ["Classifier"]


class Classifier(nn.Module):
    """Convolutions of 3 x 3 and stride 2, linear layers, tanh after all but the last, then softmax.

    Args:
        side: Side of the images in pixels.
        channels: Channels of the convolutions; none for a network of linear layers alone.
        hidden: Widths of the hidden linear layers.
        classes: Number of classes.
    """

    def __init__(self, side: int, channels: Sequence[int], hidden: Sequence[int], classes: int) -> None:
        super().__init__()
        self.side = side
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise([1, *channels]):
            layers += [nn.Conv2d(n_in, n_out, kernel_size=3, stride=2, padding=1), nn.Tanh()]
            side = (side + 1) // 2
        layers.append(nn.Flatten())
        features = side * side * (channels[-1] if channels else 1)
        for n_in, n_out in pairwise([features, *hidden, classes]):
            layers += [glorot_linear(n_in, n_out), nn.Tanh()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities of the classes.

        Args:
            x: Images row by row, shape (n, side * side).

        Returns:
            Shape (n, classes).

        Raises:
            JobError: If the images have another size.
        """
        if x.ndim != 2 or x.shape[1] != self.side**2:
            raise JobError(
                f"inputs of shape {tuple(x.shape)}: this network takes images of {self.side} x {self.side} "
                f"pixels, shape (n, {self.side**2})"
            )
        probabilities: Tensor = self.layers(x.reshape(-1, 1, self.side, self.side)).softmax(dim=-1)
        return probabilities
