"""Ways to a basis of dominant right singular vectors: captured energy against seconds.

The matrix is the Jacobian of a shipped problem. Ours applies it matrix-free on MPI ranks of one thread; the
others get it as a dense array, and the seconds that making it took are part of theirs. Every basis is judged
in one further process against a dense SVD: ``error`` is the missing share of the largest possible energy,
1 - sum_i ||J v_i||^2 / sum_{i <= k} sigma_i^2. ``residual_left`` is what least squares in the basis leaves of
the start residual, which is what a refinement is after. Seconds are the best of up to three.
"""

# Legend: N rows, P parameters, k wanted rank, J (N, P), V (k, P) one direction per row.

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.arms import Arm, Measurement, best_of, peer, run_arm
from benchmarks.cases import Case, explicit_jacobian, linearise, load
from benchmarks.record import Column, Record, ratio
from lsr_hpc.errors import JobError
from lsr_hpc.settings import SubspaceSettings

__all__ = ["COLUMNS", "draw", "project_variants", "run"]

Array = NDArray[np.float64]

COLUMNS = (
    Column("setting", "setting"),
    Column("seconds", "s"),
    Column("method_s", "s without J"),
    Column("error", "missing energy", ".1e"),
    Column("tail_excess", "tail excess", ".1e"),
    Column("residual_left", "residual left", ".2e"),
    Column("directions", "directions", "d"),
    Column("peak_rss_bytes", "peak MiB", ".0f", 2**-20),
    Column("gemm_gflops", "dgemm GF/s", ".0f"),
    Column("foreign_cores", "foreign cores", ".1f"),
)

_JOB = "jobs/function_fit.toml"
_OVERRIDES = {
    "tiny": ["problem.args.points=150", "subspace.rank=10"],
    "small": ["problem.args.points=1500", "subspace.rank=100"],
    "full": [],
}
# Every name that the project has, or may come to have; the settings themselves say which exist.
_BASES = ("svd", "randomized", "krylov", "svd+krylov", "random")
_SVD_SOLVERS = ("randomized", "trlanczos", "cross")
_BLOCK_ITERATIONS = (1, 2, 3)
_WIDTHS = (8, 25, 50)
# Settings that tell the points of one arm apart.
_SHOWN = ("iterations", "width")
_RESTARTS = 100
_PEERS = {
    "torch.svd_lowrank": ("torch_svd_lowrank", (0, 1, 2)),
    "sklearn.randomized_svd": ("sklearn_randomized_svd", (0, 1, 2, 4)),
    "scipy.svds (ARPACK)": ("scipy_svds", (0,)),
    "dask.svd_compressed": ("dask_svd_compressed", (0, 1, 2)),
}


def project_variants() -> dict[str, list[dict[str, Any]]]:
    """The ways to a basis that the project's settings accept.

    Returns:
        For each arm the ``[subspace]`` settings to try, one point of its curve each.
    """
    variants: dict[str, list[dict[str, Any]]] = {}
    for basis in _BASES:
        try:
            SubspaceSettings(basis=basis)
        except JobError:
            continue
        if basis == "svd":
            for svd in _SVD_SOLVERS:
                iterations = _BLOCK_ITERATIONS if svd == "randomized" else (_RESTARTS,)
                variants[f"ours svd/{svd}"] = [
                    {"basis": basis, "svd": svd, "iterations": i} for i in iterations
                ]
        elif basis == "krylov":
            variants[f"ours {basis}"] = [{"basis": basis, "width": width} for width in _WIDTHS]
        else:
            variants[f"ours {basis}"] = [{"basis": basis}]
    return variants


def run(preset: str, overrides: list[str], cores: int) -> Record:
    """Run all arms.

    Args:
        preset: ``"small"`` or ``"full"``; ``"tiny"`` is for the tests.
        overrides: ``section.key=value`` settings.
        cores: Cores of every arm.

    Returns:
        The record.
    """
    case: Case = {"job": _JOB, "preset": "small", "overrides": [*_OVERRIDES[preset], *overrides]}
    arms: list[Measurement] = []
    with tempfile.TemporaryDirectory(prefix="lsr-bench-") as scratch:
        common = {"case": case, "scratch": scratch}
        [matrix] = run_arm(
            Arm(name="dense SVD", function="subspace:reference", arguments=common, threads=cores)
        )
        for name, settings in project_variants().items():
            arms += run_arm(
                Arm(
                    name=name,
                    function="subspace:project",
                    arguments={**common, "variants": settings},
                    mpi_ranks=cores,
                )
            )
        for name, (method, powers) in _PEERS.items():
            # Dask runs one thread of its own per core, each with a single-threaded BLAS.
            threads = 1 if name.startswith("dask") else cores
            words = {
                **common,
                "method": method,
                "powers": powers,
                "build_s": matrix.get("build_s"),
                "cores": cores,
            }
            arms += run_arm(Arm(name=name, function="subspace:other", arguments=words, threads=threads))
        made = [m["basis_file"] for m in arms if "basis_file" in m]
        words = {"scratch": scratch, "files": made}
        judged = run_arm(Arm(name="judge", function="subspace:judge", arguments=words, threads=cores))
        figures = {m["basis_file"]: m["figures"] for m in judged if "basis_file" in m}
        for arm in arms:
            arm |= figures.get(arm.pop("basis_file", ""), {})
    return Record(
        name="subspace",
        preset=preset,
        arms=[matrix, *arms],
        ratios=_ratios(arms),
        notes=[
            "seconds of the arms that are not ours hold the making of the dense J; it takes "
            "8 N P bytes that ours does not need."
        ],
    )


def _ratios(arms: list[Measurement]) -> dict[str, float]:
    """Seconds of each peer over the fastest of ours whose basis misses at most as much energy."""
    ratios: dict[str, float | None] = {}
    ours = [a for a in arms if a["arm"].startswith("ours") and a.get("error") is not None]
    for arm in arms:
        if arm["arm"].startswith("ours") or arm.get("error") is None:
            continue
        as_good = [a for a in ours if a["error"] <= max(1.1 * arm["error"], 1e-14)]
        best = min(as_good, key=lambda a: float(a["seconds"]), default=None)
        name = f"seconds at equal energy: {arm['arm']} {arm['setting']}/"
        ratios[name + (f"{best['arm']} {best['setting']}" if best else "ours")] = ratio(arm, best)
    return {name: value for name, value in ratios.items() if value is not None}


def reference(case: Case, scratch: str) -> Measurement:
    """Arm: J as a dense array, its singular values, and the seconds that making J takes.

    Args:
        case: The case.
        scratch: Directory that receives ``J.npy``, ``sigma.npy`` and ``r0.npy``.

    Returns:
        The measurement.
    """
    problem, settings = load(case)
    linear = linearise(problem, settings)
    explicit_jacobian(linear)
    build_s, j = best_of(lambda: explicit_jacobian(linear))
    started = time.perf_counter()
    # A QR first: of a wide matrix several times faster than the SVD of the whole.
    sigma = torch.linalg.svdvals(torch.linalg.qr(j.T, mode="r")[1] if len(j) < j.shape[1] else j)
    method_s = time.perf_counter() - started
    with torch.no_grad():
        r0 = linear.residual(linear.theta0)
    for name, values in {"J": j, "sigma": sigma, "r0": r0}.items():
        np.save(Path(scratch, f"{name}.npy"), values.numpy())
    return {
        "setting": "all singular values",
        "seconds": build_s + method_s,
        "build_s": build_s,
        "method_s": method_s,
        "rows": linear.n_rows,
        "params": linear.n_parameters,
        "directions": len(sigma),
    }


def project(case: Case, scratch: str, variants: list[dict[str, Any]]) -> list[Measurement]:
    """Arm: one of the project's ways to a basis, with several settings.

    Args:
        case: The case.
        scratch: Directory for the bases.
        variants: ``[subspace]`` settings.

    Returns:
        One measurement per setting.

    Collective: all ranks of COMM_WORLD.
    """
    from mpi4py import MPI

    from lsr_hpc.comm import gather_panel
    from lsr_hpc.oneshot import make_basis, start_residual
    from lsr_hpc.petsc import start
    from lsr_hpc.prepare import prepare

    start()
    comm = MPI.COMM_WORLD
    problem, settings = load(case)
    found = []
    for number, variant in enumerate(variants):
        chosen = replace(settings, subspace=replace(settings.subspace, **variant))
        prepared = prepare(problem, comm, chosen)
        jacobian = prepared.jacobian
        # The first product of a process compiles and loads; a refinement pays for that while it prepares.
        lo, hi = jacobian.my_parameters
        jacobian.jtu(jacobian.jv(np.ones((1, hi - lo))))
        r0 = start_residual(prepared)
        seconds, basis = best_of(partial(make_basis, prepared, r0), comm)
        v = gather_panel(comm, basis.v_local, jacobian.parameter_ranges)
        words = "_".join(str(value) for value in variant.values())
        file = f"ours_{words}_{number}.npy"
        if comm.rank == 0:
            np.save(Path(scratch, file), v)
        found.append({
            "setting": ", ".join(f"{value} {name}" for name, value in variant.items() if name in _SHOWN),
            "seconds": seconds,
            "method_s": seconds,
            "directions": basis.rank,
            "basis_file": file,
            "detail": basis.detail,
        })
    return found


def other(
    case: Case, scratch: str, method: str, powers: list[int], build_s: float, cores: int
) -> list[Measurement]:
    """Arm: another library on the dense J.

    Args:
        case: The case.
        scratch: Directory with ``J.npy``; receives the bases.
        method: Which one.
        powers: Power iterations to try, where the method has them.
        build_s: Seconds that making J took.
        cores: Threads for libraries that do not read them from the environment.

    Returns:
        One measurement per setting.
    """
    k = load(case)[1].subspace.rank
    make = _METHODS[method]
    j = np.load(Path(scratch, "J.npy"))
    found = []
    for power in powers:
        seconds, v = best_of(lambda power=power: make(j, k, power, cores))  # type: ignore[misc]
        file = f"{method}_{power}.npy"
        np.save(Path(scratch, file), v)
        found.append({
            "setting": f"{power} power iterations" if len(powers) > 1 else "",
            "seconds": build_s + seconds,
            "method_s": seconds,
            "directions": len(v),
            "basis_file": file,
        })
    return found


def _torch_svd_lowrank(j: Array, k: int, power: int, cores: int) -> Array:
    torch.manual_seed(0)
    v: Array = torch.svd_lowrank(torch.from_numpy(j), q=k + 10, niter=power)[2].numpy()
    return v[:, :k].T


def _sklearn_randomized_svd(j: Array, k: int, power: int, cores: int) -> Array:
    extmath = peer("sklearn.utils.extmath", "scikit-learn")
    v: Array = extmath.randomized_svd(j, k, n_oversamples=10, n_iter=power, random_state=0)[2]
    return v


def _scipy_svds(j: Array, k: int, power: int, cores: int) -> Array:
    from scipy.sparse.linalg import svds

    v: Array = svds(j, k=k, random_state=0, return_singular_vectors="vh")[2]
    return v


def _dask_svd_compressed(j: Array, k: int, power: int, cores: int) -> Array:
    dask = peer("dask", "'dask[array]'")
    array = peer("dask.array", "'dask[array]'")
    # Row blocks, as many as threads; columns stay together.
    blocks = array.from_array(j, chunks=(-(-j.shape[0] // cores), j.shape[1]))
    v = array.linalg.svd_compressed(blocks, k, n_oversamples=10, n_power_iter=power, seed=0)[2]
    with dask.config.set(scheduler="threads", num_workers=cores):
        computed: Array = v.compute()
    return computed


_METHODS: dict[str, Callable[[Array, int, int, int], Array]] = {
    "torch_svd_lowrank": _torch_svd_lowrank,
    "sklearn_randomized_svd": _sklearn_randomized_svd,
    "scipy_svds": _scipy_svds,
    "dask_svd_compressed": _dask_svd_compressed,
}


def judge(scratch: str, files: list[str]) -> list[Measurement]:
    """Arm: judge every basis against the dense SVD.

    Args:
        scratch: Directory with J, its singular values, the residual and the bases.
        files: Names of the bases.

    Returns:
        Per file the missing energy, the tail ||J - J V V^T||_F over the smallest possible one minus 1, and
        the share of ||r0|| that least squares in the basis leaves.
    """
    j, sigma, r0 = (torch.from_numpy(np.load(Path(scratch, f"{n}.npy"))) for n in ("J", "sigma", "r0"))
    found = []
    for file in files:
        v = torch.from_numpy(np.load(Path(scratch, file)))
        q = torch.linalg.qr(v.T)[0]
        k = q.shape[1]
        jq = j @ q
        best = sigma[:k].square().sum()
        tail = sigma[k:].square().sum().sqrt()
        range_of_jq = torch.linalg.svd(jq, full_matrices=False)[0]
        left = r0 - range_of_jq @ (range_of_jq.T @ r0)
        figures = {
            "error": max(0.0, 1.0 - float(jq.square().sum() / best)),
            "tail_excess": float((j - jq @ q.T).norm() / tail) - 1.0,
            "residual_left": float(left.norm() / r0.norm()),
        }
        found.append({"basis_file": file, "figures": figures})
    return found


def draw(record: Record, figure: Any) -> None:
    """Missing energy and residual left against seconds.

    Args:
        record: The record.
        figure: Matplotlib figure.
    """
    panels = figure.subplots(1, 2)
    keys = {"error": "missing energy", "residual_left": "residual left"}
    for axes, (key, label) in zip(panels, keys.items(), strict=True):
        for name in dict.fromkeys(a["arm"] for a in record.arms):
            points = [a for a in record.arms if a["arm"] == name and a.get(key) is not None]
            # Below rounding everything is the same.
            x, y = [p["seconds"] for p in points], [max(p[key], 1e-16) for p in points]
            if points:
                axes.loglog(x, y, "o-" if name.startswith("ours") else "s--", label=name)
        axes.set(xlabel="seconds", ylabel=label)
        axes.grid(which="both", alpha=0.3)
    panels[1].legend(fontsize="x-small")
