"""Rates of the block products J V and J^T U of every representation, against other software and dgemm.

One process with one thread each. The rate counts 2 N P flops a column, what a product with the matrix itself
would take: a representation that works harder shows a lower rate, one that exploits structure a higher one.
``error`` is the largest deviation from a plain jvp or vjp of single columns, relative to the largest entry.
"""

# Legend: N rows, P parameters, b columns of a block.

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap

from benchmarks.arms import Arm, Measurement, peer, run_arm, tag
from benchmarks.record import Column, Record, ratio
from benchmarks.representations import REPRESENTATIONS
from benchmarks.worker import gemm_gflops
from lsr_hpc import Problem, ResidualBlock
from lsr_hpc.models import MLP
from lsr_hpc.params import ParameterLayout
from lsr_hpc.settings import ComputeSettings, HeldOutSettings, RefineSettings, SubspaceSettings

__all__ = ["COLUMNS", "draw", "run"]

Product = Callable[[Tensor], Tensor]

COLUMNS = (
    Column("width", "width", "d"),
    Column("params", "P", "d"),
    Column("jv_gflops", "J V GF/s", ".1f"),
    Column("jtu_gflops", "J^T U GF/s", ".1f"),
    Column("dgemm_now_gflops", "dgemm GF/s", ".0f"),
    Column("jv_share", "J V / dgemm", ".2f"),
    Column("jtu_share", "J^T U / dgemm", ".2f"),
    Column("error", "error", ".0e"),
    Column("peak_rss_bytes", "peak MiB", ".0f", 2**-20),
    Column("foreign_cores", "foreign cores", ".1f"),
)

# Network 2 - width x 6 - 1 as in the function fit; rows and columns of one product.
_DEPTH = 6
_SIZES = {
    "tiny": {"widths": [16], "points": 64, "columns": 4},
    "small": {"widths": [50, 128, 256], "points": 500, "columns": 32},
    "full": {"widths": [50, 128, 256], "points": 4000, "columns": 128},
}
# Columns at once of the arms that leave the choice to the caller; more take gigabytes and gain nothing.
_CHUNK = 32


def run(preset: str, overrides: list[str], cores: int) -> Record:
    """Run all arms.

    Args:
        preset: ``"small"`` or ``"full"``; ``"tiny"`` is for the tests.
        overrides: Not used: no job is read.
        cores: Not used: every arm has one thread.

    Returns:
        The record.
    """
    size: dict[str, Any] = dict(_SIZES[preset])
    arms: list[Measurement] = []
    ratios: dict[str, float] = {}
    names = [f"ours {name}" for name in REPRESENTATIONS] + list(_PEERS)
    for width in size.pop("widths"):
        words = {"width": width, **size}
        found = {
            name: run_arm(Arm(name=name, function="products:rates", arguments={"name": name, **words}))[0]
            for name in names
        }
        arms += tag(list(found.values()), width=width)
        for name in names:
            for own in (n for n in names if n.startswith("ours") and not name.startswith("ours")):
                for key, product in {"jv_share": "J V", "jtu_share": "J^T U"}.items():
                    quotient = ratio(found[own], found[name], key)
                    if quotient is not None:
                        ratios[f"width {width}, {product} rate: {own}/{name}"] = quotient
    return Record(name="products", preset=preset, arms=arms, ratios=ratios)


def rates(name: str, width: int, points: int, columns: int) -> Measurement:
    """Arm: both products of one representation or peer.

    Args:
        name: ``"ours REPRESENTATION"`` or the name of a peer.
        width: Width of the network.
        points: Rows N; the network has one output.
        columns: Columns b.

    Returns:
        The measurement; ``seconds`` is that of both products together.
    """
    torch.manual_seed(0)
    model = MLP(widths=[2] + [width] * _DEPTH + [1]).double()
    x = torch.rand(points, 2, dtype=torch.float64) * 2 - 1
    n_parameters = sum(p.numel() for p in model.parameters())
    v = torch.randn(columns, n_parameters, dtype=torch.float64)
    u = torch.randn(columns, points, dtype=torch.float64)
    own = name.removeprefix("ours ")
    make = _own(own) if own in REPRESENTATIONS else _PEERS[name]
    jv, jtu = make(model, x)

    _ = jv(v[:1]), jtu(u[:1])
    jv_s, jv_gemm, image = _beside_dgemm(lambda: jv(v))
    jtu_s, jtu_gemm, gradient = _beside_dgemm(lambda: jtu(u))
    gflop = 2.0 * points * n_parameters * columns / 1e9
    return {
        "seconds": jv_s + jtu_s,
        "error": _deviation(model, x, v, u, image, gradient),
        "rows": points,
        "params": n_parameters,
        "columns": columns,
        "jv_gflops": gflop / jv_s,
        "jtu_gflops": gflop / jtu_s,
        "dgemm_now_gflops": max(jv_gemm, jtu_gemm),
        "jv_share": gflop / jv_s / jv_gemm,
        "jtu_share": gflop / jtu_s / jtu_gemm,
    }


def _beside_dgemm(product: Callable[[], Tensor], enough_s: float = 1.5) -> tuple[float, float, Tensor]:
    """Time a product and dgemm in turn, and keep the pair whose quotient is the median.

    Other programs on the machine slow both alike, so the quotient holds still where the seconds do not.

    Args:
        product: The product.
        enough_s: Seconds to spend.

    Returns:
        Seconds of the product, Gflop/s of dgemm right before and after it, and the product's last result.
    """
    pairs: list[tuple[float, float]] = []
    until = time.perf_counter() + enough_s
    before = gemm_gflops(seconds=0.05)
    while not pairs or time.perf_counter() < until:
        started = time.perf_counter()
        result = product()
        seconds = time.perf_counter() - started
        after = gemm_gflops(seconds=0.05)
        pairs.append((seconds, (before + after) / 2))
        before = after
    pairs.sort(key=lambda pair: pair[0] * pair[1])
    return *pairs[len(pairs) // 2], result


def _bound(model: nn.Module, x: Tensor) -> tuple[Callable[[dict[str, Tensor]], Tensor], dict[str, Tensor]]:
    """The outputs at x, flat, as a function of named parameters; and the parameters."""
    theta0 = {n: p.detach() for n, p in model.named_parameters()}
    return lambda tensors: functional_call(model, tensors, (x,)).reshape(-1), theta0


def _deviation(model: nn.Module, x: Tensor, v: Tensor, u: Tensor, image: Tensor, gradient: Tensor) -> float:
    """Largest relative deviation of the first and last columns from single derivatives."""
    f, theta0 = _bound(model, x)
    layout = ParameterLayout.of(model)
    worst = 0.0
    with torch.no_grad():
        for i in (0, len(v) - 1):
            expected = jvp(f, (theta0,), (layout.unflatten(v[i]),))[1]
            worst = max(worst, float((image[i] - expected).abs().max() / expected.abs().max()))
            back = layout.flatten(vjp(f, theta0)[1](u[i])[0])
            worst = max(worst, float((gradient[i] - back).abs().max() / back.abs().max()))
    return worst


def _own(representation: str) -> Callable[[nn.Module, Tensor], tuple[Product, Product]]:
    def make(model: nn.Module, x: Tensor) -> tuple[Product, Product]:
        problem = Problem(
            name="products",
            model=model,
            # The row scale 1 / sqrt(N) is undone, so that all arms multiply by the same matrix.
            blocks=[ResidualBlock(name="u", residual=lambda u, x: u(x), points=x, weight=float(len(x)))],
        )
        settings = RefineSettings(
            subspace=SubspaceSettings(rank=1),
            held_out=HeldOutSettings(fraction=0.0),
            compute=ComputeSettings(memory_per_rank="4GiB"),
        )
        operator = REPRESENTATIONS[representation](problem, settings)
        return operator.jv, operator.jtu

    return make


def _plain(model: nn.Module, x: Tensor) -> tuple[Product, Product]:
    """``vmap(jvp)`` and ``vmap(vjp)`` over chunks of columns, all rows at once."""
    f, theta0 = _bound(model, x)
    layout = ParameterLayout.of(model)

    def jv(v: Tensor) -> Tensor:
        with torch.no_grad():
            push = vmap(lambda t: jvp(f, (theta0,), (layout.unflatten(t),))[1])
            return torch.cat([push(chunk) for chunk in torch.split(v, _CHUNK)])

    def jtu(u: Tensor) -> Tensor:
        with torch.no_grad():
            pull = vjp(f, theta0)[1]
            return torch.cat([layout.flatten(vmap(pull)(chunk)[0]) for chunk in torch.split(u, _CHUNK)])

    return jv, jtu


def _curvlinops(model: nn.Module, x: Tensor) -> tuple[Product, Product]:
    """Linear operators of curvlinops, on dense blocks of columns."""
    library = peer("curvlinops", "curvlinops-for-pytorch")
    data = [(x, torch.zeros(len(x), 1, dtype=x.dtype))]
    words = {"progressbar": False, "check_deterministic": False}
    parameters = list(model.parameters())
    forward = library.JacobianLinearOperator(model, parameters, data, **words)
    backward = library.TransposedJacobianLinearOperator(model, parameters, data, **words)

    def times(operator: Any, panel: Tensor) -> Tensor:
        return torch.cat([(operator @ chunk.T).T for chunk in torch.split(panel, _CHUNK)])

    return lambda v: times(forward, v), lambda u: times(backward, u)


_PEERS: dict[str, Callable[[nn.Module, Tensor], tuple[Product, Product]]] = {
    "vmap(jvp), vmap(vjp)": _plain,
    "curvlinops": _curvlinops,
}


def draw(record: Record, figure: Any) -> None:
    """Shares of the dgemm rate against the width.

    Args:
        record: The record.
        figure: Matplotlib figure.
    """
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("jv_share", "jtu_share"), strict=True):
        for name in dict.fromkeys(a["arm"] for a in record.arms):
            points = [a for a in record.arms if a["arm"] == name and a.get(key)]
            if points:
                axes.plot([p["width"] for p in points], [p[key] for p in points], "o-", label=name)
        axes.set(xlabel="width of the network", title="J V" if key == "jv_share" else "J^T U")
        axes.set_ylabel("rate / dgemm rate")
        axes.grid(alpha=0.3)
    # Shared by both panels, so only after both are drawn.
    axes.set_ylim(0, None)
    axes.legend(fontsize="small")
