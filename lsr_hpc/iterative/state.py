"""What is carried from round to round, and how it is kept in a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.comm import even_ranges
from lsr_hpc.params import ParameterLayout
from lsr_hpc.problem import Problem
from lsr_hpc.snapshot import Cut, SavedState, Snapshot

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["BestNetwork", "BestPredictor", "IterateState", "RoundRecord", "cut_snapshot", "restored_cut"]

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """Measures of one round; residuals are square roots of the loss, errors relative L2 on evaluation data.

    Attributes:
        round: Number of the round, from 0.
        rank: Directions that the refinement used; 0 if it was refused.
        network_error_before: Of the network at the start of the round; None without evaluation data.
        network_residual_before: Of the same.
        predictor_error: Of the refined predictor.
        predictor_residual: Of the refined field itself, not of its linearisation.
        held_out: Held-out residual of the linearisation at the rank used; None if nothing was held out.
        alignment_before: Square root of the alignment's loss before it.
        alignment_after: The same afterwards.
        steps: Optimiser steps of the alignment.
        is_accepted: Whether the aligned network was taken.
        network_error: Of the network after the round.
        network_residual: Of the same.
        refine_seconds: Of the refinement.
        seconds: Of the whole round, interruptions not counted.
        advice: Of the refinement.
        scan: Ranks that the refinement looked at, with train and held-out residual; see
            :class:`~lsr_hpc.result.RefineResult`.
        spectrum: Some of the singular directions of J V: number, singular value, and share of the residual
            along it.
    """

    round: int
    rank: int
    network_error_before: float | None
    network_residual_before: float
    predictor_error: float | None
    predictor_residual: float
    held_out: float | None
    alignment_before: float
    alignment_after: float
    steps: int
    is_accepted: bool
    network_error: float | None
    network_residual: float
    refine_seconds: float
    seconds: float
    advice: list[str]
    scan: list[dict[str, Any]] = field(default_factory=list)
    spectrum: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class BestPredictor:
    """The best refined predictor so far.

    Attributes:
        theta: Network that it was linearised at, shape (P,).
        delta: Its correction, shape (P,).
        round: Round that made it.
        score: The larger one of its true and its held-out residual: what it is compared by.
        error: Its error on the evaluation data; None without any.
        residual: Its true residual.
    """

    theta: Array
    delta: Array
    round: int
    score: float
    error: float | None
    residual: float


@dataclass(frozen=True, kw_only=True)
class BestNetwork:
    """The network with the smallest residual so far.

    Attributes:
        theta: Its parameters, shape (P,).
        round: Round after which it was reached; -1 for the start.
        residual: Its residual.
        error: Its error on the evaluation data; None without any.
    """

    theta: Array
    round: int
    residual: float
    error: float | None


@dataclass(frozen=True, kw_only=True)
class IterateState:
    """State between two rounds; equal on all ranks but for ``warm``.

    Attributes:
        round: Number of the next round.
        theta: The network, shape (P,), float64.
        predictor: Best refined predictor so far.
        network: Best network so far.
        records: One per round.
        carried: Trust region and momentum of the last alignment.
        warm: Leading directions of the last basis, this rank's share, (g, P_local); None for a cold start.
        finished: Why no round is left to do; empty while there is one.
    """

    round: int
    theta: Array
    predictor: BestPredictor | None = None
    network: BestNetwork | None = None
    records: tuple[RoundRecord, ...] = ()
    carried: Snapshot = field(default_factory=Snapshot)
    warm: Cut | None = None
    finished: str = ""

    @classmethod
    def start(cls, problem: Problem) -> IterateState:
        """Before the first round.

        Args:
            problem: The problem, with the trained network.

        Returns:
            The state.
        """
        theta = ParameterLayout.of(problem.model).read(problem.model)
        return cls(round=0, theta=theta.double().cpu().numpy())

    @property
    def seconds(self) -> float:
        """Seconds of all rounds, interruptions not counted."""
        return sum(record.seconds for record in self.records)

    def snapshot(self) -> Snapshot:
        """What a later program goes on from."""
        arrays: dict[str, NDArray[Any] | Cut] = {"theta": self.theta}
        values: dict[str, Any] = {
            "round": self.round,
            "records": [asdict(record) for record in self.records],
            "finished": self.finished,
        }
        for name, best in (("predictor", self.predictor), ("network", self.network)):
            if best is not None:
                table = asdict(best)
                arrays |= {f"{name}.{k}": v for k, v in table.items() if isinstance(v, np.ndarray)}
                values[name] = {k: v for k, v in table.items() if not isinstance(v, np.ndarray)}
        arrays |= {f"carried.{name}": array for name, array in self.carried.arrays.items()}
        values["carried"] = dict(self.carried.values)
        return Snapshot(arrays, values).merged(cut_snapshot("warm", self.warm))

    @classmethod
    def restored(cls, saved: SavedState, comm: MPI.Comm) -> IterateState:
        """The state again, on any number of ranks; no communication.

        Args:
            saved: A snapshot that was kept, with or without what belongs to the inside of a round.
            comm: Communicator.

        Returns:
            The state.
        """
        values = saved.values

        def arrays_of(owner: str) -> dict[str, Any]:
            prefix = f"{owner}."
            return {n.removeprefix(prefix): saved.whole(n) for n in saved.names if n.startswith(prefix)}

        predictor, network = (
            {**values[owner], **arrays_of(owner)} if owner in values else None
            for owner in ("predictor", "network")
        )
        return cls(
            round=values["round"],
            theta=saved.whole("theta"),
            predictor=None if predictor is None else BestPredictor(**predictor),
            network=None if network is None else BestNetwork(**network),
            records=tuple(RoundRecord(**record) for record in values["records"]),
            carried=Snapshot(arrays_of("carried"), values["carried"]),
            warm=restored_cut(saved, "warm", comm),
            finished=values["finished"],
        )


def restored_cut(saved: SavedState, name: str, comm: MPI.Comm) -> Cut | None:
    """This rank's slice of directions over the free parameters; no communication.

    Args:
        saved: A snapshot that was kept; value ``NAME.columns`` tells the number of free parameters.
        name: Name of the array.
        comm: Communicator.

    Returns:
        The slice, or None if there is no such array.
    """
    if name not in saved.names:
        return None
    n = saved.values[f"{name}.columns"]
    first, behind = even_ranges(n, comm.size)[comm.rank]
    return Cut(saved.part(name, first, behind), first, n)


def cut_snapshot(name: str, cut: Cut | None) -> Snapshot:
    """The counterpart of :func:`restored_cut`.

    Args:
        name: Name of the array.
        cut: This rank's slice, or None.

    Returns:
        A snapshot, empty for None.
    """
    return Snapshot() if cut is None else Snapshot({name: cut}, {f"{name}.columns": cut.n_global})
