"""Settings of section ``[transfer]``: one network, many conditions."""

from __future__ import annotations

from dataclasses import dataclass

from lsr_hpc.settings.checks import at_least, refuse

__all__ = ["TransferSettings"]


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """Section ``[transfer]``: the conditions of a family, solved in the tangent space of one network.

    Attributes:
        source: Instance that the network was trained at; its residual draws the directions. It is solved as
            well, and left out of the statistics.
        ranks_per_target: MPI ranks that solve a condition together, each with its share of the response
            modes. 1 is fastest, but every rank then holds all modes.
    """

    source: int = 0
    ranks_per_target: int = 1

    def __post_init__(self) -> None:
        """Check each value."""
        refuse(at_least("transfer", self, source=0, ranks_per_target=1))
