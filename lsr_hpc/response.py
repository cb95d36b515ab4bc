"""Residual of the refined field and its derivative, as functions of the coefficients of a fixed subspace.

    u_c = u(theta0) + G V c,     F(c) = r(u_c),     A_c = dF/dc

Two ways. *Cached*: the response modes Phi, the channels (:mod:`lsr_hpc.channels`) of G V, are computed once;
F and A_c then cost a few passes over the numbers of Phi. *Differentiated*: F and A_c by automatic
differentiation of the refined field, where the residual has no channels or Phi does not fit into the memory.
"""

# Legend: k directions V, l <= k of them turned (rotation, k x l) and in use, j <= l leading coefficients c;
# N rows, E channel values per point; _local = this rank's rows or slice of the parameters.

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.channels import ChannelSegment, NoChannels, find_channels
from lsr_hpc.comm import agree, all_sum
from lsr_hpc.functional import TangentModel
from lsr_hpc.jacobian.examine import NotFactored, examine_blocks
from lsr_hpc.jacobian.factored import FactoredJacobian
from lsr_hpc.jacobian.matrix_free import MatrixFreeJacobian
from lsr_hpc.jacobian.operator import DistributedJacobian, JacobianOperator
from lsr_hpc.jacobian.restricted import RestrictedJacobian
from lsr_hpc.prepare import PreparedProblem
from lsr_hpc.rows import FitAndHeld, LocalRows, even_tiles

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = [
    "CachedResponse",
    "DifferentiatedResponse",
    "ModePiece",
    "Response",
    "channel_modes",
    "make_response",
    "room_for_modes",
]

log = logging.getLogger("lsr_hpc")

Array = NDArray[np.float64]

# Cached and differentiated residuals agree to rounding, or the residual is no function of the channels found.
_AGREEMENT = 1e-9
# Directions contracted, rows rotated at once: bound the temporaries.
_DIRECTIONS = 16
_ROWS = 1024


class Response(Protocol):
    """F and A_c on this rank's rows, fitted and held-out. Both methods are collective."""

    @property
    def in_words(self) -> str:
        """How F and A_c are computed."""

    def residual(self, c: Array) -> FitAndHeld:
        """F(c) for c of shape (j,); NaN and Inf pass."""

    def jacobian(self, c: Array) -> FitAndHeld:
        """A_c of the j leading directions, shapes (j, N_local) and (j, N_held_local)."""


class DifferentiatedResponse:
    """By automatic differentiation of the refined field.

    Args:
        prepared: The prepared problem.
        v_local: Directions, shape (k, P_local).
        rotation: Orthonormal columns, shape (k, l).
    """

    in_words = "by automatic differentiation"

    def __init__(self, prepared: PreparedProblem, v_local: Array, rotation: Array) -> None:
        self._prepared = prepared
        self._v_local = v_local
        self._rotation = rotation

    def correction(self, c: Array) -> Array:
        """Parameter correction V c.

        Args:
            c: Shape (j,).

        Returns:
            Shape (P,), equal on all ranks.

        Collective: one gather of delta.
        """
        return self._prepared.whole_correction(self._rotation[:, : len(c)] @ c @ self._v_local)

    def residual(self, c: Array) -> FitAndHeld:
        """F(c).

        Args:
            c: Shape (j,).

        Returns:
            This rank's rows.

        Collective: one gather of delta.
        """
        field = self._model(c).field()
        prepared = self._prepared
        return agree(
            prepared.comm,
            lambda: FitAndHeld(
                prepared.fit.residual(field).cpu().numpy(), prepared.held.residual(field).cpu().numpy()
            ),
        )

    def jacobian(self, c: Array) -> FitAndHeld:
        """A_c.

        Args:
            c: Shape (j,).

        Returns:
            Shapes (j, N_local) and (j, N_held_local).

        Collective: one allgatherv per chunk of columns, for the fitted and for the held-out rows.
        """
        prepared, model = self._prepared, self._model(c)
        v_local = self._rotation[:, : len(c)].T @ self._v_local

        def rows_of(rows: LocalRows) -> Array:
            plan = prepared.plan
            # The refined field is itself a derivative: twice the temporaries of the network.
            operator: JacobianOperator = MatrixFreeJacobian(
                model, rows, columns_per_tile=plan.columns_per_tile, tile_bytes=plan.tile_bytes // 2
            )
            if prepared.free is not None:
                operator = RestrictedJacobian(operator, prepared.free)
            return DistributedJacobian(prepared.comm, operator, plan.columns_per_chunk).jv(v_local)

        return FitAndHeld(rows_of(prepared.fit), rows_of(prepared.held))

    def _model(self, c: Array) -> TangentModel:
        model = self._prepared.model
        return TangentModel(model, torch.from_numpy(self.correction(c)).to(model.device))


class CachedResponse:
    """From response modes that are computed once.

    Args:
        comm: Communicator over whose ranks the rows are cut.
        device: Where the modes live.
        pieces: Modes of the fitted rows of this rank, and behind them of the held-out ones.
        n_fit: Fitted rows of this rank.
    """

    in_words = "from cached response modes"

    def __init__(self, comm: MPI.Comm, device: torch.device, pieces: Sequence[ModePiece], n_fit: int) -> None:
        self._comm = comm
        self._device = device
        self._pieces = pieces
        self._n_fit = n_fit
        self._n_rows = sum(piece.n_rows for piece in pieces)

    @classmethod
    def of_directions(
        cls,
        prepared: PreparedProblem,
        segments: list[ChannelSegment],
        v_local: Array,
        rotation: Array,
        av: FitAndHeld,
        r0: FitAndHeld,
    ) -> CachedResponse:
        """Compute the modes of directions.

        Args:
            prepared: The prepared problem.
            segments: Channels of the fitted rows of this rank, and behind them of the held-out ones.
            v_local: Directions, shape (k, P_local).
            rotation: Orthonormal columns, shape (k, l).
            av: Rows of J V, the modes of rows that are linear in u.
            r0: Residual at the start.

        Returns:
            The response.

        Collective: one block product of k columns with the channels.
        """
        device, n_fit = prepared.model.device, prepared.fit.n_rows
        q0, modes = channel_modes(prepared, segments, v_local, rotation)
        pieces: list[ModePiece] = []
        row = value = 0
        for segment in segments:
            n = segment.segment.n_points
            rows = slice(row, row + segment.segment.n_rows)
            row = rows.stop
            if segment.rows is None:
                first = 0 if rows.stop <= n_fit else n_fit
                own, start = (av.fit, r0.fit) if first == 0 else (av.held, r0.held)
                there = slice(rows.start - first, rows.stop - first)
                turned = torch.from_numpy(rotation.T @ own[:, there]).to(device)
                at_start = torch.from_numpy(start[there]).to(device)
                pieces.append(ModePiece(None, rows, at_start.view(n, -1), turned.view(len(turned), n, -1)))
            else:
                there = slice(value, value + n * segment.width)
                value = there.stop
                pieces.append(
                    ModePiece(segment, rows, q0[there].view(n, -1), modes[:, there].view(len(modes), n, -1))
                )
        return cls(prepared.comm, device, pieces, n_fit)

    def residual(self, c: Array) -> FitAndHeld:
        """F(c).

        Args:
            c: Shape (j,).

        Returns:
            This rank's rows.

        Collective: agreement on errors.
        """
        return agree(self._comm, lambda: self._residual(torch.from_numpy(c).to(self._device)))

    def jacobian(self, c: Array) -> FitAndHeld:
        """A_c.

        Args:
            c: Shape (j,).

        Returns:
            Shapes (j, N_local) and (j, N_held_local).

        Collective: agreement on errors.
        """
        return agree(self._comm, lambda: self._jacobian(torch.from_numpy(c).to(self._device)))

    def _residual(self, c: Tensor) -> FitAndHeld:
        out = torch.empty(self._n_rows, dtype=torch.float64, device=self._device)
        for piece in self._pieces:
            with torch.no_grad():
                q = piece.at(c)
                out[piece.rows] = q.reshape(-1) if piece.segment is None else piece.segment.residual(q)
        return self._split(out)

    def _jacobian(self, c: Tensor) -> FitAndHeld:
        out = torch.empty(len(c), self._n_rows, dtype=torch.float64, device=self._device)
        for piece in self._pieces:
            modes = piece.modes[: len(c)]
            if piece.segment is None:
                out[:, piece.rows] = modes.flatten(1)
                continue
            by_channel = piece.segment.derivative(piece.at(c))
            for some in even_tiles(len(c), _DIRECTIONS):
                out[some, piece.rows] = torch.einsum("jne,nme->jnm", modes[some], by_channel).flatten(1)
        return self._split(out)

    def _split(self, rows: Tensor) -> FitAndHeld:
        values = rows.cpu().numpy()
        return FitAndHeld(values[..., : self._n_fit], values[..., self._n_fit :])


@dataclass(frozen=True)
class ModePiece:
    """Modes of a segment: of its channels, or of the rows themselves where these are linear in u.

    Attributes:
        segment: Its channels; None where the rows are linear in u, and so their own channels.
        rows: Its rows among those of this rank, held-out behind fitted ones.
        q0: Channels at the start, shape (n, E).
        modes: Phi, shape (l, n, E).
    """

    segment: ChannelSegment | None
    rows: slice
    q0: Tensor
    modes: Tensor

    @property
    def n_rows(self) -> int:
        """Residual rows."""
        return int(self.rows.stop - self.rows.start)

    def at(self, c: Tensor) -> Tensor:
        """Channels at some coefficients, shape (n, E)."""
        change: Tensor = torch.tensordot(c, self.modes[: len(c)], dims=1)
        return self.q0 + change


def channel_modes(
    prepared: PreparedProblem, segments: Sequence[ChannelSegment], v_local: Array, rotation: Array
) -> tuple[Tensor, Tensor]:
    """Channels of the start, and of turned directions, in the segments that have ``rows``.

    Args:
        prepared: The prepared problem.
        segments: Channels of this rank's points; those without ``rows`` are passed over.
        v_local: Directions, shape (k, P_local).
        rotation: Orthonormal columns, shape (k, l).

    Returns:
        q0, shape (values,), and Phi, shape (l, values): segment by segment, E values per point.

    Collective: one block product of k columns with the channels.
    """
    comm, model, plan = prepared.comm, prepared.model, prepared.plan
    curved = tuple(s.rows for s in segments if s.rows is not None)
    n_values = sum(rows.n_rows for rows in curved)

    def operator() -> tuple[Array, JacobianOperator]:
        rows = LocalRows(curved, 0, n_values, model.device)
        # A block has one structure, be its points fitted or held out.
        own = {segment.block.name: segment for segment in rows.segments}.values()
        structures = examine_blocks([s.block for s in own], [s.probe for s in own], model)
        found: JacobianOperator
        if isinstance(structures, NotFactored):
            found = MatrixFreeJacobian(
                model, rows, columns_per_tile=plan.columns_per_tile, tile_bytes=plan.tile_bytes
            )
        else:
            held = sum(structures[s.block.name].numbers_per_point * s.n_points for s in rows.segments)
            room = room_for_modes(prepared) - 8 * (len(v_local) + 1) * n_values
            found = FactoredJacobian(
                model, rows, structures, tile_bytes=plan.tile_bytes, hold=8 * held <= room
            )
        q0 = rows.residual(model.field()).cpu().numpy()
        return q0, found if prepared.free is None else RestrictedJacobian(found, prepared.free)

    q0, local = agree(comm, operator)
    modes = DistributedJacobian(comm, local, plan.columns_per_chunk).jv(v_local)
    n_directions = rotation.shape[1]
    for columns in even_tiles(n_values, _ROWS):
        modes[:n_directions, columns] = rotation.T @ modes[:, columns]
    return torch.from_numpy(q0).to(model.device), torch.from_numpy(modes[:n_directions]).to(model.device)


def _numbers(segment: ChannelSegment) -> int:
    """Numbers that a direction's modes take."""
    return segment.segment.n_rows if segment.rows is None else segment.rows.n_rows


def room_for_modes(prepared: PreparedProblem) -> int:
    """Memory that the plan has not given away, in bytes, may be negative."""
    return prepared.plan.budget_bytes - prepared.plan.total_bytes


def make_response(
    prepared: PreparedProblem, v_local: Array, rotation: Array, at: Array, av: FitAndHeld, r0: FitAndHeld
) -> Response:
    """The cached response where the residual has channels and memory has room; else the differentiated one.

    Args:
        prepared: The prepared problem.
        v_local: Directions, shape (k, P_local).
        rotation: Orthonormal columns, shape (k, l).
        at: Coefficients at which the two are compared, shape (j,).
        av: Rows of J V.
        r0: Residual at the start.

    Returns:
        The response; of the same kind on all ranks.

    Collective: all ranks.
    """
    differentiated = DifferentiatedResponse(prepared, v_local, rotation)
    comm, model = prepared.comm, prepared.model

    def survey() -> list[ChannelSegment] | str:
        try:
            return [
                find_channels(segment, model) for segment in (*prepared.fit.segments, *prepared.held.segments)
            ]
        except NoChannels as reason:
            return str(reason)

    found = agree(comm, survey)
    segments, reason = ([], found) if isinstance(found, str) else (found, "")
    n_values = max(comm.allgather(sum(_numbers(s) for s in segments)))
    needed, room = 8 * (len(v_local) + 1) * n_values, room_for_modes(prepared)
    if needed > room:
        reason = f"they need {needed / 2**20:.0f} MiB per rank, and {room / 2**20:.0f} MiB are left"
    reason = next((r for r in comm.allgather(reason) if r), "")
    if not reason:
        cached = CachedResponse.of_directions(prepared, segments, v_local, rotation, av, r0)
        difference = _relative_difference(prepared, cached, differentiated, at, r0)
        if difference <= _AGREEMENT:
            return cached
        reason = f"they miss the residual of the refined field by {difference:.1e}"
    if comm.rank == 0:
        log.warning("re-solve without cached response modes: %s", reason)
    return differentiated


def _relative_difference(
    prepared: PreparedProblem, one: Response, other: Response, at: Array, r0: FitAndHeld
) -> float:
    """Difference of two residuals at some coefficients, over the larger of them and the start's."""
    a, b = one.residual(at), other.residual(at)
    pairs = ((a.fit, b.fit, r0.fit), (a.held, b.held, r0.held))
    # Where the field leaves the domain of the residual, both must.
    sums = np.zeros(3)
    for x, y, start in pairs:
        known = np.isfinite(y)
        with np.errstate(over="ignore"):
            sums += [np.sum((x[known] - y[known]) ** 2), np.sum(y[known] ** 2), np.sum(start**2)]
        if not np.array_equal(np.isfinite(x), known):
            sums[0] = np.nan
    difference, size, at_start = np.sqrt(all_sum(prepared.comm, sums))
    # Where the squares overflow nothing can be said.
    return float(difference / max(size, at_start)) if np.isfinite(size) else np.inf
