"""What the refined predictor costs beside the plain network: seconds and memory for the same points.

A Jacobian-vector product is two to three forward passes. Networks are untrained and corrections random: the
cost does not depend on either. Memory is what a process needs beyond its state before the first evaluation.
Both ways are timed by turns in one process, since other programs disturb both alike then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.arms import Arm, Measurement, run_arm, tag
from benchmarks.record import Column, Record, ratio
from lsr_hpc.models import MLP, BoundDeepONet, DeepONet
from lsr_hpc.params import ParameterLayout
from lsr_hpc.plan import peak_rss_bytes, rss_bytes
from lsr_hpc.predictor import RefinedPredictor

__all__ = ["COLUMNS", "draw", "evaluate", "run"]

COLUMNS = (
    Column("params", "P", "d"),
    Column("points", "points", "d"),
    Column("seconds", "s"),
    Column("over_network", "over network", ".2f"),
    Column("added_bytes", "memory MiB", ".0f", 2**-20),
    Column("memory_over_network", "over network", ".2f"),
    Column("foreign_cores", "foreign cores", ".1f"),
)
_WIDTHS = {"tiny": 16, "small": 64, "full": 128}
_POINTS = {"tiny": 2000, "small": 50_000, "full": 100_000}
_CASES = ("mlp", "deeponet")
_TURNS = 7


def evaluate(case: str, width: int, points: int, how: str) -> list[Measurement]:
    """Time one way of evaluating points.

    Args:
        case: ``"mlp"`` of six hidden layers, or ``"deeponet"`` of five-layer branch and trunk.
        width: Width of the layers.
        points: Number of points.
        how: ``"network"``, ``"refined"``, or ``"gradient"``: the refined field with its gradient in x.

    Returns:
        One measurement.
    """
    torch.manual_seed(0)
    network: torch.nn.Module
    if case == "mlp":
        network, d = MLP([2] + [width] * 6 + [1]), 2
    else:
        operator = DeepONet(branch=[100] + [width] * 5, trunk=[1] + [width] * 5)
        network, d = BoundDeepONet(operator, torch.randn(100).double()), 1
    size = ParameterLayout.of(network).size
    predictor = RefinedPredictor(network, torch.randn(size).double())
    x = torch.rand(points, d, dtype=torch.float64)
    before = rss_bytes()

    def plain() -> None:
        with torch.no_grad():
            predictor.network(x)

    def refined() -> None:
        predictor.predict(x, batch_size=points)

    def gradient() -> None:
        inputs = x.clone().requires_grad_()
        torch.autograd.grad(predictor(inputs).sum(), inputs)

    once = {"network": plain, "refined": refined, "gradient": gradient}[how]
    times = [(_seconds(plain), _seconds(once)) for _ in range(_TURNS)]
    network_s, seconds = (min(column) for column in zip(*times, strict=True))
    sizes = {"case": case, "params": size, "points": points}
    added = max(1, peak_rss_bytes() - before)
    return [{**sizes, "seconds": seconds, "over_network": seconds / network_s, "added_bytes": added}]


def _seconds(action: Callable[[], None]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def run(preset: str, overrides: list[str], cores: int) -> Record:
    """Run all arms.

    Args:
        preset: ``"tiny"``, ``"small"`` or ``"full"``.
        overrides: None are used.
        cores: Threads of every arm.

    Returns:
        The record.
    """
    sizes = {"width": _WIDTHS[preset], "points": _POINTS[preset]}
    arms: list[Measurement] = []
    ratios: dict[str, float] = {}
    for case in _CASES:
        found = {}
        for name, how in (("network", "network"), ("ours", "refined"), ("ours, gradient in x", "gradient")):
            arguments = {"case": case, "how": how, **sizes}
            arm = Arm(name=name, function="predictor:evaluate", arguments=arguments, threads=cores)
            (found[how],) = tag(run_arm(arm), case=case)
        for how, measured in found.items():
            measured["memory_over_network"] = ratio(measured, found["network"], "added_bytes")
            if how != "network":
                ratios[f"{case}: seconds, network/{how}"] = 1 / measured["over_network"]
        arms += found.values()
    return Record(
        name="predictor",
        preset=preset,
        arms=arms,
        ratios=ratios,
        notes=["memory: largest resident memory less that before the first evaluation, all points at once."],
    )


def draw(record: Record, figure: Any) -> None:
    """Seconds and memory over those of the network as bars.

    Args:
        record: The record.
        figure: Matplotlib figure.
    """
    names = [f"{m['case']}: {m['arm']}" for m in record.arms]
    for axes, key, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("over_network", "memory_over_network"),
        ("seconds over the network's", "memory over the network's"),
        strict=True,
    ):
        axes.barh(names, [m[key] or 0.0 for m in record.arms])
        axes.set(xlabel=label)
        axes.grid(axis="x", alpha=0.3)
