"""MPI program behind the tests: refine a small problem and write what came out, one file per case.

usage: program.py OUTPUT_DIRECTORY CASE [CASE ...]
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch
from mpi4py import MPI

from lsr_hpc import (
    ComputeSettings,
    Evaluation,
    HeldOutSettings,
    Problem,
    RefineSettings,
    ResidualBlock,
    SolverSettings,
    SubspaceSettings,
)
from lsr_hpc.commands.refine import _end_all_ranks
from lsr_hpc.derivatives import along, second_along
from lsr_hpc.models import MLP
from lsr_hpc.oneshot import refine

comm = MPI.COMM_WORLD
torch.set_num_threads(1)


def poisson(fail_on: int | None = None, nan_at: int | None = None, exit_on: int | None = None) -> Problem:
    """u'' = -sin(x) with boundary values: three blocks of very different cost."""
    torch.manual_seed(3)
    model = MLP([1, 16, 16, 1])
    x = torch.linspace(0, torch.pi, 120, dtype=torch.float64)[:, None]
    forcing = -torch.sin(x)
    if nan_at is not None:
        forcing[nan_at] = float("nan")
    calls = [0]

    def equation(u, x, f):
        calls[0] += 1
        if exit_on == comm.rank:
            sys.exit(0)
        if fail_on == comm.rank and calls[0] > 12:
            raise ZeroDivisionError("deliberate")
        return second_along(u, x) - f

    return Problem(
        name="poisson",
        model=model,
        blocks=[
            ResidualBlock(name="equation", residual=equation, points=x, data=(forcing,)),
            ResidualBlock(name="boundary", residual=lambda u, x: u(x), points=x[[0, -1]], weight=10.0),
            ResidualBlock(
                name="slope", residual=lambda u, x: along(u, x) - torch.cos(x), points=x[::4], weight=0.1
            ),
        ],
        evaluation=Evaluation(inputs=(x,), reference=torch.sin(x)),
    )


def riccati(logarithm: bool = False) -> Problem:
    """u' + u^2 = 1 with u(0) = 0; or log(u + 1/2) = -1 - x, undefined on some ranks after a linear step."""
    torch.manual_seed(2)
    x = torch.linspace(0, 2, 150, dtype=torch.float64)[:, None]

    def equation(u, x):
        return torch.log(u(x) + 0.5) + 1 + x if logarithm else along(u, x) + u(x) ** 2 - 1

    return Problem(
        name="riccati",
        model=MLP([1, 10, 10, 1]),
        blocks=[ResidualBlock(name="equation", residual=equation, points=x)]
        + ([] if logarithm else [ResidualBlock(name="start", residual=lambda u, x: u(x), points=x[:1])]),
        evaluation=Evaluation(inputs=(x,), reference=torch.exp(-1 - x) - 0.5 if logarithm else torch.tanh(x)),
    )


def root(dead: bool = False) -> Problem:
    """A residual whose parameter derivative is infinite at a point (root of zero), or zero everywhere."""
    torch.manual_seed(3)
    x = torch.linspace(0, 1, 60, dtype=torch.float64)[:, None]

    def residual(u, x):
        return u(x) * 0.0 if dead else torch.sqrt((u(x) - u(0 * x)).abs()) - 1.0

    model = MLP([1, 8, 1])
    return Problem(name="root", model=model, blocks=[ResidualBlock(name="root", residual=residual, points=x)])


def noise() -> Problem:
    """Pure noise around what the network already gives: nothing can be gained, and rank 0 must win."""
    torch.manual_seed(3)
    model = MLP([1, 8, 8, 1]).double()
    x = torch.linspace(-1, 1, 400, dtype=torch.float64)[:, None]
    with torch.no_grad():
        y = model(x) + 0.1 * torch.randn(
            400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
    block = ResidualBlock(name="fit", residual=lambda u, x, y: u(x) - y, points=x, data=(y,))
    return Problem(name="noise", model=model, blocks=[block], evaluation=Evaluation(inputs=(x,), reference=y))


def validated() -> Problem:
    """The user's own validation rows choose the rank."""
    problem = poisson()
    x = torch.linspace(0.01, 3.1, 77, dtype=torch.float64)[:, None]
    block = ResidualBlock(name="truth", residual=lambda u, x: u(x) - torch.sin(x), points=x)
    return replace(problem, validation=[block])


def wide() -> Problem:
    """Four points of 60 outputs: on five ranks one of them owns no row."""
    torch.manual_seed(3)
    model = MLP([2, 12, 60])
    x = torch.tensor([[0.1, 0.2], [0.7, -0.3], [-0.5, 0.4], [0.3, 0.9]], dtype=torch.float64)
    target = torch.sin(torch.arange(60.0, dtype=torch.float64)) * x.sum(dim=1, keepdim=True)
    return Problem(
        name="wide",
        model=model,
        blocks=[ResidualBlock(name="misfit", residual=lambda u, x, y: u(x) - y, points=x, data=(target,))],
        evaluation=Evaluation(inputs=(x,), reference=target),
    )


class Scaled(torch.nn.Module):
    """A network with a factor, its first layer frozen: 4 m + 1 parameters for m outputs."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.network = MLP([2, 3, outputs])
        self.network.layers[0].requires_grad_(False)
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.factor * self.network(x)


def nearly_square() -> Problem:
    """One row fewer than parameters; the row of zeros of an empty rank must not make J tall."""
    torch.manual_seed(3)
    return replace(wide(), model=Scaled(60))


CASES = {
    "krylov": (poisson, SubspaceSettings(rank=40), {}),
    "krylov-torch": (poisson, SubspaceSettings(rank=40), {}),
    "krylov-float32": (poisson, SubspaceSettings(rank=40, precision="float32"), {}),
    "empty-rank-krylov-torch": (wide, SubspaceSettings(rank=40), {}),
    "krylov-narrow": (poisson, SubspaceSettings(rank=20, width=1), {}),
    "svd+krylov": (poisson, SubspaceSettings(rank=30, basis="svd+krylov"), {}),
    "empty-rank-krylov": (wide, SubspaceSettings(rank=40), {}),
    "svd": (poisson, SubspaceSettings(rank=40, basis="svd"), {}),
    "svd-trlanczos": (poisson, SubspaceSettings(rank=12, basis="svd", svd="trlanczos", iterations=200), {}),
    "svd-cross": (wide, SubspaceSettings(rank=8, basis="svd", svd="cross", iterations=200), {}),
    "svd-cholesky": (
        poisson,
        SubspaceSettings(rank=5, basis="svd", oversampling=1, orthogonalization="cholesky_qr2"),
        {},
    ),
    "randomized": (poisson, SubspaceSettings(rank=40, basis="randomized"), {}),
    "dual": (poisson, SubspaceSettings(rank=40, basis="dual"), {}),
    # All directions: singular values of `wide` are nearly 60 times the same, so that fewer are no one's own.
    "empty-rank-dual": (wide, SubspaceSettings(rank=240, basis="dual"), {}),
    "random": (poisson, SubspaceSettings(rank=40, basis="random"), {}),
    "lsqr": (poisson, SubspaceSettings(rank=20), {"type": "lsqr"}),
    "cgls": (poisson, SubspaceSettings(rank=20), {"type": "cgls"}),
    "empty-rank-svd": (wide, SubspaceSettings(rank=40, basis="svd"), {}),
    "empty-rank-randomized": (wide, SubspaceSettings(rank=40, basis="randomized"), {}),
    "empty-rank-lsqr": (wide, SubspaceSettings(rank=30), {"type": "lsqr"}),
    "empty-rank-nearly-square": (nearly_square, SubspaceSettings(rank=40, basis="svd"), {}),
    "empty-rank-nearly-square-full": (
        nearly_square,
        SubspaceSettings(),
        {"type": "lsqr", "space": "full", "max_iterations": 40},
    ),
    "resolve": (riccati, SubspaceSettings(rank=12, basis="svd", iterations=4), {}),
    "resolve-logarithm": (
        lambda: riccati(logarithm=True),
        SubspaceSettings(rank=8, basis="svd", iterations=4),
        {"resolve_steps": 30},
    ),
    "own-validation": (validated, SubspaceSettings(rank=40), {}),
    "noise": (noise, SubspaceSettings(rank=20), {}),
    "infinite-derivative": (root, SubspaceSettings(rank=5), {}),
    "dead": (lambda: root(dead=True), SubspaceSettings(rank=5), {}),
    "one-rank-raises": (lambda: poisson(fail_on=comm.size - 1), SubspaceSettings(rank=40), {}),
    "exit-called": (lambda: poisson(exit_on=comm.size - 1), SubspaceSettings(rank=40), {}),
    "more-ranks-than-parameters": (
        lambda: replace(poisson(), model=torch.nn.Linear(1, 1)),
        SubspaceSettings(rank=1),
        {},
    ),
    "nan-in-data": (lambda: poisson(nan_at=100), SubspaceSettings(rank=40), {}),
}


def run(case: str, output: str) -> None:
    build, subspace, solver = CASES[case]
    settings = RefineSettings(
        subspace=subspace,
        solver=SolverSettings(**solver),
        held_out=HeldOutSettings(fraction=0.2),
        # A factored Jacobian calls the residual too rarely to fail in a chosen phase.
        compute=ComputeSettings(
            jacobian="matrix_free" if case == "one-rank-raises" else "auto",
            panels="torch" if case.endswith("torch") else "auto",
        ),
    )
    result = refine(build(), comm, settings=settings)
    deltas = comm.allgather(result.delta)
    rows = comm.gather(sum(1 for d in deltas if not np.array_equal(d, deltas[0])))
    if comm.rank == 0:
        assert rows is not None
        from lsr_hpc import RefinedPredictor

        problem = build()
        predictor = RefinedPredictor(problem.model, torch.from_numpy(result.delta))
        field = predictor(problem.evaluation.inputs[0]).numpy()
        np.savez(
            output,
            field=field,
            delta=result.delta,
            unequal_ranks=sum(rows),
            rank=result.rank,
            train=[e["train"] for e in result.scan],
            resolve_steps=result.checks["resolve_steps"],
            error=[result.error_before, result.error_after],
            residual=[result.residual_before, result.residual_linear, result.residual_true],
        )


if __name__ == "__main__":
    try:
        for name in sys.argv[2:]:
            run(name, f"{sys.argv[1]}/{name}.npz")
    except Exception as error:
        sys.exit(_end_all_ranks(comm, error, debug=False))
