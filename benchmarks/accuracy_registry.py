"""The problems and arms of ``accuracy``, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARMS", "PROBLEMS", "Method", "Target"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A problem to compare on.

    Attributes:
        job: Its job file, by name.
        first_seed: Of points and functions; that of the shipped job.
        instances: Unseen functions a seed; 0 where there are no functions.
        trains: Whether every seed has a start of its own, trained by the job's own recipe.
        is_linear: Whether the residual is linear in u, so that there is nothing to solve again.
        recipe_rank: Published rank of the published recipe; None takes the job's.
        seeds_are: What the seeds draw, in words.
    """

    job: str
    first_seed: int = 0
    instances: int = 0
    trains: bool = True
    is_linear: bool = True
    recipe_rank: int | None = None
    seeds_are: str = "points, initial weights and training of the start"


_FUNCTIONS = "unseen functions and points; the start is one"
PROBLEMS = {
    "function_fit": Target(job="function_fit"),
    "poisson": Target(job="poisson"),
    "burgers2d": Target(job="burgers2d", is_linear=False),
    "convection": Target(job="convection"),
    "reaction": Target(job="reaction", is_linear=False),
    "wave": Target(job="wave"),
    "antiderivative": Target(
        job="antiderivative",
        first_seed=7,
        instances=1,
        trains=False,
        recipe_rank=40,
        seeds_are="unseen functions; the start is one",
    ),
    "diffusion_reaction": Target(
        job="diffusion_reaction",
        first_seed=7,
        instances=1,
        trains=False,
        is_linear=False,
        seeds_are=_FUNCTIONS,
    ),
    "burgers_operator": Target(
        job="burgers_operator", first_seed=7, instances=1, trains=False, is_linear=False, seeds_are=_FUNCTIONS
    ),
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to refine.

    Attributes:
        title: In tables and figures.
        function: ``"module:function"`` of its arm.
        arguments: Of the function.
        is_ours: Whether it runs on MPI ranks of one thread, not as one process with threads.
        why: Why it may be better than ours, in words.
    """

    title: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    is_ours: bool = False
    why: str = ""


# Published for Poisson in five dimensions (arXiv:2505.12149).
_SPRING = {"damping": 6.8116e-10, "momentum": 0.8267, "step_size": 6.3502e-2}
# With line search: the best of 1e-6, 1e-4, 1e-2 on Poisson with seed 3, which is not reported.
_DAMPING = 1e-2
_MOVES = (
    "all of its time goes into the weights, where a round of ours spends a part of it on a predictor, and "
    "takes its steps in a subspace"
)
_WHOLE = "it solves in all of parameter space, ours in a subspace whose rank is chosen on held-out rows"
ARMS = {
    "start": Method(title="start", function="accuracy_arms:start"),
    "adam": Method(
        title="Adam, cosine",
        function="accuracy_arms:first_order",
        arguments={"method": "adam"},
        why=_MOVES,
    ),
    "lbfgs": Method(
        title="L-BFGS, 100 pairs",
        function="accuracy_arms:first_order",
        arguments={"method": "lbfgs"},
        why=_MOVES,
    ),
    "last_layer": Method(
        title="last layer",
        function="accuracy_arms:last_layer",
        why="its few unknowns are held well by the rows",
    ),
    "gn_cg": Method(
        title="Gauss-Newton-CG",
        function="accuracy_arms:first_order",
        arguments={"method": "gn_cg"},
        why=_MOVES,
    ),
    "engd_w": Method(
        title="ENGD-W, line search",
        function="accuracy_arms:natural",
        arguments={"damping": _DAMPING},
        why=_MOVES,
    ),
    "spring": Method(
        title="SPRING, line search",
        function="accuracy_arms:natural",
        arguments={"damping": _DAMPING, "momentum": _SPRING["momentum"]},
        why=_MOVES,
    ),
    "spring_fixed": Method(
        title="SPRING, published constants",
        function="accuracy_arms:natural",
        arguments=_SPRING,
        why=_MOVES,
    ),
    "nncg": Method(
        title="NNCG (DeepXDE)", function="accuracy_arms:nncg", arguments={"damping": 1e-1}, why=_MOVES
    ),
    "lsmr": Method(
        title="LSMR, full J", function="accuracy_arms:linear_solve", arguments={"method": "lsmr"}, why=_WHOLE
    ),
    "lsmr_scaled": Method(
        title="LSMR, full J, scaled columns",
        function="accuracy_arms:linear_solve",
        arguments={"method": "lsmr_scaled"},
        why=_WHOLE,
    ),
    "dense": Method(
        title="dense least squares, full J",
        function="accuracy_arms:linear_solve",
        arguments={"method": "dense"},
        why=_WHOLE,
    ),
    "recipe_float32": Method(
        title="LSR as published, float32",
        function="accuracy_arms:recipe",
        arguments={"dtype": "float32", "seed": 0},
        why="its rank is given, and it fits all rows from the beginning",
    ),
    "recipe_float64": Method(
        title="LSR as published, float64",
        function="accuracy_arms:recipe",
        arguments={"dtype": "float64", "seed": 0},
        why="its rank is given, and it fits all rows from the beginning",
    ),
    "ours": Method(
        title="ours, one shot", function="accuracy_ours:one_shot", arguments={"resolve": False}, is_ours=True
    ),
    "ours_resolve": Method(
        title="ours, re-solved", function="accuracy_ours:one_shot", arguments={"resolve": True}, is_ours=True
    ),
    "ours_residual": Method(
        title="ours, rounds on the loss",
        function="accuracy_ours:iterative",
        arguments={"objective": "residual"},
        is_ours=True,
    ),
    "ours_targets": Method(
        title="ours, rounds on the targets",
        function="accuracy_ours:iterative",
        arguments={"objective": "targets"},
        is_ours=True,
    ),
}
