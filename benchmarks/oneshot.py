"""One-shot refinement: ours against the published recipe, LSMR on the full Jacobian and dense least squares.

Every arm gets the same trained network, fitted rows and held-out rows, and the same number of cores: ours as
MPI ranks of one thread, the others as threads of one process; where MPI is not installed, ours is one process
with as many threads, on a GPU if there is one. ``seconds`` is everything from the problem to the correction
delta: for ours also its checks, for the others not the judging of delta. For ours ``predicted s`` is what the
cost model says of its products at the dgemm rate of the moment, ``products s`` what they took, and ``dgemm
bound s`` what a dgemm of their flops would take.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.arms import Arm, Measurement, run_arm, tag
from benchmarks.cases import Case, Linearised, explicit_jacobian, linearise, load, score
from benchmarks.published_recipe import published_recipe
from benchmarks.record import Column, Record, ratio
from lsr_hpc.device import choose_device
from lsr_hpc.jacobian.choice import dgemm_rate
from lsr_hpc.jacobian.examine import NotFactored
from lsr_hpc.oneshot import refine_prepared
from lsr_hpc.petsc import start
from lsr_hpc.phases import Phases
from lsr_hpc.prepare import PreparedProblem, prepare
from lsr_hpc.rows import LocalRows, Segment
from lsr_hpc.world import has_mpi, needs_petsc, whole_world

__all__ = ["COLUMNS", "draw", "run"]

COLUMNS = (
    Column("seconds", "s"),
    Column("error", "error"),
    Column("held_out", "held-out"),
    Column("rank", "rank", "d"),
    Column("iterations", "iterations", "d"),
    Column("error_at_our_seconds", "error at our s"),
    Column("seconds_to_recipe_error", "s to recipe's error"),
    Column("products_s", "products s"),
    Column("predicted_s", "predicted s"),
    Column("dgemm_bound_s", "dgemm bound s"),
    Column("peak_rss_bytes", "peak MiB", ".0f", 2**-20),
    Column("gemm_gflops", "dgemm GF/s", ".0f"),
    Column("foreign_cores", "foreign cores", ".1f"),
)

_FIT, _ANTI = "jobs/function_fit.toml", "jobs/antiderivative.toml"
# case -> (job, preset, overrides, rank of the recipe; None takes the job's)
_CASES: dict[str, dict[str, tuple[str, str | None, list[str], int | None]]] = {
    "tiny": {
        "function fit": (_FIT, "small", ["problem.args.points=200", "subspace.rank=30"], None),
    },
    "small": {
        "function fit": (_FIT, "small", ["problem.args.points=2000", "subspace.rank=150"], None),
        # 40 is the published rank of this problem, chosen by its authors on 30 functions.
        "antiderivative": (_ANTI, "small", [], 40),
    },
    "full": {
        "function fit": (_FIT, None, [], None),
        "function fit small": (_FIT, "small", [], None),
        "antiderivative": (_ANTI, None, [], 40),
    },
}
# The others cannot use the held-out rows after they have judged, so ours does not either.
_SAME_ROWS = ["solver.refit=false"]
# LSMR and dense least squares get J as a matrix where it is no larger than this.
_LARGEST_MATRIX = 8 * 2**30
# Largest N^2 P for which dense least squares ends in minutes.
_LARGEST_DENSE = 1e11
# An error within this factor of the recipe's counts as reached.
_REACHED = 1.1


def run(preset: str, overrides: list[str], cores: int) -> Record:
    """Run all arms.

    Args:
        preset: ``"small"`` or ``"full"``; ``"tiny"`` is for the tests.
        overrides: ``section.key=value`` settings for every case.
        cores: Cores of every arm.

    Returns:
        The record.
    """
    arms: list[Measurement] = []
    ratios: dict[str, float] = {}
    for name, (job, job_preset, settings, recipe_rank) in _CASES[preset].items():
        case: Case = {"job": job, "preset": job_preset, "overrides": [*_SAME_ROWS, *settings, *overrides]}
        found = _run_case(case, recipe_rank, cores)
        arms += tag(found, case=name)
        ratios |= {f"{name}, {key}": value for key, value in _ratios(found).items()}
    return Record(name="oneshot", preset=preset, arms=arms, ratios=ratios)


def _run_case(case: Case, recipe_rank: int | None, cores: int) -> list[Measurement]:
    def alone(name: str, function: str, **arguments: Any) -> list[Measurement]:
        words = {"case": case, **arguments}
        return run_arm(Arm(name=name, function=f"oneshot:{function}", arguments=words, threads=cores))

    def our_arm(name: str, **arguments: Any) -> Measurement:
        words = {"case": case, **arguments}
        ranks, threads = (cores, 1) if has_mpi() else (0, cores)
        return run_arm(
            Arm(name=name, function="oneshot:ours", arguments=words, mpi_ranks=ranks, threads=threads)
        )[0]

    ours = our_arm("ours")
    ours32 = our_arm("ours_drawn_in_float32", precision="float32")
    [recipe] = alone("published_recipe", "recipe", dtype="float64", rank=recipe_rank)
    [recipe32] = alone("published_recipe_float32", "recipe", dtype="float32", rank=recipe_rank)
    budget_s = ours["seconds"] or recipe["seconds"] or 0.0
    [lsmr] = alone("lsmr", "lsmr", budget_s=budget_s, is_scaled=False)
    [lsmr_scaled] = alone("lsmr_scaled", "lsmr", budget_s=budget_s, is_scaled=True)
    [dense] = alone("dense_lstsq", "dense_lstsq")
    found = [ours, ours32, recipe, recipe32, lsmr, lsmr_scaled, dense]
    for arm in found:
        history = arm.get("history") or [arm]
        arm["seconds_to_recipe_error"] = _first_to_reach(history, recipe["error"])
        arm["error_at_our_seconds"] = _best_within(history, ours["seconds"])
    return found


def _first_to_reach(history: list[Measurement], error: float | None) -> float | None:
    """Seconds of the first point that reaches an error."""
    if error is None:
        return None
    reached = [p["seconds"] for p in history if p.get("error") is not None and p["error"] <= _REACHED * error]
    return min(reached, default=None)


def _best_within(history: list[Measurement], seconds: float | None) -> float | None:
    """Error of the point with the best held-out residual among those that are ready in time."""
    ready = [p for p in history if p.get("seconds") and seconds and p["seconds"] <= 1.02 * seconds]
    return _best(ready)["error"] if ready else None


def _best(history: list[Measurement]) -> Measurement:
    """The point a user would take: the smallest held-out residual, or the last one without held-out rows."""
    judged = [p for p in history if p.get("held_out") is not None]
    return min(judged, key=lambda p: float(p["held_out"])) if judged else history[-1]


def _ratios(found: list[Measurement]) -> dict[str, float]:
    """Seconds and errors of every arm over ours, and seconds to the error of the recipe."""
    ours = found[0]
    ratios: dict[str, float | None] = {}
    for arm in found[1:]:
        ratios[f"seconds: {arm['arm']}/ours"] = ratio(arm, ours)
        ratios[f"error: {arm['arm']}/ours"] = ratio(arm, ours, "error")
        if arm["arm"].startswith("lsmr"):
            at_our_seconds = {"error": arm["error_at_our_seconds"]}
            ratios[f"error at our seconds: {arm['arm']}/ours"] = ratio(at_our_seconds, ours, "error")
    recipe = next(arm for arm in found if arm["arm"] == "published_recipe")
    ratios["seconds to the recipe's error: published_recipe/ours"] = ratio(
        recipe, ours, "seconds_to_recipe_error"
    )
    ratios["peak memory: published_recipe/ours"] = ratio(recipe, ours, "peak_rss_bytes")
    ratios["seconds of ours over the dgemm bound of its products"] = ratio(
        ours, {"seconds": ours.get("dgemm_bound_s")}
    )
    ratios["products of ours: measured over predicted"] = ratio(
        {"seconds": ours.get("products_s")}, {"seconds": ours.get("predicted_s")}
    )
    return {name: value for name, value in ratios.items() if value is not None}


def ours(case: Case, precision: str = "float64") -> Measurement:
    """Arm: the product's ``refine`` on all MPI ranks.

    Args:
        case: The case.
        precision: Of the products that draw directions.

    Returns:
        The measurement.

    Collective: all ranks of COMM_WORLD.
    """
    comm = whole_world()
    problem, settings = load(case)
    settings = replace(settings, subspace=replace(settings.subspace, precision=precision))
    if needs_petsc(settings, comm):
        start()
    # A dgemm of the rank, on its device, for what follows.
    rate = min(comm.allgather(dgemm_rate(choose_device(comm, settings.compute.device))))
    phases = Phases()
    with phases("prepare"):
        prepared = prepare(problem, comm, settings)
    result = refine_prepared(prepared, phases).result
    used = next(entry for entry in result.scan if entry["rank"] == result.rank)
    return {
        "seconds": result.seconds["total"],
        "products_s": result.seconds["products"],
        "predicted_s": prepared.representation.work / rate,
        "dgemm_bound_s": _flops_of_products(prepared) / rate,
        "device": str(prepared.model.device),
        "error": result.error_after,
        "error_before": result.error_before,
        "held_out": used["held_out"],
        "train": used["train"],
        "rank": result.rank,
        "rank_max": result.rank_max,
        "outcome": result.outcome.value,
        "rows": result.counts["rows"],
        "held_out_rows": result.counts["held_out_rows"],
        "params": result.counts["params"],
        "phases": result.seconds,
        "detail": result.detail,
    }


def _flops_of_products(prepared: PreparedProblem) -> float:
    """Flops of the products that were done, on the rank that has most; half for those in float32.

    Returns:
        Flops, equal on all ranks.

    Collective: all ranks.
    """
    fit, held = prepared.jacobian.counter, prepared.held_jacobian.counter
    single = prepared.drawing_jacobian.jtu_dtype != torch.float64
    columns = fit.jv_columns + fit.jtu_columns * (0.5 if single else 1.0)

    def flops(rows: LocalRows) -> float:
        return sum(s.n_points * _flops_per_point(prepared, s) for s in rows.segments)

    mine = flops(prepared.fit) * columns + flops(prepared.held) * held.jv_columns
    return float(max(prepared.comm.allgather(mine)))


def _flops_per_point(prepared: PreparedProblem, segment: Segment) -> float:
    """Of one column: those of the factored form, or two for every number of J."""
    structures = prepared.structures
    if isinstance(structures, NotFactored):
        return 2.0 * segment.probe.rows_per_point * prepared.jacobian.local.n_parameters
    return float(structures[segment.block.name].flops_per_point)


def recipe(case: Case, dtype: str, rank: int | None) -> Measurement:
    """Arm: the published recipe.

    Args:
        case: The case.
        dtype: ``"float64"`` or ``"float32"`` (as published).
        rank: Number of directions; None takes the job's.

    Returns:
        The measurement.
    """
    problem, settings = load(case)
    rank = rank or settings.subspace.rank
    started = time.perf_counter()
    linear = linearise(problem, settings, getattr(torch, dtype))
    delta = published_recipe(linear, rank=rank)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "rank": rank, **score(linearise(problem, settings), delta)}


def lsmr(case: Case, budget_s: float, is_scaled: bool) -> Measurement:
    """Arm: scipy's LSMR over all parameters, J as a matrix where it fits.

    scipy keeps its iterates to itself, so it is started afresh for 10, 40, 160, ... iterations, and for as
    many as fit into the budget. Each run is one point of the history, timed by itself.

    Args:
        case: The case.
        budget_s: Seconds that one run may take, J included.
        is_scaled: Whether the columns of J are scaled to unit length.

    Returns:
        The point with the smallest held-out residual, and the history.
    """
    from scipy.sparse.linalg import LinearOperator
    from scipy.sparse.linalg import lsmr as scipy_lsmr

    problem, settings = load(case)
    started = time.perf_counter()
    linear = linearise(problem, settings)
    if _too_large(linear):
        return _no_matrix(linear)
    j = explicit_jacobian(linear)
    with torch.no_grad():
        r0 = linear.residual(linear.theta0)
    norms = j.norm(dim=0) if is_scaled else torch.ones(j.shape[1], dtype=j.dtype)
    scale = 1.0 / torch.where(norms > 0, norms, 1.0)
    operator = LinearOperator(
        j.shape,
        dtype=np.float64,
        matvec=lambda x: torch.mv(j, scale * _tensor(x)).numpy(),
        rmatvec=lambda y: (scale * torch.mv(j.T, _tensor(y))).numpy(),
    )
    preparation = time.perf_counter() - started

    def point(iterations: int) -> Measurement:
        started = time.perf_counter()
        x = scipy_lsmr(operator, -r0.numpy(), atol=0, btol=0, conlim=0, maxiter=iterations)[0]
        seconds = time.perf_counter() - started
        delta = scale * _tensor(x)
        return {"iterations": iterations, "seconds": preparation + seconds, **score(linear, delta)}

    history = [point(10)]
    while True:
        per_iteration = (history[-1]["seconds"] - preparation) / history[-1]["iterations"]
        # 2 % less, so that the last run ends in time.
        affordable = int(0.98 * (budget_s - preparation) / per_iteration)
        if affordable <= history[-1]["iterations"]:
            break
        history.append(point(min(4 * history[-1]["iterations"], affordable)))
        if history[-1]["iterations"] == affordable:
            break
    return {**_best(history), "preparation_s": preparation, "history": history}


def dense_lstsq(case: Case) -> Measurement:
    """Arm: minimum-norm solution over all parameters from a dense SVD of J (LAPACK gelsd).

    Args:
        case: The case.

    Returns:
        The measurement.
    """
    problem, settings = load(case)
    started = time.perf_counter()
    linear = linearise(problem, settings)
    n, p = linear.n_rows, linear.n_parameters
    if _too_large(linear) or min(n, p) ** 2 * max(n, p) > _LARGEST_DENSE:
        return _no_matrix(linear)
    j = explicit_jacobian(linear)
    with torch.no_grad():
        r0 = linear.residual(linear.theta0)
    solved = torch.linalg.lstsq(j, -r0[:, None], driver="gelsd", rcond=float(np.finfo(float).eps) * max(n, p))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "rank": int(solved.rank), **score(linear, solved.solution[:, 0])}


def _too_large(linear: Linearised) -> bool:
    return 8 * linear.n_rows * linear.n_parameters > _LARGEST_MATRIX


def _no_matrix(linear: Linearised) -> Measurement:
    n, p = linear.n_rows, linear.n_parameters
    return {"skipped": f"left out: J is {n} x {p}, {8 * n * p / 2**30:.1f} GiB"}


def _tensor(x: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x))


def draw(record: Record, figure: Any) -> None:
    """Error against seconds, one panel per case.

    Args:
        record: The record.
        figure: Matplotlib figure.
    """
    from matplotlib.ticker import LogLocator

    cases = list(dict.fromkeys(m["case"] for m in record.arms))
    for axes, case in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases, strict=True):
        for arm in record.arms:
            points = [p for p in arm.get("history") or [arm] if p.get("error") and p.get("seconds")]
            if arm["case"] == case and points:
                points.sort(key=lambda p: p["seconds"])
                line = "o-" if len(points) > 1 else "s"
                axes.loglog(
                    [p["seconds"] for p in points], [p["error"] for p in points], line, label=arm["arm"]
                )
        axes.set(title=case, xlabel="seconds", ylabel="relative L2 error")
        # Plain numbers at 1, 2, 5: the range may be less than a decade.
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.grid(which="both", alpha=0.3)
        axes.legend(fontsize="small")
