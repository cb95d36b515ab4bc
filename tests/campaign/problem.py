"""Small fits for campaigns, which go wrong on demand: inside a member, where ranks wait for each other."""

from __future__ import annotations

import inspect
import os
import time
from pathlib import Path

import torch

from lsr_hpc import Evaluation, Problem, ProblemFamily, ResidualBlock


def build(
    instances: int = 4, wave: float = 3.0, fault: str = "", home: str = "", pause: float = 0.0
) -> ProblemFamily:
    """Fits of exp(-x) sin(wave x + i) by a small network.

    ``fault``: "refuse" (on all ranks), "raise" or "die" (on the last rank alone), which a file
    ``home/mended`` mends, or "wait" until there is a file ``home/gate``. ``pause``: seconds for a product.
    """
    if home:
        with Path(home, "built").open("a") as file:
            file.write(f"{os.getpid()}\n")
    generator = torch.Generator().manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(1, 12), torch.nn.Tanh(), torch.nn.Linear(12, 1)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.linspace(0, 3, 90, dtype=torch.float64)[:, None]

    def instance(i: int) -> Problem:
        if fault == "refuse" and not Path(home, "mended").exists():
            raise ValueError("no such thing today")

        def exact(x: torch.Tensor) -> torch.Tensor:
            return torch.exp(-x) * torch.sin(wave * x + i)

        def residual(u, x):
            if (fault or pause) and any(frame.function == "krylov_basis" for frame in inspect.stack()):
                time.sleep(pause)
                go_wrong(fault, Path(home))
            return u(x) - exact(x)

        return Problem(
            name=f"damped sine {i}",
            model=net,
            blocks=[ResidualBlock(name="fit", residual=residual, points=x)],
            evaluation=Evaluation(inputs=(x,), reference=exact(x)),
        )

    return ProblemFamily(name="damped sine", n_instances=instances, instance=instance)


def go_wrong(fault: str, home: Path) -> None:
    if fault == "wait":
        while not (home / "gate").exists():
            (home / "waiting").touch()
            time.sleep(0.05)
    is_last = os.environ.get("OMPI_COMM_WORLD_RANK", "0") != "0" or "OMPI_COMM_WORLD_RANK" not in os.environ
    if not is_last or (home / "mended").exists():
        return
    if fault == "raise":
        raise ZeroDivisionError("deliberate")
    if fault == "die":
        print("last words", flush=True)
        os._exit(1)
