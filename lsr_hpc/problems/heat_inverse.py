"""Inverse heat problem: conductivity a(x, y) from noisy temperatures, by a physics-informed tanh network.

u_t - div(a grad u) = s on [-1, 1]^2 x [0, 1], with u = exp(-t) sin(pi x) sin(pi y) and
a = 2 + sin(pi x) sin(pi y); the network has two outputs, u and a. Given are s, u at scattered points with
Gaussian noise, and a on the faces of the square. A fifth of the measurements is kept for validation: they
choose the rank, and a refinement that does not bring u nearer to them is refused. The error is that of a
alone, at random points.

Source: the inverse problem of arXiv:2601.13989, with points of our own; its adaptive weights are replaced by
fixed ones. The residual is bilinear in u and a.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lsr_hpc.derivatives import along, value_and_two_along
from lsr_hpc.models import MLP
from lsr_hpc.problem import Evaluation, Field, Problem, ResidualBlock
from lsr_hpc.problems.arguments import check_range, check_seed, trained
from lsr_hpc.problems.physics_informed import Box, Draws
from lsr_hpc.sampling import gaussian_rows
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask

__all__ = ["build", "conduction", "exact", "source", "training_task"]

_BOX = Box((-1.0, -1.0, 0.0), (1.0, 1.0, 1.0))
_STREAM_EQUATION = 131
_STREAM_MEASURED = 141
_STREAM_NOISE = 142
_STREAM_EVALUATION = 143
# One measurement in five is for validation.
_FIT_SHARE = 0.8


def exact(x: Tensor) -> Tensor:
    """The solution.

    Args:
        x: Points (x, y, t), shape (n, 3).

    Returns:
        u and a, shape (n, 2).
    """
    waves = torch.sin(torch.pi * x[..., :2]).prod(dim=-1, keepdim=True)
    return torch.cat([torch.exp(-x[..., 2:]) * waves, 2 + waves], dim=-1)


def source(x: Tensor) -> Tensor:
    """The source that belongs to the solution.

    Args:
        x: Points (x, y, t), shape (n, 3).

    Returns:
        s = u_t - div(a grad u), shape (n, 1).
    """
    sines, cosines = torch.sin(torch.pi * x[..., :2]), torch.cos(torch.pi * x[..., :2])
    waves = sines.prod(dim=-1, keepdim=True)
    slopes = (cosines * sines.flip(-1)).square().sum(dim=-1, keepdim=True)
    quadratic = torch.pi**2 * (2 * waves**2 - slopes)
    return torch.exp(-x[..., 2:]) * ((4 * torch.pi**2 - 1) * waves + quadratic)


def conduction(field: Field, x: Tensor, s: Tensor) -> Tensor:
    """Residual of the equation.

    Args:
        field: u and a.
        x: Points, shape (n, 3).
        s: Source there, shape (n, 1).

    Returns:
        u_t - (a u_x)_x - (a u_y)_y - s, shape (n, 1).
    """
    flux = torch.zeros_like(s)
    for axis in (0, 1):
        value, slope, curvature = value_and_two_along(field, x, axis)
        flux = flux + value[:, 1:] * curvature[:, :1] + slope[:, 1:] * slope[:, :1]
    return along(field, x, 2)[:, :1] - flux - s


def _temperature(field: Field, x: Tensor, measured: Tensor) -> Tensor:
    return field(x)[:, :1] - measured


def _conductivity(field: Field, x: Tensor, a: Tensor) -> Tensor:
    return field(x)[:, 1:] - a


def _problem(
    model: MLP,
    width: int,
    depth: int,
    points: int,
    side_points: int,
    measurements: int,
    noise: float,
    data_weight: float,
    seed: int,
) -> Problem:
    draws = Draws(_BOX, seed, _STREAM_EQUATION)
    low = [draws.side(1 + axis, axis, side_points) for axis in (0, 1)]
    faces = torch.cat([*low, *(_BOX.at_end(face, axis, upper=True) for axis, face in enumerate(low))])
    inside = torch.cat([draws.interior(points), faces, draws.side(3, 2, 4 * side_points)])
    measured = Draws(_BOX, seed, _STREAM_MEASURED).interior(measurements)
    error = torch.from_numpy(gaussian_rows(seed, _STREAM_NOISE, 0, measurements, 1).copy())
    u = exact(measured)[:, :1] + noise * error
    n_fit = round(_FIT_SHARE * measurements)
    to_judge = Draws(_BOX, seed, _STREAM_EVALUATION).interior(8192)

    def data(name: str, part: slice, weight: float) -> ResidualBlock:
        return ResidualBlock(
            name=name, residual=_temperature, points=measured[part], data=(u[part],), weight=weight
        )

    return Problem(
        name="heat_inverse",
        model=model,
        model_spec=_BOX.network(width, depth, outputs=2),
        blocks=[
            ResidualBlock(name="pde", residual=conduction, points=inside, data=(source(inside),)),
            data("measurements", slice(n_fit), data_weight),
            ResidualBlock(
                name="faces",
                residual=_conductivity,
                points=faces,
                data=(exact(faces)[:, 1:],),
                weight=data_weight,
            ),
        ],
        validation=[data("validation", slice(n_fit, None), 1.0)],
        evaluation=Evaluation(inputs=(to_judge,), reference=exact(to_judge)[:, 1:], outputs=(1,)),
    )


def _check(
    width: int,
    depth: int,
    points: int,
    side_points: int,
    measurements: int,
    noise: float,
    data_weight: float,
    seed: int,
) -> None:
    check_range("width", width, 1, 100_000)
    check_range("depth", depth, 1, 1000)
    check_range("points", points, 1, 10**7)
    check_range("side_points", side_points, 1, 10**6)
    check_range("measurements", measurements, 10, 10**7)
    check_range("noise", noise, 0.0, 1e3)
    check_range("data_weight", data_weight, 0.0, 1e12)
    check_seed(seed)


def build(
    weights: dict[str, Tensor],
    *,
    width: int = 100,
    depth: int = 5,
    points: int = 4096,
    side_points: int = 256,
    measurements: int = 2500,
    noise: float = 0.0,
    data_weight: float = 100.0,
    seed: int = 0,
) -> Problem:
    """Build the problem from trained weights.

    Args:
        weights: State of the network.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        points: Random points of the equation inside.
        side_points: Random points on each of the four faces, where the equation holds too; four times as many
            at t = 0.
        measurements: Random points where u is measured, a fifth of them for validation.
        noise: Standard deviation of the measurements.
        data_weight: Weight of the measurements, and of a on the faces; the equation has weight 1.
        seed: Seed of points and noise.

    Returns:
        The problem.

    Raises:
        ArgumentError: If an argument is out of range, or the weights do not fit the network.
    """
    sizes = (points, side_points, measurements, noise, data_weight, seed)
    _check(width, depth, *sizes)
    arguments = _BOX.network(width, depth, outputs=2).arguments
    model = trained(lambda: MLP(**arguments), weights, f"width = {width}, depth = {depth}")
    return _problem(model, width, depth, *sizes)


def training_task(
    settings: TrainingSettings,
    *,
    width: int = 100,
    depth: int = 5,
    points: int = 4096,
    side_points: int = 256,
    measurements: int = 2500,
    noise: float = 0.0,
    data_weight: float = 100.0,
    seed: int = 0,
) -> TrainingTask:
    """Physics-informed training on the same loss, float64.

    Args:
        settings: Training settings; ``batch_size`` counts points of every block that has more.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
        points: Random points of the equation inside.
        side_points: Random points on each of the four faces.
        measurements: Random points where u is measured.
        noise: Standard deviation of the measurements.
        data_weight: Weight of the measurements, and of a on the faces.
        seed: Seed of points and noise.

    Returns:
        The task.

    Raises:
        ArgumentError: If an argument is out of range.
    """
    sizes = (points, side_points, measurements, noise, data_weight, seed)
    _check(width, depth, *sizes)
    torch.manual_seed(settings.seed)
    model = MLP(**_BOX.network(width, depth, outputs=2).arguments)
    return TrainingTask.of(_problem(model, width, depth, *sizes), settings)
