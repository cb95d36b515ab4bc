"""Which representation of J is taken, and that the predicted counts are those of dense linear algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsr_hpc.errors import JobError
from lsr_hpc.jacobian.choice import Candidate, candidates, choose
from lsr_hpc.jacobian.examine import NotFactored
from lsr_hpc.jacobian.explicit import ExplicitJacobian
from lsr_hpc.jacobian.retreat import RetreatingJacobian
from lsr_hpc.models import MLP
from lsr_hpc.plan import workload
from lsr_hpc.prepare import PreparedProblem, prepare
from lsr_hpc.problem import Problem, ResidualBlock
from lsr_hpc.settings import ComputeSettings, RefineSettings, SubspaceSettings

MIB = 2**20
SLOW = Candidate("matrix_free", 100.0, 0)
LEAN = Candidate("factored", 50.0, 0, hold=False)
KEPT = Candidate("factored", 30.0, 10 * MIB)
DENSE = Candidate("explicit", 20.0, 100 * MIB)
ALL = [SLOW, DENSE, KEPT, LEAN]


@pytest.mark.parametrize(
    ("wanted", "free_mib", "expected"),
    [
        ("auto", 1000, DENSE),
        ("auto", 100, KEPT),  # the matrix would take all of it
        ("auto", 12, LEAN),  # and the factors more than their share
        ("factored", 1000, KEPT),
        ("factored", 1, LEAN),
        ("matrix_free", 1000, SLOW),
        ("explicit", 1000, DENSE),
        ("auto", -5, LEAN),
    ],
)
def test_cheapest_that_fits_is_taken(wanted: str, free_mib: int, expected: Candidate) -> None:
    assert choose(ALL, wanted, free_mib * MIB) is expected


def test_explicit_jacobian_that_does_not_fit_is_refused_with_its_size() -> None:
    with pytest.raises(JobError, match="holds 100 MiB per rank"):
        choose(ALL, "explicit", 100 * MIB)


def test_problem_without_factored_form_is_taken_matrix_free() -> None:
    refused = Candidate("factored", 0.0, 0, why_not="a convolution")
    assert choose([SLOW, refused], "factored", 1000 * MIB) is SLOW
    assert choose([SLOW, refused], "auto", 1000 * MIB) is SLOW


def misfit(u: Any, x: Tensor) -> Tensor:
    return u(x) - torch.sin(3 * x)


def prepared(
    comm: Any,
    jacobian: str,
    model: nn.Module | None = None,
    rows: int = 400,
    residual: Callable[..., Tensor] = misfit,
    **subspace: Any,
) -> PreparedProblem:
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, rows, dtype=torch.float64)[:, None]

    problem = Problem(
        name="sine",
        model=model or MLP([1, 64, 64, 1]),
        blocks=[ResidualBlock(name="fit", residual=residual, points=x)],
    )
    settings = RefineSettings(
        subspace=SubspaceSettings(rank=64, **subspace),
        compute=ComputeSettings(jacobian=jacobian, device="cpu"),
    )
    return prepare(problem, comm, settings)


@pytest.mark.parametrize("fraction", [1.0, 0.1])
@pytest.mark.parametrize("name", ["matrix_free", "factored", "explicit"])
def test_every_representation_gives_the_same_products(name: str, fraction: float, comm_self: Any) -> None:
    made = prepared(comm_self, name, parameter_fraction=fraction)
    reference = prepared(comm_self, "matrix_free", parameter_fraction=fraction)
    assert made.representation.name == name
    generator = torch.Generator().manual_seed(1)
    size, n_rows = made.jacobian.local.n_parameters, made.jacobian.local.n_rows
    v = torch.randn(3, size, dtype=torch.float64, generator=generator).numpy()
    u = torch.randn(3, n_rows, dtype=torch.float64, generator=generator).numpy()

    for actual, expected in (
        (made.jacobian.jv(v), reference.jacobian.jv(v)),
        (made.jacobian.jtu(u), reference.jacobian.jtu(u)),
    ):
        difference = torch.from_numpy(actual - expected).norm()
        assert float(difference) <= 1e-12 * float(torch.from_numpy(expected).norm())


def test_memory_of_an_explicit_jacobian_is_that_of_the_matrix(comm_self: Any) -> None:
    made = prepared(comm_self, "explicit")
    assert made.representation.held_bytes == 8 * made.model.layout.size * 400
    assert made.plan.items["explicit J"] == made.representation.held_bytes


def test_memory_of_an_explicit_jacobian_is_that_of_the_free_columns(comm_self: Any) -> None:
    made = prepared(comm_self, "explicit", parameters=("layers.2.*",))
    n_free = 64 * 64 + 64
    assert made.representation.held_bytes == 8 * n_free * 400
    assert isinstance(made.jacobian.local, RetreatingJacobian)
    assert isinstance(made.jacobian.local.operator, ExplicitJacobian)
    assert made.jacobian.local.operator.matrix.shape == (made.fit.n_rows, n_free)


def test_network_without_linear_layers_falls_back_and_says_why(
    comm_self: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.amplitude = nn.Parameter(torch.ones(200) / 200)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cos(x * torch.arange(200)) @ self.amplitude[:, None]

    made = prepared(comm_self, "factored", Waves())
    assert made.representation.name == "matrix_free"
    assert "J is not factored: residual block 'fit': parameter 'amplitude'" in caplog.text


def test_residual_that_cannot_be_taken_point_by_point_stays_matrix_free(comm_self: Any) -> None:
    def weighted(u: Any, x: Tensor) -> Tensor:
        weight = torch.ones_like(x)
        weight[x > 0.5] = 2.0
        return weight * (u(x) - torch.sin(3 * x))

    made = prepared(comm_self, "auto", residual=weighted)
    assert made.representation.name == "matrix_free"
    with pytest.raises(JobError, match="is not possible: residual block 'fit' cannot be evaluated point by"):
        prepared(comm_self, "explicit", residual=weighted)


def test_memory_is_that_of_the_rank_with_most_rows(comm_self: Any) -> None:
    made = prepared(comm_self, "explicit")
    load = workload(made.settings)
    held = [
        c.held_bytes
        for n in (1, 3)
        for c in candidates(
            made.fit_rows, made.held_rows, NotFactored(""), "", made.model.layout.size, n, load
        )
        if c.name == "explicit"
    ]
    # 320 fitted and 80 held-out rows on three ranks: 107 and 27 on the fullest.
    assert held == [8 * made.model.layout.size * 400, 8 * made.model.layout.size * (107 + 27)]
