"""Small problems, and their residual as one function of the flat parameters, written without lsr_hpc."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lsr_hpc.derivatives import second_along
from lsr_hpc.models import MLP
from lsr_hpc.problem import Evaluation, Problem, ResidualBlock
from lsr_hpc.settings import (
    ComputeSettings,
    HeldOutSettings,
    RefineSettings,
    SolverSettings,
    SubspaceSettings,
)

X = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]


def network(widths: Sequence[int] = (1, 6, 6, 1), seed: int = 3) -> MLP:
    torch.manual_seed(seed)
    return MLP(list(widths)).double()


def shifted(model: nn.Module, by: float) -> nn.Module:
    """The network with Gaussian noise on its parameters."""
    generator = torch.Generator().manual_seed(0)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return moved


def misfit(u: Any, x: Tensor, y: Tensor) -> Tensor:
    return u(x) - y


def _fitted(teacher: nn.Module, x: Tensor, by: float) -> Problem:
    with torch.no_grad():
        y = teacher(x)
    return Problem(
        name="fitted",
        model=shifted(teacher, by),
        blocks=[ResidualBlock(name="fit", residual=misfit, points=x, data=(y,))],
        evaluation=Evaluation(inputs=(x,), reference=y),
    )


def fitted(by: float = 0.1) -> Problem:
    """A network fitted to another one of the same shape close by. P = 61, N = 200."""
    return _fitted(network(), X, by)


def fitted_in_the_plane() -> Problem:
    """The same with two inputs, where all parameters are well determined. P = 51, N = 200."""
    x = 6 * torch.rand(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 3
    return _fitted(network((2, 5, 5, 1)), x, 0.03)


def _of_sine(name: str, equation: Callable[..., Tensor], source: Callable[[Tensor], Tensor]) -> Problem:
    """An equation that the sine solves, with boundary values: blocks of very different size and weight."""
    x = torch.linspace(0, math.pi, 60, dtype=torch.float64)[:, None]

    def blocks(round_: int) -> list[ResidualBlock]:
        moved = x + 0.01 * round_ * torch.sin(2 * x)
        return [
            ResidualBlock(name="equation", residual=equation, points=moved, data=(source(moved),)),
            ResidualBlock(name="boundary", residual=lambda u, x: u(x), points=x[[0, -1]], weight=10.0),
        ]

    return Problem(
        name=name,
        model=network((1, 8, 8, 1)),
        blocks=blocks(0),
        evaluation=Evaluation(inputs=(x,), reference=torch.sin(x)),
        resample=blocks,
    )


def bratu() -> Problem:
    """u'' + u^2 / 2 = s."""
    return _of_sine(
        "bratu",
        lambda u, x, s: second_along(u, x) + u(x) ** 2 / 2 - s,
        lambda x: -torch.sin(x) + torch.sin(x) ** 2 / 2,
    )


def cubic() -> Problem:
    """u + u^3 / 2 = s: as nonlinear, and cheap."""

    def equation(u: Any, x: Tensor, s: Tensor) -> Tensor:
        value = u(x)
        return value + value**3 / 2 - s

    return _of_sine("cubic", equation, lambda x: torch.sin(x) + torch.sin(x) ** 3 / 2)


def wide() -> Problem:
    """Four points of 30 outputs: on five ranks one of them owns no row."""
    torch.manual_seed(3)
    x = torch.tensor([[0.1, 0.2], [0.7, -0.3], [-0.5, 0.4], [0.3, 0.9]], dtype=torch.float64)
    target = torch.sin(torch.arange(30.0, dtype=torch.float64)) * x.sum(dim=1, keepdim=True)
    return Problem(
        name="wide",
        model=MLP([2, 5, 30]).double(),
        blocks=[ResidualBlock(name="misfit", residual=misfit, points=x, data=(target,))],
        evaluation=Evaluation(inputs=(x,), reference=target),
    )


def noise() -> Problem:
    """Pure noise around what the network already gives: nothing can be gained, and rank 0 must win."""
    model = network((1, 8, 8, 1))
    x = torch.linspace(-1, 1, 400, dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        y = model(x) + 0.1 * torch.randn(400, 1, generator=generator, dtype=torch.float64)
    block = ResidualBlock(name="fit", residual=misfit, points=x, data=(y,))
    return Problem(name="noise", model=model, blocks=[block])


def refinement(rank: int = 12, fraction: float = 0.2, **changes: Any) -> RefineSettings:
    solver = SolverSettings(**changes.pop("solver", {}))
    jacobian = changes.pop("jacobian", "explicit")
    return RefineSettings(
        subspace=SubspaceSettings(rank=rank, **changes),
        solver=solver,
        held_out=HeldOutSettings(fraction=fraction),
        compute=ComputeSettings(device="cpu", jacobian=jacobian),
    )


def start_of(problem: Problem) -> np.ndarray[Any, Any]:
    return nn.utils.parameters_to_vector(problem.model.parameters()).detach().double().numpy().copy()


def field_at(problem: Problem, theta: Tensor) -> Callable[..., Tensor]:
    """The problem's network with the parameters given."""
    tensors, first = {}, 0
    for name, parameter in problem.model.named_parameters():
        tensors[name] = theta[first : first + parameter.numel()].reshape(parameter.shape)
        first += parameter.numel()
    return lambda *inputs: functional_call(problem.model, tensors, inputs)


def stacked(problem: Problem, theta: Tensor) -> Tensor:
    """f(theta): all blocks, every row of block k times sqrt(weight_k / N_k)."""
    field = field_at(problem, theta)
    rows = []
    for block in problem.blocks:
        values = block.residual(field, *block.take(np.arange(block.n_points))).reshape(-1)
        rows.append(math.sqrt(block.weight / len(values)) * values)
    return torch.cat(rows)


def loss(problem: Problem, theta: np.ndarray[Any, Any]) -> float:
    """||f(theta)||^2."""
    return float(stacked(problem, torch.from_numpy(theta)).detach().square().sum())
