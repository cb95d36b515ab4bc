"""Networks of the shipped problems against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lsr_hpc.derivatives import value_and_two_along
from lsr_hpc.errors import JobError
from lsr_hpc.models import ARCHITECTURES, FNO, DeepONet, ModifiedMLP, MultiONet
from lsr_hpc.precision import module_in_precision


def test_modified_mlp_is_its_formula() -> None:
    torch.manual_seed(0)
    model = ModifiedMLP([2, 5, 5, 3]).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    x = np.random.default_rng(0).standard_normal((7, 2))

    def affine(name: str, a: np.ndarray) -> np.ndarray:
        return a @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    u, v = (np.tanh(affine(f"encoders.{i}", x)) for i in range(2))
    hidden = x
    for layer in range(2):
        o = np.tanh(affine(f"layers.{layer}", hidden))
        hidden = o * u + (1 - o) * v
    np.testing.assert_allclose(
        model(torch.from_numpy(x)).detach().numpy(), affine("layers.2", hidden), atol=1e-14
    )


@pytest.mark.parametrize("widths", [[2, 3], [2, 5, 6, 1], [2]])
def test_modified_mlp_refuses_unequal_or_missing_hidden_layers(widths: list[int]) -> None:
    with pytest.raises(JobError, match="hidden layers, all of one size"):
        ModifiedMLP(widths)


def test_modified_deeponet_joins_two_of_them() -> None:
    operator = ARCHITECTURES["deeponet"](branch=[4, 5, 3], trunk=[2, 6, 3], modified=True)
    assert isinstance(operator, DeepONet)
    h, y = torch.rand(1, 4), torch.rand(9, 2)

    assert isinstance(operator.branch, ModifiedMLP)
    expected = operator.trunk(y) @ operator.branch(h)[0]
    torch.testing.assert_close(operator(h, y)[:, 0], expected)


def test_multionet_is_its_formula() -> None:
    torch.manual_seed(0)
    model = MultiONet(4, 2, 5, 3, activation="tanh_sin").double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or name == "factors":
                parameter.normal_()
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    h, y = np.random.default_rng(0).standard_normal((6, 6)).astype(float)[:, :4], np.ones((6, 2)) / 3

    def layer(name: str, a: np.ndarray) -> np.ndarray:
        x = a @ state[f"{name}.weight"].T + state[f"{name}.bias"]
        return np.tanh(np.sin(np.pi * (x + 1))) + x

    branch, trunk = layer("branch_input", h), layer("trunk_input", y)
    expected = np.full(6, state["bias"])
    for i in range(3):
        branch, trunk = layer(f"branch.{i}", branch), layer(f"trunk.{i}", trunk)
        expected += state["factors"][i] * (branch * trunk).sum(axis=1) / 3
    pairs = model(torch.from_numpy(h), torch.from_numpy(y)).detach()
    np.testing.assert_allclose(pairs[:, 0], expected, atol=1e-13)
    grid = model.on_grid(torch.from_numpy(h), torch.from_numpy(y))
    torch.testing.assert_close(grid.diagonal(), pairs[:, 0])


def test_fno_commutes_with_shifts_and_refines_its_grid() -> None:
    torch.manual_seed(0)
    model = module_in_precision(FNO(channels=4, modes=3, layers=2, hidden=5), torch.float64)
    x = 2 * torch.pi * torch.arange(16).double() / 16
    u = torch.stack([torch.sin(x), torch.cos(2 * x) - 0.3])

    torch.testing.assert_close(model(u.roll(3, dims=1)), model(u).roll(3, dims=1))
    # A spectral layer is the same convolution on every grid.
    v = torch.stack([torch.cos(x), torch.sin(2 * x), 1 + 0 * x, torch.sin(x)])[None]
    fine = 2 * torch.pi * torch.arange(32).double() / 32
    w = torch.stack([torch.cos(fine), torch.sin(2 * fine), 1 + 0 * fine, torch.sin(fine)])[None]
    torch.testing.assert_close(model.spectral[0](w)[..., ::2], model.spectral[0](v))


def test_value_and_two_derivatives_of_known_functions() -> None:
    x = torch.rand(6, 2, dtype=torch.float64)

    def u(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.sin(2 * x[..., 1]) * x[..., 0], x[..., 0] ** 3], dim=-1)

    p, q = x[:, 0], x[:, 1]
    zero = torch.zeros(6, dtype=torch.float64)
    by_hand = {
        0: ([torch.sin(2 * q), 3 * p**2], [zero, 6 * p]),
        1: ([2 * p * torch.cos(2 * q), zero], [-4 * p * torch.sin(2 * q), zero]),
    }
    for axis, (first, second) in by_hand.items():
        found = value_and_two_along(u, x, axis)
        for got, expected in zip(found, ([p * torch.sin(2 * q), p**3], first, second), strict=True):
            torch.testing.assert_close(got, torch.stack(expected, dim=-1), rtol=0, atol=1e-14)
