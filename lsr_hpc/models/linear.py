"""Linear layers with Glorot's initial weights."""

from __future__ import annotations

from torch import nn

__all__ = ["glorot_linear"]


def glorot_linear(n_in: int, n_out: int) -> nn.Linear:
    """Make a linear layer: normal weights of variance 2 / (n_in + n_out), biases zero (Glorot, Bengio 2010).

    Args:
        n_in: Inputs.
        n_out: Outputs.

    Returns:
        The layer; on the meta device, where only shapes are asked for, nothing is drawn.
    """
    layer = nn.Linear(n_in, n_out)
    # Drawing on the meta device would have torch load its compiler, which takes a second.
    if not layer.weight.is_meta:
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer
