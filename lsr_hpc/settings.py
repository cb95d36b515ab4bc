"""Settings of a refinement: the same frozen dataclasses for the Python API and for job files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import inf
from typing import Any

from lsr_hpc.errors import JobError

__all__ = [
    "ComputeSettings",
    "HeldOutSettings",
    "IterateSettings",
    "RefineSettings",
    "RunSettings",
    "SolverSettings",
    "SubspaceSettings",
    "TrainingSettings",
    "parse_bytes",
]

_UNITS = {
    "": 1,
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


_FUNCTION = re.compile(r"[\w.]+:\w+")


def parse_bytes(text: str | int) -> int:
    """Read a memory size.

    Args:
        text: A number of bytes, or a number with a unit such as ``"1.5GiB"`` or ``"800 MB"``.

    Returns:
        Bytes.

    Raises:
        JobError: If it is neither, or not positive.
    """
    if isinstance(text, int) and text > 0:
        return text
    if isinstance(text, str):
        number = text.strip().rstrip("BiKMGTk ")
        unit = text.strip()[len(number) :].strip()
        try:
            if unit in _UNITS and float(number) > 0:
                return int(float(number) * _UNITS[unit])
        except (ValueError, OverflowError):
            pass
    raise JobError(f'memory size {text!r} is not understood: write for example "2GiB" or "800MB"')


def _choice(section: str, key: str, value: Any, allowed: tuple[str, ...]) -> list[str]:
    """The complaint about a value that is none of the allowed ones, if it is none."""
    if value in allowed:
        return []
    return [f"{section}.{key} = {value!r}: use one of {', '.join(map(repr, allowed))}"]


def _at_least(section: str, settings: object, **lowest: float) -> list[str]:
    """Complaints about numbers below their bound; those above what a 64-bit seed or PETSc's integers hold."""
    mistakes = []
    for key, bound in lowest.items():
        value = getattr(settings, key)
        limit = 2**64 if key == "seed" else 2**31 if isinstance(value, int) else inf
        if value is not None and not bound <= value < limit:
            above = "" if isinstance(value, float) else f" and below {limit}"
            mistakes.append(f"{section}.{key} = {value}: must be at least {bound}{above}")
    return mistakes


def _refuse(*complaints: list[str]) -> None:
    """Raise what was complained about, all at once."""
    mistakes = [text for complaint in complaints for text in complaint]
    if mistakes:
        raise JobError("; ".join(mistakes))


# A narrow Krylov block goes deeper for the same number of products; a wide one multiplies faster.
_WIDEST_BLOCK = 16
_LEAST_DEPTH = 8
_BASES = ("krylov", "svd", "svd+krylov", "randomized", "random")


@dataclass(frozen=True, kw_only=True)
class SubspaceSettings:
    """Section ``[subspace]``: the directions in parameter space.

    Attributes:
        rank: Largest number of directions; the rank used is chosen up to it. At most the fitted rows.
        basis: ``"krylov"`` (block Krylov space grown from the residual, in SLEPc basis vectors), ``"svd"``
            (SLEPc's singular vectors), ``"svd+krylov"`` (half of each), ``"randomized"`` (the published range
            finder) or ``"random"`` (control).
        width: Columns of a Krylov block; absent chooses 16, or an eighth of a small rank. Narrower gets more
            out of the same rank, wider runs faster.
        adaptive: Whether a Krylov basis stops growing once it has halved the held-out residual and its later
            half no longer lowers it. Saves products; may take a plateau for the end.
        svd: SLEPc solver behind ``"svd"``: ``"randomized"``, ``"trlanczos"`` or ``"cross"``.
        iterations: Block iterations of SLEPc's randomized solver, restarts allowed to the others.
        oversampling: Extra columns of the randomised methods.
        test_matrix: ``"gaussian"`` or ``"uniform"``; for ``basis = "randomized"``.
        orthogonalization: ``"auto"``, ``"tsqr"`` or ``"cholesky_qr2"``.
        seed: Seed of the random draws.
        parameters: Patterns of the names of the parameters that may change (``*`` and ``?`` as in a shell);
            empty for all. The others keep their trained values.
        parameter_fraction: Share of the numbers in them that may change, drawn at random.
    """

    rank: int = 100
    basis: str = "krylov"
    width: int | None = None
    adaptive: bool = False
    svd: str = "randomized"
    iterations: int = 2
    oversampling: int = 10
    test_matrix: str = "gaussian"
    orthogonalization: str = "auto"
    seed: int = 0
    parameters: tuple[str, ...] = ()
    parameter_fraction: float = 1.0

    def __post_init__(self) -> None:
        """Check each value."""
        _refuse(
            _choice("subspace", "basis", self.basis, _BASES),
            _choice("subspace", "svd", self.svd, ("randomized", "trlanczos", "cross")),
            _choice("subspace", "test_matrix", self.test_matrix, ("gaussian", "uniform")),
            _choice(
                "subspace", "orthogonalization", self.orthogonalization, ("auto", "tsqr", "cholesky_qr2")
            ),
            _at_least("subspace", self, rank=1, width=1, iterations=1, oversampling=0, seed=0),
        )
        if isinstance(self.parameters, str):
            raise JobError(f"subspace.parameters = {self.parameters!r}: give a list of patterns")
        if not 0 < self.parameter_fraction <= 1:
            raise JobError(
                f"subspace.parameter_fraction = {self.parameter_fraction}: must be above 0 and at most 1"
            )
        if self.basis == "svd+krylov" and self.rank < 2:
            raise JobError('subspace.basis = "svd+krylov" needs subspace.rank >= 2, one for each half')

    @property
    def block_width(self) -> int:
        """Columns of a Krylov block."""
        return self.width or max(1, min(_WIDEST_BLOCK, self.rank // _LEAST_DEPTH))


@dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """Section ``[solver]``: the least-squares problem.

    Attributes:
        type: ``"tsqr"`` (direct), or PETSc's ``"lsqr"`` or ``"cgls"``.
        space: ``"subspace"``, or ``"full"`` for LSQR/CGLS over all parameters without a basis.
        mu: Tikhonov damping of the coefficients, in residual per parameter; 0 for none.
        cut: Directions with singular values of J V below ``cut`` times the largest are left out; absent means
            100 eps, the rounding of J V.
        tolerance: Of LSQR/CGLS: ||A^T r|| / (||A|| ||r||).
        max_iterations: Of LSQR/CGLS.
        refit: Solve again on fitted and held-out rows together once the rank is chosen (costs nothing).
        resolve: Whether to solve again in the subspace on the true residual, which may be nonlinear in u:
            ``True``, ``False``, or ``"auto"`` for where the true residual of the one-shot solution exceeds
            the linear one.
        resolve_steps: Most Gauss-Newton steps for each rank of that.
    """

    type: str = "tsqr"
    space: str = "subspace"
    mu: float = 0.0
    cut: float | None = None
    tolerance: float = 1e-12
    max_iterations: int = 1000
    refit: bool = True
    resolve: bool | str = "auto"
    resolve_steps: int = 8

    def __post_init__(self) -> None:
        """Check each value and how they go together."""
        too_much = f"solver.cut = {self.cut}: must be below 1, or no direction is left"
        _refuse(
            _choice("solver", "type", self.type, ("tsqr", "lsqr", "cgls")),
            _choice("solver", "space", self.space, ("subspace", "full")),
            []
            if self.resolve is True or self.resolve is False
            else _choice("solver", "resolve", self.resolve, ("auto",)),
            _at_least("solver", self, mu=0.0, cut=0.0, tolerance=0.0, max_iterations=1, resolve_steps=1),
            [too_much] if 1 <= (self.cut or 0.0) < inf else [],
        )
        if self.space == "full" and self.type == "tsqr":
            raise JobError(
                'solver.space = "full" needs an iterative solver: set solver.type to "lsqr" or "cgls"'
            )
        if self.space == "full" and self.resolve is True:
            raise JobError('solver.resolve = true needs solver.space = "subspace"')
        if self.mu > 0 and self.type != "tsqr":
            raise JobError(
                f'solver.mu = {self.mu} needs solver.type = "tsqr": PETSc\'s {self.type} has no damping'
            )


@dataclass(frozen=True, kw_only=True)
class HeldOutSettings:
    """Section ``[held_out]``: the rows that choose the rank.

    Attributes:
        fraction: Share of the points of every large block; 0 takes the largest rank unjudged.
        seed: Seed of the choice.
    """

    fraction: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Check each value."""
        too_much = f"held_out.fraction = {self.fraction}: at most 0.9, or nothing is left to fit"
        _refuse(
            _at_least("held_out", self, fraction=0.0, seed=0), [too_much] if 0.9 < self.fraction < inf else []
        )


@dataclass(frozen=True, kw_only=True)
class ComputeSettings:
    """Section ``[compute]``: resources.

    Attributes:
        memory_per_rank: Resident memory that one MPI rank may reach, libraries included, e.g. ``"2GiB"``.
        jacobian: Representation of J: ``"matrix_free"`` (automatic differentiation), ``"factored"`` (inputs
            and gradients of linear layers), ``"explicit"`` (a matrix), or ``"auto"`` (the cheapest that can
            be used and fits; ``--dry-run`` compares them).
        device: ``"auto"`` (a local GPU per rank where there is one), ``"cpu"`` or ``"cuda"``.
    """

    memory_per_rank: str = "4GiB"
    jacobian: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        """Check each value."""
        mistakes = []
        try:
            parse_bytes(self.memory_per_rank)
        except JobError as error:
            mistakes.append(f"compute.memory_per_rank: {error}")
        _refuse(
            mistakes,
            _choice("compute", "jacobian", self.jacobian, ("auto", "matrix_free", "factored", "explicit")),
            _choice("compute", "device", self.device, ("auto", "cpu", "cuda")),
        )


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """Everything one-shot LSR needs besides the problem.

    Attributes:
        subspace: Directions.
        solver: Least squares.
        held_out: Rank selection.
        compute: Resources.
    """

    subspace: SubspaceSettings = field(default_factory=SubspaceSettings)
    solver: SolverSettings = field(default_factory=SolverSettings)
    held_out: HeldOutSettings = field(default_factory=HeldOutSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Section ``[run]``: how ``lsr-hpc run`` starts rounds. Nothing here changes what they compute.

    Attributes:
        ranks: MPI ranks of an instance.
        instances_at_once: Instances side by side, each on ranks of its own.
        launcher: ``"mpiexec"``, ``"srun"``, ``"local"`` (one rank, no launcher), or ``"auto"``: srun in an
            allocation of SLURM, otherwise mpiexec for more than one rank.
        srun_mpi: What ``srun --mpi`` is given; ``srun --mpi=list`` tells what there is.
        light_workers: Processes for what needs no MPI: evaluation, figures, the predictor.
        checkpoint_seconds: Seconds after which a state inside a round is written too.
        rounds_per_step: Rounds of an instance by one start of the ranks.
        keep: Newest checkpoints to keep, besides the best.
        max_attempts: How often a step is started that is ended from outside time and again.
        stop_seconds: Seconds that a step may take to reach a boundary and yield when it is to stop.
        silence_seconds: Seconds without a boundary after which a step is taken to hang, and ended.
        host: Address at which the controller listens for its workers.
        body: Function that does a step, ``"package.module:function"``; see :mod:`lsr_hpc.pipeline.step`.
        after_round: Functions called on a light worker after a step that finished a round, with the run
            directory, the instance's number and the step's result; what they return goes to
            ``metrics.jsonl``.
        at_end: Functions called there at the end, with the run directory and the last result of every
            instance; the fields that they return go to ``result.json``.
    """

    ranks: int = 2
    instances_at_once: int = 1
    launcher: str = "auto"
    srun_mpi: str = "pmix"
    light_workers: int = 1
    checkpoint_seconds: float = 300.0
    rounds_per_step: int = 1
    keep: int = 2
    max_attempts: int = 3
    stop_seconds: float = 120.0
    silence_seconds: float = 3600.0
    host: str = "127.0.0.1"
    body: str = "lsr_hpc.pipeline.step:run_step"
    after_round: tuple[str, ...] = ("lsr_hpc.pipeline.deliver:after_round",)
    at_end: tuple[str, ...] = ("lsr_hpc.pipeline.deliver:at_end",)

    def __post_init__(self) -> None:
        """Check each value and how they go together."""
        one = dict.fromkeys(
            ("ranks", "instances_at_once", "light_workers", "rounds_per_step", "max_attempts"), 1
        )
        functions = [("body", self.body), *(("after_round", f) for f in self.after_round)]
        functions += [("at_end", f) for f in self.at_end]
        _refuse(
            _at_least("run", self, **one, keep=2),
            _at_least("run", self, checkpoint_seconds=0.0, stop_seconds=0.0, silence_seconds=1.0),
            _choice("run", "launcher", self.launcher, ("auto", "mpiexec", "srun", "local")),
            [
                f'run.{key} = {name!r}: write "package.module:function"'
                for key, name in functions
                if not _FUNCTION.fullmatch(name)
            ],
            [f'run.srun_mpi = {self.srun_mpi!r}: write a name such as "pmix" or "pmi2"']
            if not re.fullmatch(r"[a-z0-9_]+", self.srun_mpi)
            else [],
            [f"run.host = {self.host!r}: name the one address that is needed, not all of them"]
            if self.host in {"", "0.0.0.0", "::", "*"}
            else [],
        )
        if self.launcher == "local" and self.ranks != 1:
            raise JobError(f'run.launcher = "local" starts one rank, not run.ranks = {self.ranks}')


@dataclass(frozen=True, kw_only=True)
class IterateSettings:
    """Section ``[iterate]``: rounds of refinement and alignment of the network.

    Attributes:
        rounds: Most rounds.
        resample: Whether every round draws new points; the problem must know how.
        ranks: ``subspace.rank`` of round after round, the last one repeated; empty for the same in all.
        warm_share: Share of a round's Krylov basis that is taken over from the round before; at most half.
        objective: What the network is aligned to: ``"residual"`` (the problem's own loss), ``"targets"`` (the
            values of the refined predictor), or ``"pseudo_time"`` (published: the loss, with
            ``(u - target) / pseudo_time`` added to the largest block).
        target_share: Part of the way from network to predictor at which the targets lie, above 0, at most 1.
        pseudo_time: Length of the pseudo-time step.
        optimizer: ``"tangent"`` (damped Gauss-Newton steps in the tangent space), ``"lbfgs"`` or ``"adam"``.
        steps: Optimiser steps in a round.
        learning_rate: Of Adam.
        history: Of L-BFGS.
        precision: ``"float64"``, or ``"float32"`` for L-BFGS and Adam.
        tangent_rank: Directions of a tangent step.
        momentum: Share of the last tangent step to start the next one from, below 1.
        acceleration: Whether tangent steps are bent along the curvature (geodesic acceleration).
        max_seconds: No round begins later than this many seconds after the first; absent for no limit.
        target_error: Stop once the network's error on the evaluation data is at most this.
        target_residual: Stop once the network's residual, the square root of the loss, is at most this.
        patience: Stop after so many rounds in a row that improve neither network nor predictor by a tenth.
    """

    rounds: int = 10
    resample: bool = False
    ranks: tuple[int, ...] = ()
    warm_share: float = 0.0
    objective: str = "residual"
    target_share: float = 1.0
    pseudo_time: float = 1e-3
    optimizer: str = "tangent"
    steps: int = 10
    learning_rate: float = 1e-3
    history: int = 100
    precision: str = "float64"
    tangent_rank: int = 400
    momentum: float = 0.9
    acceleration: bool = True
    max_seconds: float | None = None
    target_error: float | None = None
    target_residual: float | None = None
    patience: int = 3

    def __post_init__(self) -> None:
        """Check each value and how they go together."""
        _refuse(
            _choice("iterate", "objective", self.objective, ("residual", "targets", "pseudo_time")),
            _choice("iterate", "optimizer", self.optimizer, ("tangent", "lbfgs", "adam")),
            _choice("iterate", "precision", self.precision, ("float64", "float32")),
            _at_least("iterate", self, rounds=1, steps=1, history=1, tangent_rank=1, patience=1),
            _at_least("iterate", self, max_seconds=0.0, target_error=0.0, target_residual=0.0),
            [
                f"iterate.{key} = {getattr(self, key)}: must be positive and finite"
                for key in ("learning_rate", "pseudo_time")
                if not 0.0 < getattr(self, key) < inf
            ],
            [
                f"iterate.{key} = {getattr(self, key)}: must be at least 0 and below 1"
                for key in ("momentum", "warm_share")
                if not 0.0 <= getattr(self, key) < 1.0
            ],
            [f"iterate.ranks = {list(self.ranks)}: each must be at least 1"] * any(k < 1 for k in self.ranks),
        )
        if not 0.0 < self.target_share <= 1.0:
            raise JobError(f"iterate.target_share = {self.target_share}: must be above 0 and at most 1")
        if self.precision == "float32" and self.optimizer == "tangent":
            raise JobError(
                'iterate.precision = "float32" is for "lbfgs" and "adam": tangent steps are solved in float64'
            )

    def rank_of(self, round_: int, otherwise: int) -> int:
        """``subspace.rank`` of a round.

        Args:
            round_: Number of the round, from 0.
            otherwise: The job's ``subspace.rank``.

        Returns:
            The rank.
        """
        return self.ranks[min(round_, len(self.ranks) - 1)] if self.ranks else otherwise


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How the start of a shipped problem is trained.

    Attributes:
        steps: Optimiser steps.
        optimizer: ``"adam"``, or ``"lbfgs"`` on all training points at once, with strong Wolfe line searches.
        batch_size: Functions or points per step of Adam, as the problem counts them; absent takes all.
        learning_rate: Adam's step size at the beginning.
        schedule: ``"cosine"`` to zero, or ``"exponential"``: times ``decay`` every ``decay_every`` steps.
        decay: Factor of the exponential schedule.
        decay_every: Steps between two factors.
        seed: Seed of the initial weights and of the batches.
    """

    steps: int
    optimizer: str = "adam"
    batch_size: int | None = None
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    decay: float = 0.9
    decay_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        """Check each value."""
        _refuse(
            _at_least("train", self, steps=1, batch_size=1, decay_every=1, seed=0),
            [
                f"train.{key} = {getattr(self, key)}: must be positive and finite"
                for key in ("learning_rate", "decay")
                if not 0.0 < getattr(self, key) < inf
            ],
            _choice("train", "schedule", self.schedule, ("cosine", "exponential")),
            _choice("train", "optimizer", self.optimizer, ("adam", "lbfgs")),
        )
        if self.optimizer == "lbfgs" and self.batch_size is not None:
            raise JobError(
                f'train.batch_size = {self.batch_size}: leave it out with train.optimizer = "lbfgs", '
                "whose line searches need the same points in every step"
            )
