"""The body of a step: what the MPI ranks of one attempt do together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsr_hpc.pipeline.spec import StepResult, StepSpec

if TYPE_CHECKING:
    from mpi4py import MPI

    from lsr_hpc.pipeline.heartbeat import StopFlag

__all__ = ["run_step"]


def run_step(comm: MPI.Comm, spec: StepSpec, stop: StopFlag) -> StepResult:
    """Carry one instance forward by up to ``spec.rounds`` rounds.

    Args:
        comm: Communicator of ``spec.world_size`` ranks.
        spec: What to do.
        stop: Asked at every boundary inside the step: ``stop.is_set()`` is local to a rank, so the ranks have
            to agree on it. Once it is set, write a checkpoint and return ``yielded``.

    Returns:
        The result, equal on all ranks; the first rank's is published.

    Raises:
        LsrError: With ``on_every_rank`` set if all ranks raise it together; every other exception ends all
            ranks with one message.

    Collective: all ranks.
    """
    raise NotImplementedError
