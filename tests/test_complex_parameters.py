"""Networks with complex parameters: the same as networks with a real parameter for each of both parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsr_hpc.export import exported
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.iterative.rounds import iterate, with_parameters
from lsr_hpc.jacobian.examine import NotFactored, examine_block
from lsr_hpc.jacobian.explicit import ExplicitJacobian
from lsr_hpc.jacobian.factored import BlockStructure, FactoredJacobian
from lsr_hpc.jacobian.matrix_free import MatrixFreeJacobian
from lsr_hpc.jacobian.probe import probe_block
from lsr_hpc.models import FNO
from lsr_hpc.oneshot import refine
from lsr_hpc.params import ParameterLayout, digest
from lsr_hpc.predictor import RefinedPredictor
from lsr_hpc.problem import Evaluation, ModelSpec, Problem, ResidualBlock
from lsr_hpc.rows import LocalRows, local_rows, split_rows
from lsr_hpc.settings import IterateSettings, RefineSettings, SubspaceSettings
from lsr_hpc.store import read_tensors, write_tensors
from tests.jacobian.dense import assert_equal, assert_single, dense_jacobian, panel

N, M, K = 12, 8, 3
U = torch.from_numpy(np.random.default_rng(0).standard_normal((N, M)))
ARGUMENTS = {"channels": 3, "modes": K, "layers": 2, "hidden": 5}


class Spectral(nn.Module):
    """A linear layer, then a complex factor on every one of the lowest Fourier modes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(M, M)
        self.weight = nn.Parameter(torch.randn(K, dtype=torch.complex64))
        self.frozen = nn.Parameter(torch.randn(1, dtype=torch.complex64), requires_grad=False)
        self.register_buffer("turn", torch.tensor(0.6 + 0.8j))
        self.last = nn.Linear(M, 1)

    def forward(self, u: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(torch.tanh(self.first(u)))[:, :K] * self.weight * self.frozen * self.turn
        return self.last(torch.fft.irfft(spectrum, M))


class Reals(nn.Module):
    """The same function in real arithmetic, its Fourier sums written out."""

    def __init__(self, twin: Spectral) -> None:
        super().__init__()
        self.first = twin.first
        self.weight = nn.Parameter(torch.view_as_real(twin.weight.detach()).double())
        self.last = twin.last
        self.factor = twin.frozen.item() * complex(twin.turn.item())

    def forward(self, u: Tensor) -> Tensor:
        v = torch.tanh(self.first(u))
        phase = 2 * torch.pi / M * torch.outer(torch.arange(M), torch.arange(K)).double()
        re, im = v @ phase.cos(), -v @ phase.sin()
        for a, b in ((self.weight[:, 0], self.weight[:, 1]), (self.factor.real, self.factor.imag)):
            re, im = re * a - im * b, re * b + im * a
        # Each mode but the mean stands for two.
        twice = torch.tensor([1.0] + [2.0] * (K - 1)).double() / M
        return self.last((re * twice) @ phase.cos().T - (im * twice) @ phase.sin().T)


def misfit(u: Any, a: Tensor, y: Tensor) -> Tensor:
    return u(a) - y


def block(width: int = 1) -> ResidualBlock:
    return ResidualBlock(name="fit", residual=misfit, points=U, data=(torch.sin(U[:, :width]),))


def rows_of(model: FunctionalModel, of: ResidualBlock) -> LocalRows:
    return local_rows(split_rows([of], [probe_block(of, model)], 0.0, 0)[0], 0, 1, model)


def fno() -> FNO:
    torch.manual_seed(2)
    return FNO(**ARGUMENTS)


def fno_by_hand(pairs: dict[str, Tensor], u: Tensor) -> Tensor:
    """FNO of two layers, complex products as four real ones."""
    v = u[..., None] @ pairs["lifting.weight"].T + pairs["lifting.bias"]
    for i in range(2):
        spectrum = torch.fft.rfft(v, dim=1)[:, :K]
        w = pairs[f"spectral.{i}.weight"]
        re = torch.einsum("nki,iok->nko", spectrum.real, w[..., 0])
        re = re - torch.einsum("nki,iok->nko", spectrum.imag, w[..., 1])
        im = torch.einsum("nki,iok->nko", spectrum.real, w[..., 1])
        im = im + torch.einsum("nki,iok->nko", spectrum.imag, w[..., 0])
        wide = torch.fft.irfft(torch.complex(re, im), M, dim=1)
        v = wide + v @ pairs[f"pointwise.{i}.weight"].T + pairs[f"pointwise.{i}.bias"]
        v = nn.functional.gelu(v) if i == 0 else v
    hidden = nn.functional.gelu(v @ pairs["projection.0.weight"].T + pairs["projection.0.bias"])
    return (hidden @ pairs["projection.2.weight"].T + pairs["projection.2.bias"])[..., 0]


class FNOOfPairs(nn.Module):
    """The same operator with real parameters for real and imaginary parts."""

    def __init__(self, twin: FNO) -> None:
        super().__init__()
        self.names = [n for n, _ in twin.named_parameters()]
        self.pairs = nn.ParameterList(
            (torch.view_as_real(p.detach()) if p.is_complex() else p.detach()).double()
            for p in twin.parameters()
        )

    def forward(self, u: Tensor) -> Tensor:
        return fno_by_hand(dict(zip(self.names, self.pairs, strict=True)), u)


TWINS: list[tuple[Callable[[], nn.Module], Callable[[Any], nn.Module], int]] = [
    (Spectral, Reals, 1),
    (fno, FNOOfPairs, M),
]


def test_layout_counts_real_and_imaginary_parts_in_turn() -> None:
    model = Spectral()
    layout = ParameterLayout.of(model)
    flat = layout.read(model)

    assert layout.complex_names == {"weight"}
    assert layout.size == sum(p.numel() for p in Reals(model).parameters())
    pairs = torch.view_as_real(model.weight.detach())
    assert torch.equal(flat[layout.ranges["weight"]], pairs.flatten())
    assert layout.owner(layout.ranges["weight"].stop - 1) == "weight"
    assert digest(flat) == digest(layout.read(model.double()))


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_blocks_of_vectors_become_complex_parameters_and_back(batch: tuple[int, ...]) -> None:
    layout = ParameterLayout.of(Spectral())
    flat = torch.randn(*batch, layout.size, dtype=torch.float64)
    reals = layout.unflatten(flat)
    parameters = layout.parameters_of(reals)

    assert parameters["weight"].dtype == torch.complex128
    assert parameters["weight"].shape == (*batch, K)
    assert torch.equal(layout.flatten(layout.reals_of(parameters)), flat)


@pytest.mark.parametrize(("make", "twin", "width"), TWINS)
def test_products_are_those_of_the_dense_jacobian_of_real_parameters(
    make: Callable[[], nn.Module], twin: Callable[[Any], nn.Module], width: int
) -> None:
    network = make()
    dense = dense_jacobian(twin(network), [block(width)])
    model = FunctionalModel(network)
    rows = rows_of(model, block(width))
    v, u = panel(5, dense.shape[1]), panel(4, dense.shape[0], seed=1)
    for jacobian in (
        MatrixFreeJacobian(model, rows, columns_per_tile=3, tile_bytes=2**14),
        ExplicitJacobian(model, rows, tile_bytes=2**14),
    ):
        assert_equal(jacobian.jv(v), v @ dense.T)
        assert_equal(jacobian.jtu(u), u @ dense)
        assert_single(jacobian, dense)


def test_columns_of_j_are_difference_quotients() -> None:
    model = FunctionalModel(fno())
    where = model.layout.ranges["spectral.1.weight"]
    product = MatrixFreeJacobian(model, rows_of(model, block(M)), columns_per_tile=8, tile_bytes=2**20)
    scale = (1 / (N * M)) ** 0.5
    for i in (where.start, where.start + 1, where.stop - 1):
        unit = torch.zeros(model.layout.size, dtype=torch.float64)
        unit[i] = 1.0
        # The output is linear in the weights of the last spectral layer, up to the projection's curvature.
        h = 1e-5
        ahead, behind = (model.field(model.theta0 + s * h * unit)(U) for s in (1, -1))
        expected = scale * (ahead - behind).reshape(-1) / (2 * h)
        torch.testing.assert_close(product.jv(unit[None])[0], expected, rtol=1e-7, atol=1e-10)


def test_few_complex_parameters_are_explicit_columns_of_the_factored_form() -> None:
    network = Spectral()
    model = FunctionalModel(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        structure = examine_block(block(), probe_block(block(), model), model)
    assert isinstance(structure, BlockStructure)
    assert structure.explicit == {"weight"}

    dense = dense_jacobian(Reals(network), [block()])
    jacobian = FactoredJacobian(
        model, rows_of(model, block()), {"fit": structure}, tile_bytes=2**20, hold=True
    )
    v, u = panel(5, dense.shape[1]), panel(4, dense.shape[0], seed=1)
    assert_equal(jacobian.jv(v), v @ dense.T)
    assert_equal(jacobian.jtu(u), u @ dense)


def test_many_complex_parameters_have_no_factored_form_and_are_named() -> None:
    torch.manual_seed(0)
    model = FunctionalModel(FNO(channels=4, modes=3))
    structure = examine_block(block(M), probe_block(block(M), model), model)

    assert isinstance(structure, NotFactored)
    assert "'spectral.0.weight' (layer 'spectral.0', a SpectralConvolution) is complex" in structure.reason


def problem_of(model: nn.Module) -> Problem:
    y = torch.sin(U[:, :1])
    return Problem(
        name="twin",
        model=model,
        blocks=[ResidualBlock(name="fit", residual=misfit, points=U, data=(y,), hold_out=False)],
        evaluation=Evaluation(inputs=(U,), reference=y),
    )


def test_refinement_is_that_of_the_real_network(comm_self: Any) -> None:
    network = Spectral()
    result = refine(problem_of(network), comm_self, rank=8)
    expected = refine(problem_of(Reals(network)), comm_self, rank=8)

    # The twins differ by rounding alone, which the small residual of a nearly square problem magnifies.
    np.testing.assert_allclose(result.delta, expected.delta, rtol=0, atol=1e-6 * np.abs(expected.delta).max())
    assert result.error_after == pytest.approx(expected.error_after, rel=1e-5)
    assert result.error_after < 0.9 * result.error_before


@pytest.mark.parametrize("optimizer", ["tangent", "lbfgs"])
def test_rounds_align_a_complex_network(optimizer: str, comm_self: Any) -> None:
    problem = problem_of(Spectral())
    settings = RefineSettings(subspace=SubspaceSettings(rank=6, oversampling=2))
    state = iterate(
        problem, comm_self, settings, IterateSettings(rounds=2, steps=3, tangent_rank=8, optimizer=optimizer)
    )
    aligned = with_parameters(problem, state.theta).model

    assert isinstance(aligned, Spectral)
    assert aligned.weight.dtype == torch.complex128
    assert torch.equal(ParameterLayout.of(aligned).read(aligned), torch.from_numpy(state.theta))
    assert state.records[-1].network_residual < state.records[0].network_residual_before


@pytest.mark.parametrize(("make", "twin", "width"), TWINS)
def test_predictor_is_the_network_plus_its_dense_jacobian_times_delta(
    make: Callable[[], nn.Module], twin: Callable[[Any], nn.Module], width: int
) -> None:
    network = make()
    delta = panel(1, ParameterLayout.of(network).size)[0]
    real = twin(network).double()
    # Rows of a block are scaled by one over the root of their number.
    j_delta = dense_jacobian(real, [block(width)]) @ delta * (N * width) ** 0.5
    expected = real(U).detach() + j_delta.reshape(N, width)

    assert_equal(RefinedPredictor(network, delta)(U).detach(), expected)


def fno_predictor() -> RefinedPredictor:
    network = fno()
    delta = panel(1, ParameterLayout.of(network).size)[0] / 10
    return RefinedPredictor(network, delta, ModelSpec(architecture="fno", arguments=ARGUMENTS))


def test_stored_predictor_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    predictor = fno_predictor()
    predictor.save(tmp_path / "p")
    again = RefinedPredictor.load(tmp_path / "p")

    assert torch.equal(again(U), predictor(U))
    # Weights of complex64 are stored as pairs of float32.
    stored = read_tensors(tmp_path / "p" / "theta0.safetensors")
    assert stored["spectral.0.weight"].dtype == torch.complex64


def test_trainable_complex_weights_of_double_precision_are_kept(tmp_path: Path) -> None:
    predictor = fno_predictor()
    with torch.no_grad():
        predictor.network.spectral[0].weight += 1e-12
    predictor.save(tmp_path / "p")

    assert torch.equal(RefinedPredictor.load(tmp_path / "p")(U), predictor(U))


def test_predictor_in_single_precision() -> None:
    exact, single = fno_predictor()(U), fno_predictor().float()

    assert single.network.spectral[0].weight.dtype == torch.complex64
    assert single(U).dtype == torch.float32
    torch.testing.assert_close(single(U).double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exported_predictor_is_the_same_function() -> None:
    network = Spectral()
    predictor = RefinedPredictor(network, panel(1, ParameterLayout.of(network).size)[0])
    program = exported(predictor, U).module()

    torch.testing.assert_close(program(U[:5]), predictor(U[:5]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_tensors_go_to_disk_and_back(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(2, 3, dtype=dtype),
        "scalar": torch.tensor(1 - 2j, dtype=dtype),
        "conjugate": torch.randn(4, dtype=dtype).conj(),
        "real": torch.randn(3),
    }
    write_tensors(tmp_path / "t.safetensors", tensors)
    again = read_tensors(tmp_path / "t.safetensors")

    assert {n: t.dtype for n, t in again.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(again[n], t) for n, t in tensors.items())
