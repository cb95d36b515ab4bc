"""Alignment by first-order optimisers of torch, data-parallel over the ranks.

The optimiser itself runs on the first rank alone, the others serve it: for every evaluation the parameters
are broadcast, each rank adds up loss and gradient of its rows, and the sums meet on the first rank. So the
ranks cannot disagree on a line search, and the state is that of one torch optimiser.
"""

# Legend: P parameters; theta parameters, f residual of the alignment, loss ||f||^2.

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.autodiff import pull_back
from lsr_hpc.comm import agree
from lsr_hpc.errors import AccuracyError
from lsr_hpc.prepare import PreparedProblem
from lsr_hpc.rows import points_at_once
from lsr_hpc.settings import IterateSettings
from lsr_hpc.snapshot import Cut, SavedState, Snapshot

__all__ = ["GradientAlignment"]

Array = NDArray[np.float64]

# Optimiser steps between two boundaries.
_LBFGS_STEPS, _ADAM_STEPS = 10, 50
# Published tolerances of the line search's host.
_TOLERANCE_GRADIENT, _TOLERANCE_CHANGE = 1e-14, 1e-16
_DONE = None
# Room of L-BFGS for a loop that fills it anew; marks a list in what JSON keeps of an optimiser's state.
_SCRATCH = "al"
_LIST = "list of tensors"


class GradientAlignment:
    """L-BFGS or Adam between two boundaries.

    Args:
        prepared: The alignment's rows, none of them held out.
        settings: Section ``[iterate]``.
        saved: State of an interrupted alignment with the same arguments.
        theta: Where to start, shape (P,); the saved network if absent.

    Attributes:
        theta: Parameters of the network, shape (P,), float64, equal on all ranks.
        loss: ||f||^2 there, in float64.
        steps: Optimiser steps done.

    Raises:
        AccuracyError: If the residual is not finite at the start.

    Collective: construction, and every step.
    """

    def __init__(
        self,
        prepared: PreparedProblem,
        settings: IterateSettings,
        saved: SavedState | None = None,
        theta: Array | None = None,
    ) -> None:
        self._prepared = prepared
        self._settings = settings
        self._dtype = torch.float32 if settings.precision == "float32" else torch.float64
        self._steps_at_once = _ADAM_STEPS if settings.optimizer == "adam" else _LBFGS_STEPS
        self._is_fixed: NDArray[np.bool_] | None = None
        if prepared.free is not None:
            self._is_fixed = np.ones(prepared.model.layout.size, dtype=bool)
            self._is_fixed[prepared.free.numpy()] = False
        self.steps = 0
        is_resumed = theta is None
        if theta is None:
            assert saved is not None
            theta, self.steps = saved.whole("gradient.theta"), saved.values["gradient"]["steps"]
        self.theta: Array = theta
        self._model = prepared.model.in_precision(self._dtype)
        self._rows = prepared.fit.in_precision(self._dtype)
        # A copy: the optimiser writes into it.
        self._flat = torch.tensor(theta, device=prepared.model.device, dtype=self._dtype, requires_grad=True)
        self._optimiser = self._make_optimiser()
        if is_resumed and saved is not None and prepared.comm.rank == 0:
            self._optimiser.state[self._flat] = _optimiser_state(saved, self._flat.detach())
        self.loss = self._exact_loss()
        if not np.isfinite(self.loss):
            raise AccuracyError(
                "the residual of the alignment is NaN or Inf at its start", on_every_rank=True
            )

    def _make_optimiser(self) -> torch.optim.Optimizer:
        s = self._settings
        if s.optimizer == "adam":
            return torch.optim.Adam([self._flat], lr=s.learning_rate)
        return torch.optim.LBFGS(
            [self._flat],
            max_eval=10 * _LBFGS_STEPS,
            history_size=s.history,
            tolerance_grad=_TOLERANCE_GRADIENT,
            tolerance_change=_TOLERANCE_CHANGE,
            line_search_fn="strong_wolfe",
        )

    def snapshot(self) -> Snapshot:
        """What an interrupted alignment goes on from; the optimiser's arrays lie on the first rank alone.

        Returns:
            The snapshot.

        Collective: one broadcast of names and shapes.
        """
        comm = self._prepared.comm
        arrays, values = _as_arrays(self._optimiser.state[self._flat])
        scalars = {name: array for name, array in arrays.items() if array.ndim == 0}
        shapes = {name: array.shape for name, array in arrays.items() if array.ndim > 0}
        shapes, scalars, values = comm.bcast((shapes, scalars, values), root=0)
        cuts = {
            name: Cut(arrays[name], 0, n) if comm.rank == 0 else Cut(np.empty((*shape, 0)), n, n)
            for name, (*shape, n) in shapes.items()
        }
        return Snapshot(
            {"gradient.theta": self.theta, **scalars, **cuts},
            {"gradient": {"steps": self.steps, "state": values}},
        )

    def carried(self) -> Snapshot:
        """Nothing: every round's optimiser begins anew, as published."""
        return Snapshot()

    def step(self) -> bool:
        """Take some optimiser steps.

        Returns:
            Whether the loss fell; a step of L-BFGS that does not lower it is undone, and the last.

        Raises:
            AccuracyError: If the loss becomes NaN or Inf.

        Collective: per evaluation one broadcast and one reduction of P numbers.
        """
        comm = self._prepared.comm
        before = self.theta
        n_steps = min(self._steps_at_once, self._settings.steps - self.steps)
        if comm.rank == 0:
            self._lead(n_steps)
        else:
            self._serve()
        moved: Array = comm.bcast(self._flat.detach().double().cpu().numpy(), root=0)
        # What is not free keeps its digits whatever the precision.
        self.theta = moved if self._is_fixed is None else np.where(self._is_fixed, before, moved)
        self.steps += n_steps
        loss = self._exact_loss()
        if not np.isfinite(loss):
            raise AccuracyError(
                f"the alignment diverged after {self.steps} steps: lower iterate.learning_rate, or use "
                'iterate.optimizer = "tangent"',
                on_every_rank=True,
            )
        if self._settings.optimizer == "lbfgs" and not loss < self.loss:
            self.theta = before
            return False
        self.loss = loss
        return True

    def _lead(self, n_steps: int) -> None:
        """Run the optimiser on the first rank; the others serve until they are told that it is done."""
        if self._settings.optimizer == "lbfgs":
            self._optimiser.param_groups[0]["max_iter"] = n_steps
            self._optimiser.step(self._closure)
        else:
            for _ in range(n_steps):
                self._optimiser.step(self._closure)
        # Not after an error: the others have raised the same one, or are about to be ended.
        self._prepared.comm.bcast(_DONE, root=0)

    def _closure(self) -> float:
        """Loss and gradient over all ranks, as torch's optimisers want them."""
        theta = self._flat.detach().cpu().numpy()
        self._prepared.comm.bcast(theta, root=0)
        loss, gradient = self._sums(theta)
        self._flat.grad = torch.from_numpy(gradient).to(self._flat)
        return loss

    def _serve(self) -> None:
        while (theta := self._prepared.comm.bcast(None, root=0)) is not _DONE:
            self._sums(theta)

    def _sums(self, theta: NDArray[Any]) -> tuple[float, Array]:
        """Loss and gradient of this rank's rows, added up on the first rank."""
        comm = self._prepared.comm
        own = agree(comm, lambda: self._own_rows(torch.from_numpy(theta).to(self._flat)))
        total = np.empty_like(own)
        comm.Reduce(own, total, root=0)
        return float(total[0]), total[1:]

    def _own_rows(self, theta: Tensor) -> Array:
        """This rank's loss and gradient with respect to the free parameters, shape (1 + P,), float64."""
        out = torch.zeros(1 + len(theta), dtype=torch.float64, device=theta.device)
        for segment in self._rows.segments:
            size = points_at_once(segment.probe.numbers_per_point)
            for lo in range(0, segment.n_points, size):
                tile = slice(lo, lo + size)

                def residual(flat: Tensor, segment: Any = segment, tile: slice = tile) -> Tensor:
                    rows: Tensor = segment.residual(self._model.field(flat), tile)
                    return rows

                rows, pull = pull_back(residual, theta)
                out[0] += rows.double().square().sum()
                out[1:] += pull(2 * rows).double()
        own = out.cpu().numpy()
        if self._is_fixed is not None:
            own[1:][self._is_fixed] = 0.0
        return own

    def _exact_loss(self) -> float:
        """||f||^2 in float64, equal on all ranks."""
        prepared = self._prepared
        field = prepared.model.field(torch.from_numpy(self.theta).to(prepared.model.device))
        own = agree(prepared.comm, lambda: float(prepared.fit.residual(field).square().sum()))
        return float(sum(prepared.comm.allgather(own)))


def _as_arrays(state: dict[str, Any]) -> tuple[dict[str, Array], dict[str, Any]]:
    """A torch optimiser's state as arrays, and as JSON what is no tensor."""
    arrays: dict[str, Array] = {}
    values: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            arrays[f"optimiser.{name}"] = value.detach().cpu().double().numpy().copy()
        elif name == _SCRATCH or value is None:
            continue
        elif isinstance(value, list):
            values[name] = _LIST
            if value:
                arrays[f"optimiser.{name}"] = torch.stack([v.detach().cpu() for v in value]).double().numpy()
        else:
            values[name] = value
    return arrays, values


def _optimiser_state(saved: SavedState, like: Tensor) -> dict[str, Any]:
    """The state of a torch optimiser again."""
    state: dict[str, Any] = {}
    for name, value in saved.values["gradient"]["state"].items():
        state[name] = [] if value == _LIST else value
    for stored in saved.names:
        if stored.startswith("optimiser."):
            name = stored.removeprefix("optimiser.")
            tensor = torch.from_numpy(saved.whole(stored)).to(like)
            state[name] = list(tensor) if name in state else tensor
    return state
