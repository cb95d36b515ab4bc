"""Factored products against a dense Jacobian, for residuals of many kinds, and refusals in words."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, hessian, jacfwd, jacrev, jvp

from lsr_hpc.derivatives import along, second_along
from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian import examine, gram, recording
from lsr_hpc.jacobian.examine import NotFactored, examine_blocks
from lsr_hpc.jacobian.explicit import ExplicitJacobian
from lsr_hpc.jacobian.factored import BlockStructure, FactoredJacobian
from lsr_hpc.jacobian.matrix_free import MatrixFreeJacobian
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.jacobian.probe import BlockProbe, probe_block
from lsr_hpc.models import MLP, BoundDeepONet, DeepONet, ModifiedMLP
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.rows import local_rows, split_rows
from tests.jacobian.dense import RELATIVE, assert_equal, assert_single, dense_jacobian, panel


class Case:
    """A network with residual blocks, small enough for a dense Jacobian."""

    def __init__(self, model: nn.Module, *blocks: ResidualBlock, probe: BlockProbe | None = None) -> None:
        self.model = model
        self.blocks = blocks
        self.functional = FunctionalModel(model)
        self.probes = [probe or probe_block(b, self.functional) for b in blocks]
        self.rows = local_rows(split_rows(blocks, self.probes, 0.0, 0)[0], 0, 1, self.functional)

    @cached_property
    def structures(self) -> dict[str, BlockStructure]:
        found = examine_blocks(self.blocks, self.probes, self.functional)
        assert not isinstance(found, NotFactored), found.reason
        return found

    def reason(self) -> str:
        found = examine_blocks(self.blocks, self.probes, self.functional)
        assert isinstance(found, NotFactored)
        return found.reason

    def jacobian(self, tile_bytes: int = 2**26, hold: bool = True) -> FactoredJacobian:
        return FactoredJacobian(self.functional, self.rows, self.structures, tile_bytes=tile_bytes, hold=hold)

    @cached_property
    def dense(self) -> Tensor:
        return dense_jacobian(self.model, self.blocks)


def points(n: int, d: int = 2) -> Tensor:
    return torch.rand(n, d).double()


def block(residual: Callable[..., Tensor], x: Tensor, *data: Tensor, **options: Any) -> ResidualBlock:
    return ResidualBlock(name=options.pop("name", "block"), residual=residual, points=x, data=data, **options)


def fit(u: Field, x: Tensor, y: Tensor) -> Tensor:
    return u(x) - y


def burgers(u: Field, x: Tensor) -> Tensor:
    return along(u, x, 1) + u(x) * along(u, x, 0) - 0.1 * second_along(u, x, 0)


class Tied(nn.Module):
    """One layer used twice under two names; the first weight also transposed, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.middle = nn.Linear(5, 4), nn.Linear(4, 4)
        self.again = self.middle
        self.shift = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.again(torch.tanh(self.middle(torch.tanh(self.encoder(x))))))
        return code @ self.encoder.weight + self.shift


class Coefficient(nn.Module):
    """A field and the unknown coefficient of its equation, as a second output."""

    def __init__(self) -> None:
        super().__init__()
        self.field, self.nu = MLP([2, 8, 1]), nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.field(x), self.nu.expand(len(x), 1)], dim=1)


class NormalisedBranch(nn.Module):
    """A branch with layer norm between its layers, for one input function; a scale behind the product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 5)
        self.trunk, self.scale = MLP([1, 9, 5]), nn.Parameter(torch.tensor(1.5))
        self.register_buffer("h", torch.randn(1, 6))

    def forward(self, y: Tensor) -> Tensor:
        branch = self.second(torch.tanh(self.norm(self.first(self.h))))
        return (self.scale * branch * self.trunk(y)).sum(dim=1, keepdim=True)


class Tokens(nn.Module):
    """The same layers at every position of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 20), nn.Linear(20, 18)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))).mean(dim=1)


def mlp() -> Case:
    x = points(17)
    return Case(MLP([2, 20, 19, 1]), block(fit, x, torch.sin(3 * x[:, :1])))


def modified_mlp() -> Case:
    return Case(ModifiedMLP([2, 7, 7, 1]), block(burgers, points(9)))


def bound_deeponet() -> Case:
    y = points(13, 1)
    return Case(
        BoundDeepONet(DeepONet([6, 10, 11, 7], [1, 9, 7]), torch.randn(6)),
        block(fit, y[:1], y[:1], name="start"),
        block(lambda u, y: along(u, y) - torch.cos(y), y, name="ode", weight=0.3),
    )


def bound_operator_of_a_pde() -> Case:
    """Second derivatives around branch layers that no point enters."""
    operator = DeepONet([6, 8, 8, 7], [2, 9, 9, 7], modified=True)
    return Case(BoundDeepONet(operator, torch.randn(6)), block(burgers, points(9)))


def deeponet() -> Case:
    h, y = torch.randn(12, 6).double(), points(12, 1)

    def ode(u: Field, y: Tensor, h: Tensor) -> Tensor:
        return along(lambda z: u(h, z), y) - h[:, :1]

    return Case(DeepONet([6, 10, 7], [1, 9, 7]), block(ode, y, h))


def several_outputs() -> Case:
    def cauchy_riemann(u: Field, x: Tensor, forcing: Tensor) -> Tensor:
        du, dv = along(u, x, 0), along(u, x, 1)
        rows = [du[:, 0] - dv[:, 1], dv[:, 0] + du[:, 1], u(x)[:, 0] * u(x)[:, 1]]
        return torch.stack(rows, dim=1) - forcing

    return Case(MLP([2, 18, 18, 2], "gelu"), block(cauchy_riemann, points(10), torch.randn(10, 3).double()))


def tied() -> Case:
    return Case(Tied(), block(lambda u, x: u(x) - x, torch.randn(11, 5).double()))


def at_several_points() -> Case:
    return Case(MLP([2, 8, 7, 1]), block(lambda u, x: u(x) * u(0 * x) - u(x + 1) + u(x) ** 2, points(8)))


def anchored() -> Case:
    # The network at one fixed point and on a fixed grid, in every row: weights with and without points.
    def residual(u: Field, x: Tensor) -> Tensor:
        grid = torch.linspace(0, 1, 8, dtype=torch.float64).reshape(4, 2)
        return u(x) - u(torch.zeros(1, 2).double()) + u(x) * u(grid).square().mean()

    return Case(MLP([2, 8, 7, 1]), block(residual, points(8)))


def derivative_at_anchor() -> Case:
    def residual(u: Field, x: Tensor) -> Tensor:
        return u(x) * along(u, torch.full((1, 2), 0.3).double())

    return Case(MLP([2, 8, 1]), block(residual, points(8)))


def nonlinear_pde() -> Case:
    x = points(8)
    return Case(
        MLP([2, 17, 17, 1]),
        block(burgers, x, name="burgers"),
        block(lambda u, x: u(x)[:, 0], x[:3], name="boundary", weight=20.0),
    )


def laplacian() -> Case:
    return Case(
        MLP([2, 17, 17, 1]), block(lambda u, x: second_along(u, x, 0) + second_along(u, x, 1), points(9))
    )


def mixed_derivative() -> Case:
    return Case(
        MLP([2, 8, 7, 1]), block(lambda u, x: along(lambda z: along(u, z, 0), x, 1) - u(x), points(9))
    )


def directions() -> Case:
    # A direction that is the same for all points, and one of their own.
    def residual(u: Field, x: Tensor, normal: Tensor) -> Tensor:
        fixed = torch.tensor([[0.6, 0.8]], dtype=torch.float64).expand(len(x), 2)
        return jvp(u, (x,), (fixed,))[1] + u(x) * jvp(u, (x,), (normal,))[1]

    return Case(MLP([2, 8, 7, 1]), block(residual, points(9), torch.randn(9, 2).double()))


def reverse_mode() -> Case:
    def residual(u: Field, x: Tensor) -> Tensor:
        gradient = grad(lambda z: u(z).sum())
        second = grad(lambda z: gradient(z)[:, 0].sum())(x)[:, 0]
        return torch.stack([gradient(x)[:, 1] * u(x)[:, 0], second], dim=1)

    # The probe's flop counter does not take derivatives in reverse mode.
    model = MLP([2, 18, 18, 1])
    touched = torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.bool)
    return Case(model, block(residual, points(7)), probe=BlockProbe(2, 1, 1000, touched))


def per_point(derivative: Callable[..., Any]) -> Callable[[], Case]:
    """Derivatives of the field at single points, vectorised by the residual itself."""

    def residual(u: Field, x: Tensor) -> Tensor:
        second = torch.func.vmap(derivative(lambda z: u(z.unsqueeze(0))[0, 0]))(x)
        return second.diagonal(dim1=1, dim2=2).sum(dim=1) + u(x)[:, 0] * second[:, 0, 1]

    return lambda: Case(MLP([2, 8, 7, 1]), block(residual, points(6)))


def coefficient() -> Case:
    def residual(u: Field, x: Tensor) -> Tensor:
        def w(z: Tensor) -> Tensor:
            return u(z)[:, :1]

        return along(w, x, 1) - u(x)[:, 1:] * second_along(w, x, 0)

    return Case(Coefficient(), block(residual, points(8)))


def layer_norm() -> Case:
    model = nn.Sequential(nn.Linear(3, 18), nn.LayerNorm(18), nn.Tanh(), nn.Linear(18, 17), nn.Linear(17, 2))
    return Case(model, block(lambda u, x: u(x) ** 2, torch.randn(8, 3).double()))


def normalised_branch() -> Case:
    return Case(NormalisedBranch(), block(lambda u, y: along(u, y) + u(y), points(9, 1)))


def sequences() -> Case:
    return Case(Tokens(), block(lambda u, x: u(x) ** 2, torch.randn(6, 4, 3).double()))


def without_bias() -> Case:
    model = nn.Sequential(
        nn.Linear(2, 18, bias=False), nn.Tanh(), nn.Linear(18, 18), nn.Tanh(), nn.Linear(18, 1)
    )
    return Case(model, block(burgers, points(7)))


def partly_frozen() -> Case:
    model = MLP([2, 8, 7, 1])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.2" in name or name == "layers.4.bias")
    return Case(model, block(burgers, points(7)))


def one_point() -> Case:
    return Case(MLP([2, 8, 1]), block(burgers, points(1)))


def bound_deeponet_at_one_point() -> Case:
    y = points(1, 1)
    return Case(BoundDeepONet(DeepONet([6, 10, 7], [1, 9, 7]), torch.randn(6)), block(fit, y, y))


CASES: dict[str, Callable[[], Case]] = {
    "MLP": mlp,
    "modified MLP": modified_mlp,
    "bound DeepONet": bound_deeponet,
    "bound operator of a PDE": bound_operator_of_a_pde,
    "DeepONet": deeponet,
    "several outputs": several_outputs,
    "tied": tied,
    "at several points": at_several_points,
    "anchored": anchored,
    "derivative at anchor": derivative_at_anchor,
    "nonlinear PDE": nonlinear_pde,
    "Laplacian": laplacian,
    "mixed derivative": mixed_derivative,
    "directions": directions,
    "reverse mode": reverse_mode,
    "hessian": per_point(hessian),
    "forward over forward": per_point(lambda f: jacfwd(jacfwd(f))),
    "reverse over forward": per_point(lambda f: jacrev(jacfwd(f))),
    "coefficient": coefficient,
    "layer norm": layer_norm,
    "normalised branch": normalised_branch,
    "sequences": sequences,
    "without bias": without_bias,
    "partly frozen": partly_frozen,
    "one point": one_point,
    "bound DeepONet at one point": bound_deeponet_at_one_point,
}


@cache
def made(name: str) -> Case:
    torch.manual_seed(3)
    return CASES[name]()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return made(request.param)


def test_products_are_the_dense_ones(case: Case) -> None:
    jacobian, dense = case.jacobian(), case.dense
    v, u = panel(5, jacobian.n_parameters), panel(5, jacobian.n_rows)

    assert (jacobian.n_rows, jacobian.n_parameters) == tuple(dense.shape)
    assert_equal(jacobian.jv(v), v @ dense.T)
    assert_equal(jacobian.jtu(u), u @ dense)


def test_every_entry_is_the_dense_one(case: Case) -> None:
    # Random panels weigh all columns alike; here a wrong column of a small parameter shows by itself.
    jacobian, dense = case.jacobian(), case.dense

    by_columns = jacobian.jv(torch.eye(jacobian.n_parameters).double()).T
    by_rows = jacobian.jtu(torch.eye(jacobian.n_rows).double())
    for columns in case.functional.layout.ranges.values():
        # Gradients that cancel, as a bias before a mean, leave rounding of the whole row.
        allowed = RELATIVE * float(dense[:, columns].norm()) + 1e-14 * float(dense.norm())
        assert float((by_columns - dense)[:, columns].norm()) <= allowed
        assert float((by_rows - dense)[:, columns].norm()) <= allowed


def test_products_are_adjoint_and_the_matrix_free_ones(case: Case) -> None:
    jacobian = case.jacobian()
    reference = MatrixFreeJacobian(case.functional, case.rows, columns_per_tile=8, tile_bytes=2**26)
    u, v = panel(4, jacobian.n_rows, 1), panel(4, jacobian.n_parameters, 2)
    jv, jtu = jacobian.jv(v), jacobian.jtu(u)

    assert float((u @ jv.T - jtu @ v.T).abs().max()) <= RELATIVE * float(u.norm() * jv.norm())
    assert_equal(jv, reference.jv(v))
    assert_equal(jtu, reference.jtu(u))


@pytest.mark.parametrize("hold", [True, False])
def test_tiles_of_one_point_give_the_same_products(case: Case, hold: bool) -> None:
    whole, tiled = case.jacobian(), case.jacobian(1, hold)
    v, u = panel(7, whole.n_parameters), panel(7, whole.n_rows)

    for _ in range(2 if hold else 1):  # the second time from what is held
        assert_equal(tiled.jv(v), whole.jv(v))
        assert_equal(tiled.jtu(u), whole.jtu(u))


@pytest.mark.parametrize("points_per_tile", [2, 5, 8, 16, 17])
def test_tile_edges_neither_skip_nor_repeat_a_row(points_per_tile: int) -> None:
    # 17 points in tiles of 16 are tiles of 8 and 9; tiles of 2 leave a last one of a single point.
    torch.manual_seed(3)
    case = mlp()
    per_point_bytes = 8 * case.structures["block"].recording_numbers_per_point
    tiled, dense = case.jacobian(points_per_tile * per_point_bytes), case.dense

    assert_equal(tiled.jv(torch.eye(tiled.n_parameters).double()), dense.T.contiguous())
    assert_equal(tiled.jtu(torch.eye(17).double()), dense)


@pytest.mark.parametrize("step_numbers", [1, 50, 700])
def test_small_steps_give_the_same_products(step_numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    case = several_outputs()
    jacobian = case.jacobian()
    v, u = panel(7, jacobian.n_parameters), panel(7, jacobian.n_rows)
    jv, jtu = jacobian.jv(v), jacobian.jtu(u)
    monkeypatch.setattr("lsr_hpc.jacobian.factors._STEP_NUMBERS", step_numbers)

    assert_equal(jacobian.jv(v), jv)
    assert_equal(jacobian.jtu(u), jtu)


def test_products_are_repeatable_bit_for_bit(case: Case) -> None:
    jacobian, again = case.jacobian(), case.jacobian(hold=False)
    v, u = panel(5, jacobian.n_parameters), panel(5, jacobian.n_rows)

    assert torch.equal(jacobian.jv(v), jacobian.jv(v))
    assert torch.equal(jacobian.jtu(u), again.jtu(u))


def test_panels_of_any_layout_are_taken() -> None:
    torch.manual_seed(3)
    case = mlp()
    jacobian = case.jacobian()
    v, u = panel(jacobian.n_parameters, 4).T, panel(8, jacobian.n_rows)[::2]

    assert_equal(jacobian.jv(v), v @ case.dense.T)
    assert_equal(jacobian.jtu(u), u @ case.dense)


def test_one_refused_block_refuses_the_problem() -> None:
    torch.manual_seed(3)
    control: Callable[..., Tensor] = lambda u, x: u(x) if float(x.sum()) > -1 else -u(x)  # noqa: E731
    x = points(6)
    reason = Case(MLP([2, 8, 1]), block(burgers, x, name="good"), block(control, x, name="bad")).reason()

    assert "'bad'" in reason


@pytest.mark.parametrize("numbers", [1, 2**22])
def test_the_gram_matrix_is_the_dense_one(
    case: Case, numbers: int, comm_self: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram, "_NUMBERS", numbers)
    rows, way = gram.gram_rows(DistributedJacobian(comm_self, case.jacobian(), 7))
    assert_equal(rows, case.dense @ case.dense.T)
    # Tied and transposed uses of a weight have mixed terms, which only products know.
    assert way in {"the factors of linear layers", "products with J and J^T"}


def test_factors_make_the_gram_matrix_of_plain_networks(comm_self: Any) -> None:
    for name in ("MLP", "modified MLP", "bound DeepONet", "nonlinear PDE", "several outputs"):
        case = made(name)
        assert gram.gram_rows(DistributedJacobian(comm_self, case.jacobian(), 7))[1].startswith("the factors")
    explicit = ExplicitJacobian(case.functional, case.rows, tile_bytes=2**20)
    rows, way = gram.gram_rows(DistributedJacobian(comm_self, explicit, 7))
    assert way == "the rows of J"
    assert_equal(rows, case.dense @ case.dense.T)


@pytest.mark.parametrize("hold", [True, False])
def test_panels_in_float32_give_the_dense_products_in_float32(case: Case, hold: bool) -> None:
    jacobian = case.jacobian(hold=hold)
    assert_single(jacobian, case.dense)
    # In float64 all is as before.
    v = panel(5, jacobian.n_parameters)
    assert_equal(jacobian.jv(v), v @ case.dense.T)


def test_no_columns_and_no_rows(case: Case) -> None:
    jacobian = case.jacobian()
    nothing = FactoredJacobian(
        case.functional, replace(case.rows, segments=()), case.structures, tile_bytes=2**20, hold=True
    )

    assert jacobian.jv(torch.zeros(0, jacobian.n_parameters).double()).shape == (0, jacobian.n_rows)
    assert jacobian.jtu(torch.zeros(0, jacobian.n_rows).double()).shape == (0, jacobian.n_parameters)
    assert nothing.jv(panel(3, nothing.n_parameters)).shape == (3, 0)
    assert not nothing.jtu(torch.zeros(3, 0).double()).any()


def test_only_what_is_needed_is_held() -> None:
    torch.manual_seed(3)
    width = 20
    plain = Case(MLP([2, width, width, 1]), block(lambda u, x: u(x), points(9)))
    twice = Case(plain.model, block(lambda u, x: u(x) + u(x) ** 2, points(9)))
    laplace = Case(plain.model, block(lambda u, x: second_along(u, x, 0) + second_along(u, x, 1), points(9)))

    inputs, outputs = 2 + 2 * width, 2 * width + 1
    assert plain.structures["block"].numbers_per_point == inputs + outputs
    assert plain.structures["block"].flops_per_point == 2 * (3 * width + width**2 + outputs)
    # Two evaluations at the same point are one; a Laplacian in two dimensions has four channels, not nine.
    assert twice.structures["block"].numbers_per_point == inputs + outputs
    assert laplace.structures["block"].numbers_per_point <= 4 * (inputs + outputs)


def test_the_branch_of_a_bound_deeponet_is_evaluated_once() -> None:
    torch.manual_seed(3)
    case = bound_deeponet()
    structure = case.structures["start"]
    trunk = (1 + 9) + (9 + 7)

    assert (structure.shared.inside, structure.shared.outputs) == ((0, 1), (2,))
    assert structure.numbers_per_point == trunk + 7


def test_a_recording_leaves_no_graph_behind() -> None:
    torch.manual_seed(3)
    case = nonlinear_pde()
    jacobian = case.jacobian(hold=False)
    seen: list[weakref.ref[Any]] = []
    forward = recording._Recorded.forward

    def watched(*args: Any) -> Tensor:
        seen.append(weakref.ref(args[-1]))
        return forward(*args)

    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recording._Recorded, "forward", staticmethod(watched))
            jacobian.jv(panel(2, jacobian.n_parameters))
        assert seen
        assert all(tape() is None for tape in seen)
    finally:
        gc.enable()


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.matrix = nn.Linear(2, 12), nn.Parameter(torch.randn(12, 12))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.tanh(self.first(x)) @ self.matrix).sum(dim=1, keepdim=True)


def test_a_matrix_used_by_hand_is_refused_by_name() -> None:
    torch.manual_seed(3)
    reason = Case(ByHand(), block(lambda u, x: u(x), points(6))).reason()

    assert "'matrix'" in reason
    assert "matmul" in reason
    assert "144 numbers" in reason


def test_a_convolution_is_refused_by_name() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(2, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 25, 1))
    reason = Case(model, block(lambda u, x: u(x), torch.randn(4, 2, 7, 7).double())).reason()

    assert "'0.weight' (layer '0', a Conv2d) is used by conv2d" in reason


def test_a_residual_that_vmap_cannot_take_is_refused() -> None:
    torch.manual_seed(3)
    residual: Callable[..., Tensor] = lambda u, x: u(x) if float(x.sum()) > -1 else -u(x)  # noqa: E731
    reason = Case(MLP([2, 8, 1]), block(residual, points(6))).reason()

    assert "torch.func.vmap" in reason


class HidesAWeight(nn.Module):
    """Uses a weight as a compiled extension would: no function that torch lets others see is called on it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 12), nn.Linear(12, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        with torch._C.DisableTorchFunction():
            return hidden @ self.second.weight.T


def test_a_use_that_torch_does_not_show_is_caught_by_the_probe() -> None:
    torch.manual_seed(3)
    reason = Case(HidesAWeight(), block(lambda u, x: u(x), points(6))).reason()

    assert "do not make up its Jacobian" in reason


@pytest.mark.parametrize("fault", ["gradient", "input", "lost"])
def test_a_wrong_recording_is_caught_by_the_probe(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    case = nonlinear_pde()
    record = recording.record

    def wrong(*args: Any, **kwargs: Any) -> recording.Recording:
        true = record(*args, **kwargs)
        if fault == "gradient":
            return replace(true, gradients=(true.gradients[0] * (1 + 1e-7), *true.gradients[1:]))
        if fault == "input":
            a = true.inputs[0]
            assert a is not None
            return replace(true, inputs=(a.roll(1, 0), *true.inputs[1:]))
        return replace(true, products=true.products[1:], inputs=true.inputs[1:], gradients=true.gradients[1:])

    monkeypatch.setattr(examine, "record", wrong)
    monkeypatch.setattr("lsr_hpc.jacobian.factored.record", wrong)

    assert "do not make up its Jacobian" in case.reason()


def test_other_layers_than_those_probed_are_an_error() -> None:
    torch.manual_seed(3)
    depth = [1]

    def residual(u: Field, x: Tensor) -> Tensor:
        return u(x) if depth[0] == 1 else u(u(x).expand(-1, 2))

    case = Case(MLP([2, 8, 1]), block(residual, points(6)))
    jacobian = case.jacobian()
    depth[0] = 2

    with pytest.raises(JobError, match="other layers"):
        jacobian.jv(panel(2, jacobian.n_parameters))


def test_user_network_and_data_stay_as_they_were(case: Case) -> None:
    state = {n: t.clone() for n, t in case.model.state_dict().items()}
    data = [b.points.clone() for b in case.blocks]
    jacobian = case.jacobian()
    jacobian.jtu(jacobian.jv(panel(3, jacobian.n_parameters)))

    for name, tensor in case.model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert all(p.grad is None for p in case.model.parameters())
    assert all(p.grad is None for p in case.functional.theta0_tensors.values())
    assert not any(p.requires_grad for p in case.functional.theta0_tensors.values())
    assert all(torch.equal(b.points, d) for b, d in zip(case.blocks, data, strict=True))
