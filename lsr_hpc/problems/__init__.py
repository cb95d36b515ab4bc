"""Ready problems: the registry behind ``problem = "NAME"`` in job files and ``lsr-hpc problems``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

__all__ = ["PROBLEMS", "ShippedProblem"]


@dataclass(frozen=True)
class ShippedProblem:
    """A problem that comes with the package.

    Attributes:
        name: Name in job files.
        summary: One line for ``lsr-hpc problems``.
    """

    name: str
    summary: str

    def _module(self) -> ModuleType:
        import importlib

        return importlib.import_module(f"lsr_hpc.problems.{self.name}")

    @property
    def build(self) -> Callable[..., Any]:
        """``build(weights, **args)``: the problem or family of problems."""
        function: Callable[..., Any] = self._module().build
        return function

    @property
    def training_task(self) -> Callable[..., Any]:
        """``training_task(settings, **args)``: how its start is trained."""
        function: Callable[..., Any] = self._module().training_task
        return function


PROBLEMS = {
    p.name: p
    for p in [
        ShippedProblem(
            "advection", "physics-informed DeepONet a -> u, u_t + a(x) u_x = 0, per unseen function"
        ),
        ShippedProblem(
            "antiderivative", "physics-informed DeepONet h -> s, s' = h, one refinement per unseen function"
        ),
        ShippedProblem("burgers2d", "physics-informed network for u_t + u u_x = nu u_xx with a steep front"),
        ShippedProblem(
            "burgers_operator",
            "physics-informed DeepONet u(., 0) -> u of viscous Burgers, per unseen function",
        ),
        ShippedProblem("convection", "physics-informed network for u_t + 40 u_x = 0, periodic in x"),
        ShippedProblem(
            "data_burgers",
            "DeepONet, MultiONet or FNO u(., 0) -> u(., 1) of viscous Burgers, fitted to solutions",
        ),
        ShippedProblem(
            "diffusion_reaction",
            "physics-informed DeepONet h -> u, u_t = 0.01 u_xx + 0.01 u^2 + h, per unseen function",
        ),
        ShippedProblem("digits", "classification of handwritten digits with linearised outputs"),
        ShippedProblem("function_fit", "regression of sin(k pi x) sin(k pi y) with a tanh network"),
        ShippedProblem(
            "heat_inverse", "physics-informed network for the conductivity behind noisy temperatures"
        ),
        ShippedProblem("helmholtz", "physics-informed network for u_xx + u_yy + u = g on a square"),
        ShippedProblem("poisson", "physics-informed network for u_xx + u_yy = s on the unit square"),
        ShippedProblem("reaction", "physics-informed network for u_t = 5 u (1 - u), periodic in x"),
        ShippedProblem(
            "transfer_burgers", "network for viscous Burgers at one initial value, for transfer to others"
        ),
        ShippedProblem(
            "transfer_diffusion_reaction",
            "network for u_t = 0.01 u_xx + 0.01 u^2 + h at one h, for transfer to others",
        ),
        ShippedProblem("transfer_ode", "network for s' = h at one h, for transfer to others"),
        ShippedProblem("wave", "physics-informed network for u_tt = 4 u_xx between fixed ends"),
    ]
}
