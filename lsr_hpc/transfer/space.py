"""One condition after another in the affine space u(theta0) + G V c of a source, by a group of MPI ranks.

The rows of a condition are cut over the ranks of the group as those of a refinement, and every rank holds the
response modes of its own. Nothing is differentiated for a solve; the true residual and the error of what it
finds are measured on the refined field itself.
"""

# Legend: l directions, c coefficients of j <= l leading ones, E channel values per point.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.channels import ChannelSegment, NoChannels, survey_channels
from lsr_hpc.comm import agree, all_sum, even_ranges, gather_panel
from lsr_hpc.errors import JobError
from lsr_hpc.evaluate import Evaluator
from lsr_hpc.gauss_newton import GaussNewton, Path
from lsr_hpc.least_squares.selection import ScanEntry, choose_rank
from lsr_hpc.phases import Phases
from lsr_hpc.plan import rss_bytes
from lsr_hpc.prepare import PreparedProblem
from lsr_hpc.problem import Problem, ResidualBlock, check_outputs, check_problem
from lsr_hpc.response import CachedResponse, ModePiece
from lsr_hpc.result import Outcome, RefineResult
from lsr_hpc.rows import FitAndHeld, LocalRows, RowSet, local_rows, partition
from lsr_hpc.settings import parse_bytes
from lsr_hpc.snapshot import SavedState
from lsr_hpc.solve import shares_objective
from lsr_hpc.transfer.modes import no_channels

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["TransferSpace"]

Array = NDArray[np.float64]

# Shares of the directions whose solutions the held-out rows judge.
_SHARES = (1 / 4, 1 / 2, 1)
# Difference of the residuals of modes and refined field, over the latter, that is worth a note.
_NOTEWORTHY = 1e-2
# Numbers per row and direction beside the modes: A_c, and the copies of TSQR.
_ROW_COPIES = 3


class TransferSpace:
    """The modes of a source on this group's rows.

    Args:
        comm: Communicator of the group.
        source: The prepared source; of its world only rows, network and settings are used.
        modes: What :func:`~lsr_hpc.transfer.modes.compute_modes` has made.

    Raises:
        JobError: If the modes do not fit into the memory.

    Collective: all ranks of the group; each reads its share of the modes.
    """

    def __init__(self, comm: MPI.Comm, source: PreparedProblem, modes: SavedState) -> None:
        self.comm = comm
        self._source = source
        self._detail: Mapping[str, Any] = modes.values
        self._widths: Mapping[str, int] = modes.values["widths"]
        self._singular_values = np.array(modes.values["singular_values"])
        own = source.model
        self._state = source.problem.model.state_dict()
        self._fit = agree(comm, lambda: local_rows(source.fit_rows, comm.rank, comm.size, own))
        self._held = agree(comm, lambda: local_rows(source.held_rows, comm.rank, comm.size, own))
        self._segments = agree(comm, lambda: self._surveyed(self._fit, self._held))
        self._require_room()
        ranges = even_ranges(self._n_free, comm.size)
        self._parameter_ranges = ranges
        self._directions = agree(comm, lambda: modes.part("directions", *ranges[comm.rank]))
        read = agree(
            comm,
            lambda: [self._read(modes, "fit", source.fit_rows), self._read(modes, "held", source.held_rows)],
        )
        self._start = torch.from_numpy(np.concatenate([r[0] for r in read])).to(own.device)
        self._modes = torch.from_numpy(np.concatenate([r[1] for r in read], axis=1)).to(own.device)

    @property
    def rank(self) -> int:
        """Directions l."""
        return len(self._singular_values)

    @property
    def in_words(self) -> str:
        """How the modes were made."""
        return f"{self._detail['basis']}; {self.rank} of them kept"

    def solve(self, problem: Problem) -> RefineResult:
        """Solve a condition.

        Args:
            problem: The condition: another residual of the same network at the same points.

        Returns:
            Its result, equal on all ranks of the group.

        Raises:
            LsrError: On every rank of the group, if the condition is not of this space, or its residual is
                NaN or Inf.

        Collective: all ranks of the group; a TSQR for each step.
        """
        phases = Phases()
        comm, settings = self.comm, self._source.settings
        fit, held = agree(comm, lambda: self._rows_of(problem))
        response = CachedResponse(
            comm, self._source.model.device, agree(comm, lambda: self._pieces(fit, held)), fit.n_rows
        )
        r0 = response.residual(np.zeros(0))
        agree(comm, lambda: _require_finite(fit, held, r0))
        n_fit, n_held = self._source.fit_rows.n_rows, self._source.held_rows.n_rows
        solver = GaussNewton(comm, settings.solver, response, r0, n_fit, n_held)
        shares = _SHARES if n_held else (1,)
        paths = solver.nested(sorted({max(1, int(share * self.rank)) for share in shares}))
        scan = [
            ScanEntry(len(p.c), p.c, math.sqrt(p.loss), *(p.held if n_held else (None, None))) for p in paths
        ]
        rank = choose_rank(scan, n_held)
        best = next(path for path in paths if len(path.c) == rank)
        steps = sum(path.steps for path in paths)
        is_refit = n_held > 0 and shares_objective(self._source)
        if rank and is_refit:
            best = solver.descend(best.c, all_rows=True)
            steps += best.steps
        solve_s = phases.total()
        found = _Found(problem, fit, held, r0, response.residual(best.c), best, scan, steps, is_refit)
        return self._measured(found, phases, solve_s)

    def _measured(self, found: _Found, phases: Phases, solve_s: float) -> RefineResult:
        """The true residual and the errors of what was found, and the result of it all."""
        comm, source, best, rank = self.comm, self._source, found.best, len(found.best.c)
        delta = self._correction(best.c)
        field = source.model.refined_field(torch.from_numpy(delta).to(source.model.device))
        true = agree(
            comm,
            lambda: FitAndHeld(
                found.fit.residual(field).cpu().numpy(), found.held.residual(field).cpu().numpy()
            ),
        )
        norms = self._norms([found.start, found.end, true], found.is_refit)
        missed = FitAndHeld(true.fit - found.end.fit, true.held - found.end.held)
        difference = self._norms([missed], found.is_refit)[0]
        scale = self._to_loss(found)
        errors: list[float | None] = [None, None]
        if found.problem.evaluation is not None:
            evaluator = Evaluator(comm, found.problem.evaluation, source)
            errors = [evaluator.error(u) for u in (source.model.field(), field)]
        outcome, advice = _judge(found, source.settings.solver.resolve_steps)
        if rank and not difference <= _NOTEWORTHY * norms[2]:
            advice.append(
                "the residual of the refined field differs from that of the modes by "
                f"{difference * scale:.1e}: raise solver.cut"
            )
        return RefineResult(
            problem=found.problem.name,
            outcome=outcome,
            advice=advice,
            delta=delta,
            rank=rank,
            rank_max=self.rank,
            error_before=errors[0],
            error_after=errors[1],
            residual_before=norms[0] * scale,
            residual_linear=norms[1] * scale,
            residual_true=norms[2] * scale,
            scan=self._scan_as_json(found),
            checks={"resolve_steps": found.steps},
            counts={
                "rows": source.n_rows,
                "held_out_rows": source.held_rows.n_rows,
                "params": source.model.layout.size,
            },
            jacobian=self._detail["jacobian"],
            seconds={"solve": solve_s, "total": phases.total()},
            detail={"basis": self.in_words, "solve": f"{found.steps} Gauss-Newton steps from response modes"},
        )

    def _correction(self, c: Array) -> Array:
        """Parameter correction V c, shape (P,)."""
        local = c @ self._directions[: len(c)]
        return self._source.whole_step(
            np.array(gather_panel(self.comm, local[None], self._parameter_ranges)[0])
        )

    @property
    def _n_free(self) -> int:
        free = self._source.free
        return self._source.model.layout.size if free is None else len(free)

    def _rows_of(self, problem: Problem) -> tuple[LocalRows, LocalRows]:
        """This rank's rows of a condition: those of the source with other residuals and data."""
        check_problem(problem)
        source, model = self._source, self._source.model
        if problem.evaluation is not None:
            check_outputs(problem.evaluation, model.field(), model.device)
        _require_same_network(problem, self._state)
        held_blocks = problem.validation if source.problem.validation else problem.blocks
        return (
            local_rows(_with_blocks(source.fit_rows, problem.blocks), self.comm.rank, self.comm.size, model),
            local_rows(_with_blocks(source.held_rows, held_blocks), self.comm.rank, self.comm.size, model),
        )

    def _surveyed(self, fit: LocalRows, held: LocalRows) -> list[ChannelSegment]:
        found = []
        for segment in (*fit.segments, *held.segments):
            try:
                found.append(survey_channels(segment, self._source.model))
            except NoChannels as reason:
                raise no_channels(segment.block.name, reason) from reason
        return found

    def _pieces(self, fit: LocalRows, held: LocalRows) -> list[ModePiece]:
        """The modes behind each segment of a condition."""
        pieces = []
        row = value = 0
        for own, known in zip(self._surveyed(fit, held), self._segments, strict=True):
            is_same = own.derivatives == known.derivatives and all(
                torch.equal(a, b) for a, b in zip(own.places, known.places, strict=True)
            )
            if not is_same:
                raise JobError(
                    f"residual block {own.segment.block.name!r} takes the network at other points, or other "
                    "derivatives of it, than that of the source: give all conditions the same points"
                )
            n, rows = own.segment.n_points, slice(row, row + own.segment.n_rows)
            there = slice(value, value + n * own.width)
            row, value = rows.stop, there.stop
            modes = self._modes[:, there].view(self.rank, n, -1)
            pieces.append(ModePiece(own, rows, self._start[there].view(n, -1), modes))
        return pieces

    def _read(self, modes: SavedState, kind: str, rows: RowSet) -> tuple[Array, Array]:
        """Channels of the start, and modes, at this rank's points."""

        def n_values(pieces: Sequence[tuple[int, int, int]]) -> int:
            return sum((hi - lo) * self._widths[rows.blocks[k].name] for k, lo, hi in pieces)

        parts = partition(rows, self.comm.size)
        first = sum(n_values(pieces) for pieces in parts[: self.comm.rank])
        behind = first + n_values(parts[self.comm.rank])
        return modes.part(f"{kind}.start", first, behind), modes.part(f"{kind}.modes", first, behind)

    def _require_room(self) -> None:
        values = sum(s.segment.n_points * self._widths[s.segment.block.name] for s in self._segments)
        rows = self._fit.n_rows + self._held.n_rows
        compute = self._source.settings.compute
        needed = max(self.comm.allgather(8 * (self.rank + 1) * (values + _ROW_COPIES * rows)))
        room = min(self.comm.allgather(parse_bytes(compute.memory_per_rank) - rss_bytes()))
        if needed > room:
            raise JobError(
                f"compute.memory_per_rank = {compute.memory_per_rank!r} leaves {max(room, 0) / 2**20:.0f} "
                f"MiB for response modes and solve of {needed / 2**20:.0f} MiB per rank: raise it, or "
                f"transfer.ranks_per_target = {self.comm.size}, so that ranks share them",
                on_every_rank=True,
            )

    def _norms(self, residuals: Sequence[FitAndHeld], all_rows: bool) -> list[float]:
        """Norms over the rows that were fitted; NaN and Inf pass."""
        with np.errstate(over="ignore", invalid="ignore"):
            squares = [r.fit @ r.fit + (r.held @ r.held if all_rows else 0.0) for r in residuals]
        return [math.sqrt(s) for s in all_sum(self.comm, np.array(squares)).tolist()]

    def _to_loss(self, found: _Found) -> float:
        """Factor from the norm over the fitted rows to the square root of the whole loss."""
        fit, held = found.weights(self._source)
        return math.sqrt(found.total_weight / (fit + (held if found.is_refit else 0.0)))

    def _scan_as_json(self, found: _Found) -> list[dict[str, Any]]:
        fit, held = found.weights(self._source)
        return [
            {
                "rank": entry.rank,
                "train": entry.train / math.sqrt(fit),
                "held_out": None if entry.held_out is None else entry.held_out / math.sqrt(held),
                "error": None,
                "true": None,
            }
            for entry in found.scan
        ]


@dataclass(frozen=True)
class _Found:
    """A condition with what was found for it.

    Attributes:
        problem: The condition.
        fit: Its fitted rows on this rank.
        held: Its held-out rows on this rank.
        start: Residual of the source's field.
        end: Residual at the solution, from the modes.
        best: The solution.
        scan: Ranks looked at.
        steps: Gauss-Newton steps in all.
        is_refit: Whether the solution was fitted to held-out rows too.
    """

    problem: Problem
    fit: LocalRows
    held: LocalRows
    start: FitAndHeld
    end: FitAndHeld
    best: Path
    scan: Sequence[ScanEntry]
    steps: int
    is_refit: bool

    def weights(self, source: PreparedProblem) -> tuple[float, float]:
        """Weighted shares of the blocks in fitted and held-out rows."""
        held = self.problem.validation if source.problem.validation else self.problem.blocks
        return (
            _with_blocks(source.fit_rows, self.problem.blocks).weight_sum,
            _with_blocks(source.held_rows, held).weight_sum,
        )

    @property
    def total_weight(self) -> float:
        """Of all blocks."""
        return sum(block.weight for block in self.problem.blocks)


def _with_blocks(rows: RowSet, blocks: Sequence[ResidualBlock]) -> RowSet:
    """The same points of another condition's blocks."""
    counting = [block for block in blocks if block.weight > 0]
    if [(b.name, b.n_points) for b in counting] != [(b.name, b.n_points) for b in rows.blocks]:
        listed = (
            ", ".join(f"{b.name!r} with {b.n_points} points" for b in some)
            for some in (counting, rows.blocks)
        )
        raise JobError(
            "its residual blocks are {}, those of the source {}: give all conditions the same".format(*listed)
        )
    return replace(rows, blocks=tuple(counting))


def _require_same_network(problem: Problem, state: Mapping[str, Tensor]) -> None:
    own = problem.model.state_dict()
    differing = [
        n for n in {**state, **own} if n not in own or n not in state or not _equal(own[n], state[n])
    ]
    if differing:
        raise JobError(
            f"its network differs from that of the source in {differing[0]!r}: all conditions of a transfer "
            "share the network that was trained at one of them"
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.double(), b.double())


def _require_finite(fit: LocalRows, held: LocalRows, r0: FitAndHeld) -> None:
    fit.require_finite(torch.from_numpy(r0.fit), "is")
    held.require_finite(torch.from_numpy(r0.held), "is")


def _judge(found: _Found, limit: int) -> tuple[Outcome, list[str]]:
    if len(found.best.c) == 0:
        return Outcome.REFUSED, [
            "no rank lowers the residual on held-out rows by more than chance, so the field of the "
            "source is kept: use more rows, or a source nearer to this condition"
        ]
    if not found.best.has_converged:
        return Outcome.NOT_CONVERGED, [
            f"the residual was still falling after {limit} Gauss-Newton steps: raise solver.resolve_steps"
        ]
    return Outcome.REFINED, []
