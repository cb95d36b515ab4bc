"""Matrix-free products, explicit rows and restrictions against a dense Jacobian.

For networks and residuals of many kinds, in any tiling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsr_hpc.derivatives import along, second_along
from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.explicit import ExplicitJacobian
from lsr_hpc.jacobian.matrix_free import MatrixFreeJacobian
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.jacobian.probe import probe_block
from lsr_hpc.jacobian.restricted import RestrictedJacobian, choose_parameters
from lsr_hpc.models import MLP, BoundDeepONet, DeepONet
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.rows import local_rows, split_rows
from tests.jacobian.dense import RELATIVE, assert_equal, assert_single, dense_jacobian, panel


@dataclass
class Case:
    """A network with residual blocks, small enough for a dense Jacobian."""

    model: nn.Module
    blocks: list[ResidualBlock]

    def jacobian(self, columns_per_tile: int = 32, tile_bytes: int = 2**26) -> MatrixFreeJacobian:
        model = FunctionalModel(self.model)
        rows = split_rows(self.blocks, [probe_block(b, model) for b in self.blocks], 0.0, 0)[0]
        return MatrixFreeJacobian(
            model, local_rows(rows, 0, 1, model), columns_per_tile=columns_per_tile, tile_bytes=tile_bytes
        )

    def explicit(self, tile_bytes: int = 2**26, free: Tensor | None = None) -> ExplicitJacobian:
        model = FunctionalModel(self.model)
        rows = split_rows(self.blocks, [probe_block(b, model) for b in self.blocks], 0.0, 0)[0]
        return ExplicitJacobian(model, local_rows(rows, 0, 1, model), tile_bytes=tile_bytes, free=free)

    def dense(self) -> Tensor:
        return dense_jacobian(self.model, self.blocks)


def column(*values: float, n: int = 0) -> Tensor:
    return (
        torch.tensor(values, dtype=torch.float64)[:, None]
        if values
        else torch.linspace(-1, 1, n).double()[:, None]
    )


def fit(u: Field, x: Tensor, y: Tensor) -> Tensor:
    return u(x) - y


def mlp() -> Case:
    x = column(n=17)
    return Case(
        MLP([1, 8, 8, 1]), [ResidualBlock(name="fit", residual=fit, points=x, data=(torch.sin(3 * x),))]
    )


def deeponet() -> Case:
    operator = DeepONet([6, 10, 7], [1, 9, 7])
    y = column(n=13)
    return Case(
        BoundDeepONet(operator, torch.randn(6)),
        [
            ResidualBlock(name="start", residual=fit, points=column(0.0), data=(column(0.0),)),
            ResidualBlock(name="ode", residual=lambda u, y: along(u, y) - torch.cos(y), points=y, weight=0.3),
        ],
    )


def convolution() -> Case:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 3, stride=2), nn.GELU(),
                          nn.Flatten(), nn.Linear(8, 2))  # fmt: skip
    images, targets = torch.randn(6, 2, 7, 7).double(), torch.randn(6, 2).double()
    return Case(model, [ResidualBlock(name="images", residual=fit, points=images, data=(targets,))])


class TiedAutoencoder(nn.Module):
    """Decoder with the encoder's weight transposed, and one layer used twice under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(5, 4)
        self.middle = nn.Linear(4, 4)
        self.again = self.middle
        self.shift = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encoder(x))
        code = torch.tanh(self.again(torch.tanh(self.middle(code))))
        return code @ self.encoder.weight + self.shift


def tied() -> Case:
    x = torch.randn(11, 5).double()
    return Case(TiedAutoencoder(), [ResidualBlock(name="itself", residual=lambda u, x: u(x) - x, points=x)])


def pde() -> Case:
    def burgers(u: Field, x: Tensor) -> Tensor:
        return along(u, x, 1) + u(x) * along(u, x, 0) - 0.1 * second_along(u, x, 0)

    points = torch.rand(8, 2).double()
    return Case(
        MLP([2, 6, 1]),
        [
            ResidualBlock(name="burgers", residual=burgers, points=points),
            ResidualBlock(name="boundary", residual=lambda u, x: u(x)[:, 0], points=points[:3], weight=20.0),
        ],
    )


def vector_valued() -> Case:
    def cauchy_riemann(u: Field, x: Tensor, forcing: Tensor) -> Tensor:
        du, dv = along(u, x, 0), along(u, x, 1)
        return (
            torch.stack([du[:, 0] - dv[:, 1], dv[:, 0] + du[:, 1], u(x)[:, 0] * u(x)[:, 1]], dim=1) - forcing
        )

    points = torch.rand(10, 2).double()
    return Case(
        MLP([2, 6, 2], "gelu"),
        [
            ResidualBlock(
                name="system", residual=cauchy_riemann, points=points, data=(torch.randn(10, 3).double(),)
            )
        ],
    )


def partly_frozen() -> Case:
    case = mlp()
    for name, parameter in case.model.named_parameters():
        parameter.requires_grad_("layers.2" in name)
    return case


class Normalised(nn.Module):
    """Layer norm, batch norm with fixed statistics, and a scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.batch, self.layer = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.LayerNorm(6)
        self.last, self.scale = nn.Linear(6, 1), nn.Parameter(torch.tensor(1.5))
        self.batch.running_mean.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.last(torch.tanh(self.layer(self.batch(self.first(x)))))


def normalised() -> Case:
    x = torch.randn(8, 3).double()
    return Case(Normalised().eval(), [ResidualBlock(name="fit", residual=fit, points=x, data=(x[:, :1],))])


CASES: dict[str, Callable[[], Case]] = {
    "mlp": mlp, "deeponet": deeponet, "convolution": convolution, "tied": tied, "pde": pde,
    "vector-valued": vector_valued, "partly frozen": partly_frozen, "normalised": normalised,
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(3)
    return CASES[request.param]()


def test_product_with_j_is_the_dense_one(case: Case) -> None:
    jacobian, dense = case.jacobian(), case.dense()
    v = panel(5, jacobian.n_parameters)

    assert (jacobian.n_rows, jacobian.n_parameters) == tuple(dense.shape)
    assert_equal(jacobian.jv(v), v @ dense.T)


def test_product_with_the_transpose_is_the_dense_one(case: Case) -> None:
    jacobian, dense = case.jacobian(), case.dense()
    u = panel(5, jacobian.n_rows)

    assert_equal(jacobian.jtu(u), u @ dense)


def test_panels_in_float32_give_the_dense_products_in_float32(case: Case) -> None:
    dense = case.dense()
    assert_single(case.jacobian(), dense)
    assert_single(case.explicit(), dense)
    free = torch.arange(0, dense.shape[1], 2)
    assert_single(RestrictedJacobian(case.jacobian(), free), dense[:, free])


def test_a_residual_that_is_float64_alone_is_refused_in_words() -> None:
    matrix = torch.eye(2, dtype=torch.float64)
    points = torch.rand(6, 2).double()
    block = ResidualBlock(name="fit", residual=lambda u, x: u(x @ matrix), points=points)
    case = Case(MLP([2, 4, 1]), [block])
    jacobian = case.jacobian()

    with pytest.raises(JobError, match=r'subspace.precision = "float64"'):
        jacobian.jv(panel(2, jacobian.n_parameters).float())


def test_products_are_adjoint(case: Case) -> None:
    jacobian = case.jacobian()
    u, v = panel(4, jacobian.n_rows, 1), panel(4, jacobian.n_parameters, 2)

    left, right = u @ jacobian.jv(v).T, jacobian.jtu(u) @ v.T
    scale = float(u.norm() * jacobian.jv(v).norm())
    assert float((left - right).abs().max()) <= RELATIVE * scale


TILINGS: Sequence[tuple[int, int]] = [
    (32, 1),  # one point at a time
    (1, 2**26),  # one column at a time
    (3, 40_000),  # tiles that leave a remainder in both directions
]


@pytest.mark.parametrize(("columns_per_tile", "tile_bytes"), TILINGS)
def test_tiling_does_not_change_the_products(case: Case, columns_per_tile: int, tile_bytes: int) -> None:
    whole, tiled = case.jacobian(), case.jacobian(columns_per_tile, tile_bytes)
    v, u = panel(7, whole.n_parameters), panel(7, whole.n_rows)

    assert_equal(tiled.jv(v), whole.jv(v))
    assert_equal(tiled.jtu(u), whole.jtu(u))


@pytest.mark.parametrize("points_per_tile", [1, 2, 4, 8, 15, 16, 17])
def test_tile_edges_neither_skip_nor_repeat_a_row(points_per_tile: int) -> None:
    # 17 points; tiles of 16 leave a last one of few points, tiles of 1 make every point its own.
    torch.manual_seed(3)
    case = mlp()
    per_point = 8 * probe_block(case.blocks[0], FunctionalModel(case.model)).numbers_per_point * 4
    tiled, dense = case.jacobian(4, points_per_tile * per_point), case.dense()

    assert_equal(tiled.jv(torch.eye(tiled.n_parameters).double()), dense.T.contiguous())
    assert_equal(tiled.jtu(torch.eye(17).double()), dense)


def test_column_of_a_block_product_is_the_single_product(case: Case) -> None:
    jacobian = case.jacobian(columns_per_tile=4)
    v, u = panel(6, jacobian.n_parameters), panel(6, jacobian.n_rows)
    jv, jtu = jacobian.jv(v), jacobian.jtu(u)

    for i in range(6):
        assert_equal(jacobian.jv(v[i : i + 1]), jv[i : i + 1])
        assert_equal(jacobian.jtu(u[i : i + 1]), jtu[i : i + 1])


def test_products_are_repeatable_bit_for_bit(case: Case) -> None:
    jacobian = case.jacobian(3, 40_000)
    v, u = panel(5, jacobian.n_parameters), panel(5, jacobian.n_rows)

    assert torch.equal(jacobian.jv(v), jacobian.jv(v))
    assert torch.equal(jacobian.jtu(u), jacobian.jtu(u))


def test_products_without_columns_are_empty(case: Case) -> None:
    jacobian = case.jacobian()

    assert jacobian.jv(torch.zeros(0, jacobian.n_parameters).double()).shape == (0, jacobian.n_rows)
    assert jacobian.jtu(torch.zeros(0, jacobian.n_rows).double()).shape == (0, jacobian.n_parameters)


def test_tied_parameters_count_once_and_collect_every_use() -> None:
    torch.manual_seed(3)
    case = tied()
    jacobian = case.jacobian()
    module = case.model.double()
    # Reference by plain backward passes through the very module, which sums over all uses by itself.
    parameters = list(module.parameters())
    x = case.blocks[0].points
    residual = (module(x) - x).reshape(-1) / x.numel() ** 0.5
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(r, parameters, retain_graph=True)])
        for r in residual
    ]

    assert jacobian.n_parameters == sum(p.numel() for p in parameters)
    assert_equal(jacobian.jtu(torch.eye(len(residual)).double()), torch.stack(rows))


def test_a_rank_without_rows_adds_nothing() -> None:
    torch.manual_seed(3)
    case = mlp()
    model = FunctionalModel(case.model)
    rows = split_rows(case.blocks, [probe_block(b, model) for b in case.blocks], 0.0, 0)[0]
    nobody = [rank for rank in range(40) if local_rows(rows, rank, 40, model).n_rows == 0]
    empty = MatrixFreeJacobian(
        model, local_rows(rows, nobody[0], 40, model), columns_per_tile=4, tile_bytes=1
    )

    assert empty.jv(panel(3, empty.n_parameters)).shape == (3, 0)
    assert not empty.jtu(torch.zeros(3, 0).double()).any()


def test_ranks_together_make_the_whole_jacobian() -> None:
    torch.manual_seed(3)
    case = pde()
    model, dense = FunctionalModel(case.model), case.dense()
    rows = split_rows(case.blocks, [probe_block(b, model) for b in case.blocks], 0.0, 0)[0]
    v, u = panel(3, dense.shape[1]), panel(3, dense.shape[0])
    jv, jtu, first = [], torch.zeros(3, dense.shape[1]).double(), 0
    for rank in range(4):
        local = local_rows(rows, rank, 4, model)
        part = MatrixFreeJacobian(model, local, columns_per_tile=2, tile_bytes=1000)
        assert local.first_row == first
        jv.append(part.jv(v))
        jtu += part.jtu(u[:, first : first + local.n_rows])
        first += local.n_rows

    assert_equal(torch.cat(jv, dim=1), v @ dense.T)
    assert_equal(jtu, u @ dense)


@pytest.mark.parametrize("columns_per_chunk", [1, 2, 6, 7, 100])
def test_chunks_of_the_exchange_do_not_change_the_products(columns_per_chunk: int, comm_self: Any) -> None:
    # 7 columns: chunks of 6 leave a last one of a single column.
    torch.manual_seed(3)
    case = vector_valued()
    dense = case.dense().numpy()
    jacobian = DistributedJacobian(comm_self, case.jacobian(), columns_per_chunk)
    v, u = panel(7, dense.shape[1]).numpy(), panel(7, dense.shape[0]).numpy()

    np.testing.assert_allclose(
        jacobian.jv(v), v @ dense.T, rtol=0, atol=RELATIVE * np.linalg.norm(v @ dense.T)
    )
    np.testing.assert_allclose(jacobian.jtu(u), u @ dense, rtol=0, atol=RELATIVE * np.linalg.norm(u @ dense))
    counter = jacobian.counter
    assert (counter.jv_calls, counter.jv_columns, counter.jtu_calls, counter.jtu_columns) == (1, 7, 1, 7)
    assert counter.seconds > 0


@pytest.mark.parametrize("layout", ["transposed", "strided", "read-only"])
def test_panels_of_any_layout_are_taken(layout: str, comm_self: Any) -> None:
    torch.manual_seed(3)
    case = mlp()
    dense = case.dense().numpy()
    jacobian = DistributedJacobian(comm_self, case.jacobian(), 3)
    v = panel(4, dense.shape[1]).numpy()
    if layout == "transposed":
        given = np.asfortranarray(v)
    elif layout == "strided":
        given = np.repeat(v, 2, axis=0)[::2]
    else:
        given = v.copy()
        given.flags.writeable = False

    np.testing.assert_allclose(jacobian.jv(given), v @ dense.T, rtol=0, atol=1e-12)


def test_user_network_and_data_stay_as_they_were() -> None:
    torch.manual_seed(3)
    case = normalised()
    state = {n: t.clone() for n, t in case.model.state_dict().items()}
    points = case.blocks[0].points.clone()
    jacobian = case.jacobian()
    jacobian.jtu(jacobian.jv(panel(3, jacobian.n_parameters)))

    for name, tensor in case.model.state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])
    assert all(p.grad is None and p.requires_grad for p in case.model.parameters())
    assert torch.equal(points, case.blocks[0].points)


@pytest.mark.parametrize("tile_bytes", [1, 30_000, 2**26])
def test_explicit_rows_are_the_dense_ones(case: Case, tile_bytes: int) -> None:
    explicit, dense = case.explicit(tile_bytes), case.dense()
    v, u = panel(5, explicit.n_parameters), panel(5, explicit.n_rows)

    assert_equal(explicit.matrix, dense)
    assert_equal(explicit.jv(v), v @ dense.T)
    assert_equal(explicit.jtu(u), u @ dense)


@pytest.mark.parametrize("tile_bytes", [1, 2**26])
@pytest.mark.parametrize("share", ["some of every tensor", "the last tensor", "one number"])
def test_explicit_rows_hold_the_free_columns_alone(case: Case, share: str, tile_bytes: int) -> None:
    dense = case.dense()
    n_parameters, last = dense.shape[1], list(FunctionalModel(case.model).layout.ranges.values())[-1]
    free = {
        "some of every tensor": torch.arange(1, n_parameters, 3),
        "the last tensor": torch.arange(last.start, last.stop),
        "one number": torch.tensor([n_parameters // 2]),
    }[share]
    explicit = case.explicit(tile_bytes, free)
    v, u = panel(5, len(free)), panel(5, explicit.n_rows)

    assert (explicit.n_rows, explicit.n_parameters) == (len(dense), len(free))
    # A number on which no row depends leaves nothing to compare its rounding with.
    allowed = RELATIVE * float(dense.norm())
    assert explicit.matrix.shape == (len(dense), len(free))
    assert float((explicit.matrix - dense[:, free]).norm()) <= allowed
    assert float((explicit.jv(v) - v @ dense[:, free].T).norm()) <= allowed * float(v.norm())
    assert float((explicit.jtu(u) - u @ dense[:, free]).norm()) <= allowed * float(u.norm())


def test_free_columns_are_those_at_the_start_whatever_state_was_looked_at_before() -> None:
    torch.manual_seed(3)
    case = tied()
    model = FunctionalModel(case.model)
    rows = split_rows(case.blocks, [probe_block(b, model) for b in case.blocks], 0.0, 0)[0]
    model.field(2 * model.theta0)(case.blocks[0].points)
    explicit = ExplicitJacobian(
        model, local_rows(rows, 0, 1, model), tile_bytes=2**26, free=torch.arange(5, 25)
    )

    assert_equal(explicit.matrix, case.dense()[:, 5:25])


def test_restriction_takes_columns_of_the_dense_jacobian(case: Case) -> None:
    jacobian, dense = case.jacobian(), case.dense()
    free = torch.arange(1, jacobian.n_parameters, 3)
    restricted = RestrictedJacobian(jacobian, free)
    v, u = panel(5, len(free)), panel(5, jacobian.n_rows)

    assert (restricted.n_rows, restricted.n_parameters) == (jacobian.n_rows, len(free))
    assert_equal(restricted.jv(v), v @ dense[:, free].T)
    assert_equal(restricted.jtu(u), u @ dense[:, free])


def test_parameters_are_chosen_by_name_and_by_chance() -> None:
    layout = FunctionalModel(MLP([1, 8, 8, 1])).layout

    by_name = choose_parameters(layout, ["layers.2.*", "*.4.bias"], 1.0, seed=0)
    assert {layout.owner(int(i)) for i in by_name} == {"layers.2.weight", "layers.2.bias", "layers.4.bias"}
    assert len(by_name) == 64 + 8 + 1
    by_chance = choose_parameters(layout, [], 0.3, seed=0)
    # 97 numbers; four standard deviations of the binomial.
    assert abs(len(by_chance) - 0.3 * 97) <= 4 * (97 * 0.3 * 0.7) ** 0.5
    assert not torch.equal(by_chance, choose_parameters(layout, [], 0.3, seed=1))
    both = choose_parameters(layout, ["layers.2.weight"], 0.5, seed=0)
    assert {layout.owner(int(i)) for i in both} == {"layers.2.weight"}
    with pytest.raises(
        JobError, match=r"'layer.2' fits no trainable parameter; their names are like layers.0.weight"
    ):
        choose_parameters(layout, ["layer.2"], 1.0, seed=0)
    with pytest.raises(JobError, match="leaves no parameter free"):
        choose_parameters(layout, ["layers.4.bias"], 1e-6, seed=0)
