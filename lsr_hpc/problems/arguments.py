"""Checks that the shipped problems share: ranges of their arguments, and weights that fit the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from lsr_hpc.errors import JobError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ArgumentError", "check_range", "check_seed", "trained"]

Model = TypeVar("Model", bound="nn.Module")


class ArgumentError(JobError):
    """An argument of a shipped problem cannot be.

    Args:
        argument: Name of the argument.
        complaint: What is wrong and what to do.
    """

    def __init__(self, argument: str, complaint: str) -> None:
        super().__init__(f"{argument} {complaint}")
        self.argument = argument
        self.complaint = complaint


def check_range(argument: str, value: float, lowest: float, highest: float) -> None:
    """Refuse a number outside of a range.

    Args:
        argument: Name of the argument.
        value: Its value.
        lowest: Smallest value allowed.
        highest: Largest value allowed.

    Raises:
        ArgumentError: If it lies outside, or is NaN.
    """
    if not lowest <= value <= highest:
        raise ArgumentError(argument, f"= {value}: must be from {lowest} to {highest}")


def check_seed(seed: int) -> None:
    """Refuse what is no 64-bit seed.

    Args:
        seed: The seed.

    Raises:
        ArgumentError: If it is negative or at least 2**64.
    """
    check_range("seed", seed, 0, 2**64 - 1)


def trained(make: Callable[[], Model], weights: Mapping[str, Tensor], sizes: str) -> Model:
    """Make a network and load weights into it.

    Args:
        make: Makes the untrained network.
        weights: Its trained state.
        sizes: The arguments that decide its sizes, for the message.

    Returns:
        The trained network.

    Raises:
        ArgumentError: If the weights belong to a network of other sizes.
    """
    import torch

    # On the meta device nothing is allocated, however large the sizes in the job file.
    with torch.device("meta"):
        wanted = {name: tuple(t.shape) for name, t in make().state_dict().items()}
    found = {name: tuple(t.shape) for name, t in weights.items()}
    differing = [n for n in {**wanted, **found} if wanted.get(n) != found.get(n)]
    if differing:
        name = differing[0]
        raise ArgumentError(
            "weights",
            f"{len(differing)} of its tensors do not fit {sizes}: {name!r} has shape "
            f"{found.get(name, 'none at all')} in the file, {wanted.get(name, 'none at all')} is needed; "
            "set the sizes that it was trained with",
        )
    model = make()
    model.load_state_dict(weights)
    return model
