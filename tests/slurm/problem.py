"""A small problem for real jobs, whose residual takes its time until a file appears."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from lsr_hpc import Evaluation, Problem, ProblemFamily, ResidualBlock


def build(gate: str = "") -> ProblemFamily:
    """Fit of exp(-x) sin(3 x); evaluations of the residual are slow while there is no file ``gate``."""
    generator = torch.Generator().manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(1, 12), torch.nn.Tanh(), torch.nn.Linear(12, 1)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.linspace(0, 3, 90, dtype=torch.float64)[:, None]

    def exact(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(-x) * torch.sin(3 * x)

    def residual(u, x):
        if gate and not Path(gate).exists():
            time.sleep(0.2)
        return u(x) - exact(x)

    problem = Problem(
        name="damped sine",
        model=net,
        blocks=[ResidualBlock(name="fit", residual=residual, points=x)],
        evaluation=Evaluation(inputs=(x,), reference=exact(x)),
    )
    return ProblemFamily(name="damped sine", n_instances=1, instance=lambda _: problem)
