"""The real body of a step on a small nonlinear problem, where the last rank goes wrong in a chosen phase."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lsr_hpc import Evaluation, Problem, ResidualBlock
from lsr_hpc.models.mlp import MLP
from lsr_hpc.phases import Phases
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.record import read_record, stored_job
from lsr_hpc.pipeline.spec import StepSpec
from lsr_hpc.pipeline.step import run_step

# Phases that the step is in, the innermost last.
_PHASES: list[str] = []
_NAN_IN: list[str] = []


def build(fault: str = "", kind: str = "") -> Problem:
    """u'' + u^3 = f on [0, 1] with u = sin(3 x); ``fault`` and ``kind`` are read by :func:`step`."""
    torch.manual_seed(0)
    x = torch.linspace(0, 1, 121, dtype=torch.float64)[:, None]
    model = MLP([1, 12, 12, 1]).double()

    def equation(u, x):
        values = u(x)
        if _PHASES and _PHASES[-1] in _NAN_IN:
            values = values * float("nan")
        return values - torch.sin(3 * x) + 0.1 * values**3

    block = ResidualBlock(name="equation", residual=equation, points=x)
    ends = ResidualBlock(name="ends", residual=lambda u, x: u(x) - torch.sin(3 * x), points=x[[0, -1]])
    return Problem(
        name="faulty",
        model=model,
        blocks=[block, ends],
        evaluation=Evaluation(inputs=(x,), reference=torch.sin(3 * x)),
    )


def step(comm, spec: StepSpec, stop):
    """:func:`run_step`, but for what is to go wrong on the last rank, of which a file keeps the moment."""
    layout = RunLayout(Path(spec.run_directory))
    args = stored_job(layout, read_record(layout), []).problem.args
    if args["fault"] and comm.rank == comm.size - 1:
        _go_wrong(args["fault"], args["kind"], layout.root.with_name("wrong"))
    return run_step(comm, spec, stop)


def _go_wrong(phase: str, kind: str, mark: Path) -> None:
    plain = Phases.__call__

    @contextmanager
    def watched(self: Phases, name: str) -> Iterator[None]:
        with plain(self, name):
            _PHASES.append(name)
            if name == phase:
                mark.touch()
                if kind != "nan":
                    _fail(kind)
            try:
                yield
            finally:
                _PHASES.pop()

    Phases.__call__ = watched  # type: ignore[method-assign]
    if kind == "nan":
        _NAN_IN.append(phase)


def _fail(kind: str) -> None:
    if kind == "raise":
        raise ZeroDivisionError("deliberate")
    if kind == "exit":
        sys.exit(1)
    os._exit(1)
