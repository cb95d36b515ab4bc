"""Who carries out the batches of a campaign: the launcher beside the controller, or jobs of SLURM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from distributed import Client, Future

from lsr_hpc.campaign.batch import BatchEnd, CampaignControl, carry_out
from lsr_hpc.pipeline.cluster import LAUNCHER

__all__ = ["Crew", "LocalCrew"]


class Crew(Protocol):
    """Takes batches as tasks of Dask."""

    @property
    def is_here(self) -> bool:
        """Whether ranks live where the controller lives: told to leave, they speak for it as well."""

    def submit(self, number: int, names: Sequence[str], *, after_others: bool) -> Future[BatchEnd]:
        """Hand out a batch.

        Args:
            number: Its number.
            names: Members.
            after_others: See :func:`~lsr_hpc.campaign.batch.carry_out`.

        Returns:
            What will become of it; cancelled or an error where the one that had it in hand is lost.
        """

    def look_after(self) -> None:
        """What is to be done every now and then.

        Raises:
            EnvironmentProblem: If nobody comes to carry out anything.
        """


@dataclass(frozen=True)
class LocalCrew:
    """The launcher of this process.

    Attributes:
        client: The cluster.
        control: What is shared with its tasks.
    """

    client: Client
    control: CampaignControl
    is_here: bool = True

    def submit(self, number: int, names: Sequence[str], *, after_others: bool) -> Future[BatchEnd]:
        """See :class:`Crew`."""
        key = str(self.control.start[1])
        return self.client.submit(
            carry_out,
            key,
            number,
            names,
            after_others=after_others,
            key=f"{key}-{number}",
            workers=[LAUNCHER],
            resources={"ranks": self.control.settings.ranks},
            pure=False,
            retries=0,
        )

    def look_after(self) -> None:
        """Show other machines that the members in hand are in good hands."""
        self.control.locks.touch()
