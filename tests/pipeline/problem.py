"""A problem of three instances for jobs of tests; what is done with it is in bodies.py."""

from __future__ import annotations

import os

import torch

from lsr_hpc import Problem, ProblemFamily, ResidualBlock


def build(instances: int = 3, scale: float = 1.0) -> ProblemFamily:
    if scale <= 0:
        raise ValueError("scale must be positive")
    if scale == 13.0:
        os._exit(1)
    x = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]

    def instance(i: int) -> Problem:
        block = ResidualBlock(name="fit", residual=lambda u, x: u(x) - scale * i, points=x)
        return Problem(name=f"toy {i}", model=torch.nn.Linear(1, 1), blocks=[block])

    return ProblemFamily(name="toy", n_instances=instances, instance=instance)
