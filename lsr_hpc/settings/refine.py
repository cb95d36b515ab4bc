"""Settings of one refinement: sections ``[subspace]``, ``[solver]``, ``[held_out]`` and ``[compute]``."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from lsr_hpc.errors import JobError
from lsr_hpc.settings.checks import at_least, choice, parse_bytes, refuse

__all__ = ["ComputeSettings", "HeldOutSettings", "RefineSettings", "SolverSettings", "SubspaceSettings"]

# A narrow Krylov block goes deeper for the same number of products; a wide one multiplies faster.
_WIDEST_BLOCK = 16
_LEAST_DEPTH = 8
_BASES = ("krylov", "svd", "svd+krylov", "randomized", "dual", "random")


@dataclass(frozen=True, kw_only=True)
class SubspaceSettings:
    """Section ``[subspace]``: the directions in parameter space.

    Attributes:
        rank: Largest number of directions; the rank used is chosen up to it. At most the fitted rows.
        basis: ``"krylov"`` (block Krylov space grown from the residual, in SLEPc basis vectors), ``"svd"``
            (SLEPc's singular vectors), ``"svd+krylov"`` (half of each), ``"randomized"`` (the published range
            finder), ``"dual"`` (singular vectors by way of J J^T, for a few thousand rows at most; those of
            singular values below 1e-7 of the largest are out of its reach) or ``"random"`` (control).
        width: Columns of a Krylov block; absent chooses 16, or an eighth of a small rank. Narrower gets more
            out of the same rank, wider runs faster.
        adaptive: Whether a Krylov basis stops growing once it has halved the held-out residual and its later
            half no longer lowers it. Saves products; may take a plateau for the end.
        svd: SLEPc solver behind ``"svd"``: ``"randomized"``, ``"trlanczos"`` or ``"cross"``.
        iterations: Block iterations of SLEPc's randomized solver, restarts allowed to the others.
        oversampling: Extra columns of the randomised methods.
        test_matrix: ``"gaussian"`` or ``"uniform"``; for ``basis = "randomized"``.
        orthogonalization: ``"auto"``, ``"tsqr"`` or ``"cholesky_qr2"``.
        precision: Of the products that draw directions, J^T for ``"krylov"``, J and J^T for ``"svd"`` and
            ``"randomized"``: ``"float64"``, or ``"float32"``, which is twice as fast. J V, and all that
            follows from it, is float64 either way. A Krylov space drawn in float32 may need more directions
            for the same error, and predictors on unlike numbers of ranks agree only to about their error.
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
    precision: str = "float64"
    seed: int = 0
    parameters: tuple[str, ...] = ()
    parameter_fraction: float = 1.0

    def __post_init__(self) -> None:
        """Check each value."""
        refuse(
            choice("subspace", "basis", self.basis, _BASES),
            choice("subspace", "svd", self.svd, ("randomized", "trlanczos", "cross")),
            choice("subspace", "test_matrix", self.test_matrix, ("gaussian", "uniform")),
            choice("subspace", "orthogonalization", self.orthogonalization, ("auto", "tsqr", "cholesky_qr2")),
            choice("subspace", "precision", self.precision, ("float64", "float32")),
            at_least("subspace", self, rank=1, width=1, iterations=1, oversampling=0, seed=0),
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
        refuse(
            choice("solver", "type", self.type, ("tsqr", "lsqr", "cgls")),
            choice("solver", "space", self.space, ("subspace", "full")),
            []
            if self.resolve is True or self.resolve is False
            else choice("solver", "resolve", self.resolve, ("auto",)),
            at_least("solver", self, mu=0.0, cut=0.0, tolerance=0.0, max_iterations=1, resolve_steps=1),
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
        refuse(
            at_least("held_out", self, fraction=0.0, seed=0), [too_much] if 0.9 < self.fraction < inf else []
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
        panels: What a Krylov space lives in: ``"slepc"`` (basis vectors of SLEPc, in host memory),
            ``"torch"`` (tensors on the rank's device), or ``"auto"``: torch on GPUs, SLEPc on CPUs.
        exchange: How blocks travel between GPUs: ``"nccl"``, ``"mpi"`` (CUDA-aware), ``"host"``, or
            ``"auto"``, the first of them that works in a trial. CPU ranks have nothing to choose.
    """

    memory_per_rank: str = "4GiB"
    jacobian: str = "auto"
    device: str = "auto"
    panels: str = "auto"
    exchange: str = "auto"

    def __post_init__(self) -> None:
        """Check each value."""
        mistakes = []
        try:
            parse_bytes(self.memory_per_rank)
        except JobError as error:
            mistakes.append(f"compute.memory_per_rank: {error}")
        refuse(
            mistakes,
            choice("compute", "jacobian", self.jacobian, ("auto", "matrix_free", "factored", "explicit")),
            choice("compute", "device", self.device, ("auto", "cpu", "cuda")),
            choice("compute", "panels", self.panels, ("auto", "slepc", "torch")),
            choice("compute", "exchange", self.exchange, ("auto", "host", "mpi", "nccl")),
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
