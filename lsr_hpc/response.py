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
from typing import Protocol

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

__all__ = ["CachedResponse", "DifferentiatedResponse", "Response", "make_response"]

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
        prepared: The prepared problem.
        segments: Channels of the fitted and of the held-out rows of this rank.
        v_local: Directions, shape (k, P_local).
        rotation: Orthonormal columns, shape (k, l).

    Collective: one block product of k columns with the channels.
    """

    in_words = "from cached response modes"

    def __init__(
        self,
        prepared: PreparedProblem,
        segments: tuple[list[ChannelSegment], list[ChannelSegment]],
        v_local: Array,
        rotation: Array,
    ) -> None:
        self._comm = prepared.comm
        self._fit, self._held = (_Modes(prepared, part, v_local, rotation) for part in segments)

    def residual(self, c: Array) -> FitAndHeld:
        """F(c).

        Args:
            c: Shape (j,).

        Returns:
            This rank's rows.

        Collective: agreement on errors.
        """
        return agree(self._comm, lambda: FitAndHeld(self._fit.residual(c), self._held.residual(c)))

    def jacobian(self, c: Array) -> FitAndHeld:
        """A_c.

        Args:
            c: Shape (j,).

        Returns:
            Shapes (j, N_local) and (j, N_held_local).

        Collective: agreement on errors.
        """
        return agree(self._comm, lambda: FitAndHeld(self._fit.jacobian(c), self._held.jacobian(c)))


class _Modes:
    """Channels q0 of the start and Phi of the directions, at one set of this rank's rows."""

    def __init__(
        self, prepared: PreparedProblem, segments: list[ChannelSegment], v_local: Array, rotation: Array
    ) -> None:
        comm, model, plan = prepared.comm, prepared.model, prepared.plan
        self._segments = segments
        self._device = model.device
        parts = tuple(s.channels for s in segments)
        n_values = sum(part.n_rows for part in parts)
        rows = LocalRows(parts, 0, n_values, model.device)

        def operator() -> JacobianOperator:
            structures = examine_blocks([p.block for p in parts], [p.probe for p in parts], model)
            found: JacobianOperator
            if isinstance(structures, NotFactored):
                found = MatrixFreeJacobian(
                    model, rows, columns_per_tile=plan.columns_per_tile, tile_bytes=plan.tile_bytes
                )
            else:
                # Each chunk of columns passes once, so that nothing is gained by keeping the factors.
                found = FactoredJacobian(model, rows, structures, tile_bytes=plan.tile_bytes, hold=False)
            return found if prepared.free is None else RestrictedJacobian(found, prepared.free)

        self._q0 = agree(comm, lambda: rows.residual(model.field()))
        modes = DistributedJacobian(comm, agree(comm, operator), plan.columns_per_chunk).jv(v_local)
        n_directions = rotation.shape[1]
        for columns in even_tiles(n_values, _ROWS):
            modes[:n_directions, columns] = rotation.T @ modes[:, columns]
        self._modes = torch.from_numpy(modes[:n_directions]).to(self._device)

    def residual(self, c: Array) -> Array:
        with torch.no_grad():
            pieces = [s.residual(q) for s, q, _ in self._at(c)]
        return np.concatenate([np.zeros(0), *(p.cpu().numpy() for p in pieces)])

    def jacobian(self, c: Array) -> Array:
        n_rows = sum(s.segment.n_rows for s in self._segments)
        out = torch.empty(len(c), n_rows, dtype=torch.float64, device=self._device)
        row = 0
        for segment, q, modes in self._at(c):
            by_channel = segment.derivative(q)
            rows = slice(row, row + segment.segment.n_rows)
            for some in even_tiles(len(c), _DIRECTIONS):
                values = torch.einsum("jne,nme->jnm", modes[some], by_channel)
                out[some, rows] = values.flatten(1)
            row = rows.stop
        return out.cpu().numpy()

    def _at(self, c: Array) -> list[tuple[ChannelSegment, Tensor, Tensor]]:
        """Each segment with q(c), shape (n, E), and the modes of its channels, shape (j, n, E)."""
        modes = self._modes[: len(c)]
        q = self._q0 + torch.from_numpy(c).to(self._device) @ modes
        found, first = [], 0
        for segment in self._segments:
            n = segment.segment.n_points
            here = slice(first, first + segment.channels.n_rows)
            shape = (n, segment.width)
            found.append((segment, q[here].view(shape), modes[:, here].view(len(c), *shape)))
            first = here.stop
        return found


def make_response(
    prepared: PreparedProblem, v_local: Array, rotation: Array, at: Array, start: FitAndHeld
) -> Response:
    """The cached response where the residual has channels and memory has room; else the differentiated one.

    Args:
        prepared: The prepared problem.
        v_local: Directions, shape (k, P_local).
        rotation: Orthonormal columns, shape (k, l).
        at: Coefficients at which the two are compared, shape (j,).
        start: Residual at the start, the scale of the comparison.

    Returns:
        The response; of the same kind on all ranks.

    Collective: all ranks.
    """
    differentiated = DifferentiatedResponse(prepared, v_local, rotation)
    comm, model = prepared.comm, prepared.model

    def survey() -> tuple[list[ChannelSegment], list[ChannelSegment]] | str:
        try:
            fit, held = (
                [find_channels(segment, model) for segment in rows.segments]
                for rows in (prepared.fit, prepared.held)
            )
        except NoChannels as reason:
            return str(reason)
        return fit, held

    segments = agree(comm, survey)
    n_values = 0
    reason = segments if isinstance(segments, str) else ""
    if not isinstance(segments, str):
        n_values = sum(s.channels.n_rows for part in segments for s in part)
    needed = 8 * (len(v_local) + 1) * max(comm.allgather(n_values))
    room = prepared.plan.budget_bytes - prepared.plan.total_bytes
    if needed > room:
        reason = f"they need {needed / 2**20:.0f} MiB per rank, and {room / 2**20:.0f} MiB are left"
    reason = next((r for r in comm.allgather(reason) if r), "")
    if not reason and not isinstance(segments, str):
        cached = CachedResponse(prepared, segments, v_local, rotation)
        difference = _relative_difference(prepared, cached, differentiated, at, start)
        if difference <= _AGREEMENT:
            return cached
        reason = f"they miss the residual of the refined field by {difference:.1e}"
    if comm.rank == 0:
        log.warning("re-solve without cached response modes: %s", reason)
    return differentiated


def _relative_difference(
    prepared: PreparedProblem, one: Response, other: Response, at: Array, start: FitAndHeld
) -> float:
    """Difference of two residuals at some coefficients, over the larger of them and the start's."""
    a, b = one.residual(at), other.residual(at)
    pairs = ((a.fit, b.fit, start.fit), (a.held, b.held, start.held))
    # Where the field leaves the domain of the residual, both must.
    sums = np.zeros(3)
    for x, y, r0 in pairs:
        known = np.isfinite(y)
        sums += [np.sum((x - y)[known] ** 2), np.sum(y[known] ** 2), np.sum(r0**2)]
        if not np.array_equal(np.isfinite(x), known):
            sums[0] = np.nan
    difference, size, at_start = np.sqrt(all_sum(prepared.comm, sums))
    return float(difference / max(size, at_start))
