"""The listings of docs/bring-your-own.md, run as printed on checkpoints made here."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.extras import require_modules
from tests.mpi.conftest import mpi_environment

LISTINGS = {
    re.match(r"# (\w+)\.py\n", text)[1]: text
    for text in re.findall(
        r"```python\n(.*?)```",
        (Path(__file__).parents[1] / "docs" / "bring-your-own.md").read_text(),
        flags=re.DOTALL,
    )
}
NUMBER = r"[\d.e+-]+"


def layers(widths: list[int], activation: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    made: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        made += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*made[:-1])


def trained(net: nn.Module, x: Tensor, y: Tensor, steps: int = 200) -> nn.Module:
    """A start as training leaves it: a few percent off."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x.float()) - y.float()).square().mean().backward()
        optimizer.step()
    return net


def run(name: str, home: Path, **environment: str) -> str:
    (home / f"{name}.py").write_text(LISTINGS[name])
    done = subprocess.run(
        [sys.executable, f"{name}.py"],
        cwd=home,
        env=mpi_environment() | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def errors(printed: str) -> tuple[float, float]:
    match = re.search(rf"({NUMBER}) -> ({NUMBER})", printed)
    assert match is not None, printed
    return float(match[1]), float(match[2])


def line() -> Tensor:
    return torch.linspace(0, torch.pi, 400, dtype=torch.float64)[:, None]


def test_every_listing_is_about_25_lines() -> None:
    assert set(LISTINGS) == {"regressor", "pinn", "inverse", "deepxde_network"}
    for name, text in LISTINGS.items():
        code = [row for row in text.splitlines() if row.strip() and not row.startswith("#")]
        assert len(code) <= 32, name


def test_regressor(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    x, x_test = (2 * torch.rand(n, 2, dtype=torch.float64, generator=generator) - 1 for n in (1500, 500))

    def target(x: Tensor) -> Tensor:
        return torch.sin(3 * x[:, :1]) * torch.cos(2 * x[:, 1:])

    net = trained(layers([2, 32, 32, 1], nn.GELU), x, target(x))
    torch.save(net.state_dict(), tmp_path / "regressor.pt")
    data = {"x": x, "y": target(x), "x_test": x_test, "y_test": target(x_test)}
    torch.save(data, tmp_path / "data.pt")

    before, after = errors(run("regressor", tmp_path))
    assert after < 0.05 * before
    # What was stored is what was reported.
    from lsr_hpc import RefinedPredictor

    stored = RefinedPredictor.load(tmp_path / "refined", model=layers([2, 32, 32, 1], nn.GELU))
    error = (stored(x_test) - target(x_test)).norm() / target(x_test).norm()
    assert float(error) == pytest.approx(after, rel=0.1)


def test_physics_informed_network(tmp_path: Path) -> None:
    net = trained(layers([1, 32, 32, 1], nn.Tanh), line(), torch.sin(line()))
    save_file(net.state_dict(), tmp_path / "pinn.safetensors")
    printed = run("pinn", tmp_path)
    before, after = errors(printed)
    assert after < 1e-3 * before
    value = re.search(r"u\(1\) = ([\d.]+)", printed)
    assert value is not None
    # Printed to nine digits.
    assert float(value[1]) == pytest.approx(math.sin(1.0), abs=10 * after + 5e-10)


def test_inverse_problem_finds_the_coefficient(tmp_path: Path) -> None:
    # With k = 2 the temperatures are sin(x) / 2; the start believes in k = 1.6.
    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = trained(layers([1, 32, 1], nn.Tanh), line(), torch.sin(line()) / 2, steps=500)
            self.k = nn.Parameter(torch.tensor(1.6))

    torch.save(Inverse().state_dict(), tmp_path / "inverse.pt")
    x = line()[::10]
    torch.save({"points": line(), "x": x, "y": torch.sin(x) / 2}, tmp_path / "measured.pt")
    before, after = errors(run("inverse", tmp_path))
    assert before == 1.6
    assert after == pytest.approx(2.0, abs=1e-3)


def test_network_of_deepxde(tmp_path: Path) -> None:
    require_modules("skopt", "deepxde")
    program = (
        "import deepxde as dde, torch;torch.manual_seed(0)\n"
        'net = dde.nn.FNN([1, 32, 32, 1], "tanh", "Glorot normal")\n'
        "x = torch.linspace(0, torch.pi, 400)[:, None]\n"
        "optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)\n"
        "for _ in range(200):\n"
        "    optimizer.zero_grad(); (net(x) - torch.sin(x)).square().mean().backward(); optimizer.step()\n"
        'torch.save({"model_state_dict": net.state_dict()}, "deepxde.pt")\n'
    )
    environment = {"DDE_BACKEND": "pytorch", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=tmp_path, env=mpi_environment() | environment, check=True, timeout=120)
    before, after = errors(run("deepxde_network", tmp_path, **environment))
    assert after < 1e-3 * before
