"""Arms of ``accuracy`` that are not ours; each works alone in a process, with as many threads as it is given.

All of them get the whole of the rows in float64, none held out; the clock runs from the problem in memory on.
"""

# Legend: N rows, P parameters, f row-scaled residual, J = df/dtheta at theta0.

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import descent, gauss_newton
from benchmarks.arms import Measurement, peer
from benchmarks.cases import Case, Linearised, explicit_jacobian, linearise, load
from benchmarks.natural_gradient import natural_gradient
from benchmarks.published_recipe import published_recipe
from benchmarks.track import Track, identity
from lsr_hpc.settings import HeldOutSettings

__all__ = ["all_rows", "first_order", "last_layer", "linear_solve", "natural", "nncg", "recipe", "start"]

# Largest J, in bytes, and N^2 P of the least squares that a dense arm is started for.
_LARGEST_MATRIX = 8 * 2**30
_LARGEST_DENSE = 2e11
# Published rank of NNCG (arXiv:2402.01868; damping there 1e-5 to 1e-1, by problem). DeepXDE allows 1000
# conjugate gradients a step; far from a minimum they do not converge, and not one step would end in time.
_NYSTROM_RANK, _NYSTROM_ITERATIONS = 60, 100
# Sketches that it may fail on.
_SKETCHES = 5


def all_rows(case: Case, dtype: torch.dtype = torch.float64) -> Linearised:
    """The problem of a case with none of its rows held out.

    Args:
        case: The case.
        dtype: Arithmetic.

    Returns:
        The problem as plain functions.
    """
    problem, settings = load(case)
    return linearise(problem, replace(settings, held_out=HeldOutSettings(fraction=0.0)), dtype)


def _flat(linear: Linearised) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """theta0 as a vector, and the residual as a function of such."""
    return (
        linear.layout.flatten(linear.theta0),
        lambda theta: linear.residual(linear.layout.unflatten(theta)),
    )


def start(case: Case, budget_s: float) -> Measurement:
    """Arm: nothing is done.

    Args:
        case: The case.
        budget_s: Not used.

    Returns:
        The measurement, with the digests of what every arm is given.
    """
    linear = all_rows(case)
    track = Track(budget_s)
    track.tell(_flat(linear)[0], seconds=0.0)
    return track.judged(linear, **identity(linear.problem))


def first_order(case: Case, budget_s: float, method: str) -> Measurement:
    """Arm: an optimiser that sees residuals and gradients, or J by products.

    Args:
        case: The case.
        budget_s: Seconds.
        method: ``"adam"``, ``"lbfgs"`` or ``"gn_cg"``.

    Returns:
        The measurement.
    """
    linear = all_rows(case)
    theta0, residual = _flat(linear)
    track = Track(budget_s)
    if method == "gn_cg":
        products = gauss_newton.gn_cg(residual, theta0, track)
        counts = {"j_columns": products.j_columns, "jt_columns": products.jt_columns}
    else:
        run = {"adam": descent.adam, "lbfgs": descent.lbfgs}[method]
        counts = {"jt_columns": run(residual, theta0, track)}
    return track.judged(linear, **counts, **identity(linear.problem))


def natural(
    case: Case, budget_s: float, damping: float, momentum: float = 0.0, step_size: float | None = None
) -> Measurement:
    """Arm: ENGD-W, or SPRING where there is momentum.

    Args:
        case: The case.
        budget_s: Seconds.
        damping: lam.
        momentum: mu.
        step_size: eta; None searches it in every step.

    Returns:
        The measurement.
    """
    linear = all_rows(case)
    theta0, residual = _flat(linear)
    track = Track(budget_s)
    counts = natural_gradient(
        linear, residual, theta0, track, damping=damping, momentum=momentum, step_size=step_size
    )
    return track.judged(linear, **counts, **identity(linear.problem))


def last_layer(case: Case, budget_s: float) -> Measurement:
    """Arm: least squares, or Gauss-Newton, in the last layer.

    Args:
        case: The case.
        budget_s: Seconds.

    Returns:
        The measurement.
    """
    linear = all_rows(case)
    track = Track(budget_s)
    steps = gauss_newton.last_layer(linear, _flat(linear)[0], track)
    columns = (steps + 1) * linear.n_rows
    return track.judged(linear, jt_columns=columns, **identity(linear.problem))


def linear_solve(case: Case, budget_s: float, method: str) -> Measurement:
    """Arm: the linearised problem over all parameters with J as a matrix, in one shot.

    scipy's LSMR keeps its iterates to itself, so it is started afresh for 10, 40, 160, ... iterations, and
    for as many as fit into the budget; each run is timed by itself, the making of J included.

    Args:
        case: The case.
        budget_s: Seconds.
        method: ``"lsmr"``, ``"lsmr_scaled"`` (columns of J scaled to unit length), or ``"dense"`` (LAPACK's
            gelsd).

    Returns:
        The measurement.
    """
    linear = all_rows(case)
    n, p = linear.n_rows, linear.n_parameters
    is_dense = method == "dense"
    if 8 * n * p > _LARGEST_MATRIX or (is_dense and min(n, p) ** 2 * max(n, p) > _LARGEST_DENSE):
        return {"skipped": f"left out: J is {n} x {p}, {8 * n * p / 2**30:.1f} GiB"}
    theta0, residual = _flat(linear)
    track = Track(budget_s)
    with torch.no_grad():
        f = residual(theta0)
        j = explicit_jacobian(linear)
        if is_dense:
            rcond = torch.finfo(j.dtype).eps * max(n, p)
            solved = torch.linalg.lstsq(j, -f[:, None], driver="gelsd", rcond=rcond)
            track.tell(theta0, solved.solution[:, 0], rank=int(solved.rank))
            return track.judged(linear, jt_columns=n, **identity(linear.problem))
        iterations = _lsmr(j, f, theta0, track, is_scaled=method == "lsmr_scaled")
    counts = {"j_columns": iterations, "jt_columns": n + iterations}
    return track.judged(linear, **counts, **identity(linear.problem))


def _lsmr(j: Tensor, f: Tensor, theta0: Tensor, track: Track, *, is_scaled: bool) -> int:
    """Tell of LSMR's iterates as long as there is time; returns the iterations of the last one in time."""
    from scipy.sparse.linalg import LinearOperator, lsmr

    norms = j.norm(dim=0) if is_scaled else torch.ones(j.shape[1], dtype=j.dtype)
    scale = 1.0 / torch.where(norms > 0, norms, 1.0)

    def tensor(x: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x))

    operator = LinearOperator(
        tuple(j.shape),
        dtype=np.float64,
        matvec=lambda x: torch.mv(j, scale * tensor(x)).numpy(),
        rmatvec=lambda y: (scale * torch.mv(j.T, tensor(y))).numpy(),
    )
    made = track.seconds
    iterations, done = 10, 0
    while True:
        began = track.seconds
        x, _, made_iterations = lsmr(operator, -f.numpy(), atol=0, btol=0, conlim=0, maxiter=iterations)[:3]
        own = track.seconds - began
        is_in_time = track.tell(theta0, scale * tensor(x), seconds=made + own, iterations=made_iterations)
        if not is_in_time or made_iterations < iterations:
            # Late, or converged to rounding.
            return done if done and not is_in_time else made_iterations
        done = iterations
        # 2 % less, so that the last run ends in time.
        affordable = int(0.98 * (track.budget_s - made) / (own / iterations))
        if affordable < 1.2 * iterations:
            return done
        iterations = min(4 * iterations, affordable)


def recipe(case: Case, budget_s: float, dtype: str, seed: int, rank: int | None = None) -> Measurement:
    """Arm: LSR as published.

    Args:
        case: The case.
        budget_s: Seconds.
        dtype: ``"float32"``, as published, or ``"float64"``.
        seed: Of its random test matrix.
        rank: Number of directions; None takes the job's.

    Returns:
        The measurement.
    """
    rank = rank or load(case)[1].subspace.rank
    linear = all_rows(case)
    own = all_rows(case, getattr(torch, dtype))
    track = Track(budget_s)
    delta = published_recipe(own, rank=rank, seed=seed)
    track.tell(_flat(linear)[0], delta, rank=rank)
    counts = {"j_columns": 2 * rank + 10, "jt_columns": rank + 10}
    return track.judged(linear, **counts, **identity(linear.problem))


def nncg(case: Case, budget_s: float, damping: float) -> Measurement:
    """Arm: Newton-CG with a Nystrom preconditioner, DeepXDE's own optimiser on our residual.

    Args:
        case: The case.
        budget_s: Seconds.
        damping: Of Hessian and preconditioner.

    Returns:
        The measurement.

    Raises:
        RuntimeError: If it fails in another way than on its preconditioner.
    """
    os.environ["DDE_BACKEND"] = "pytorch"
    optimiser_module = peer("deepxde", "deepxde").optimizers.pytorch.nncg
    # It makes its vectors in the default precision.
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    linear = all_rows(case)
    theta0, residual = _flat(linear)
    track = Track(budget_s)
    theta = theta0.clone().requires_grad_()
    optimiser = optimiser_module.NNCG(
        [theta],
        rank=_NYSTROM_RANK,
        mu=damping,
        chunk_size=_NYSTROM_RANK,
        cg_max_iters=_NYSTROM_ITERATIONS,
        line_search_fn="armijo",
    )
    steps = failures = 0
    while track.tell(theta, iterations=steps) and bool(torch.isfinite(theta).all()):
        try:
            optimiser.step(lambda: residual(theta).square().sum())
        except RuntimeError as error:
            if "cholesky" not in str(error):
                raise
            # It shifts the sketch of an indefinite Hessian to the edge of being definite; another may do.
            failures += 1
            if failures == _SKETCHES:
                break
        else:
            steps += 1
    if failures and not steps:
        return {
            "skipped": f"no step in {track.seconds:.0f} s: the Hessian is indefinite at this start, and its "
            f"sketch, as DeepXDE shifts it, had no Cholesky factor ({failures} tried)"
        }
    return track.judged(linear, **identity(linear.problem))
