"""What the user hands in: a trained network, its residual blocks and, apart from them, evaluation data.

The loss behind a problem is ``L = sum_k weight_k * mean(r_k**2)`` over the rows of block k; LSR works on
the stacked, row-scaled residual f with ``L = ||f||^2``, so every row of block k is multiplied by
``sqrt(weight_k / N_k)`` and block sizes never set weights by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lsr_hpc.errors import JobError
from lsr_hpc.explaining import in_one_line

__all__ = ["Evaluation", "Field", "ModelSpec", "Problem", "ProblemFamily", "ResidualBlock", "RowSource"]

Field = Callable[..., Tensor]
"""A network with its parameters bound: maps inputs, each (n, ...), to outputs (n, C)."""


class RowSource(Protocol):
    """Data held by global index: a tensor, an array, a ``numpy.memmap`` or anything sliceable alike."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with the global number of points first."""

    def __getitem__(self, index: Any, /) -> Any:
        """Rows of an index array."""


@dataclass(frozen=True, kw_only=True)
class ResidualBlock:
    """One term of the loss: residual rows at a set of points.

    Attributes:
        name: Shown in messages and results.
        residual: ``residual(u, points, *data) -> (n,) or (n, m)``. ``u`` is the network as a function
            of its inputs; input derivatives go through ``torch.func`` (see
            :mod:`lsr_hpc.derivatives`). Row i may depend on point i alone.
        points: Inputs, shape (N_points, ...), indexed by global point number.
        data: Further arrays of N_points rows each (targets, forcing), passed after the points.
        weight: lambda_k of the loss, >= 0; it multiplies the mean of squares over the block's rows.
        hold_out: Whether points of this block may be held out to choose the rank. Blocks with fewer
            than 20 points never are: they pin the solution down.
    """

    name: str
    residual: Callable[..., Tensor]
    points: RowSource
    data: tuple[RowSource, ...] = ()
    weight: float = 1.0
    hold_out: bool = True

    @property
    def n_points(self) -> int:
        """Global number of points."""
        return int(self.points.shape[0])

    def take(self, indices: np.ndarray[Any, Any]) -> tuple[Tensor, ...]:
        """Points and data at the given global indices, floating ones as float64.

        Args:
            indices: Global point numbers, shape (n,).

        Returns:
            ``(points, *data)``, each with n rows.
        """
        return tuple(as_tensor(source[_index_for(source, indices)]) for source in (self.points, *self.data))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation data, never used in a fit: the relative L2 error is taken against it.

    Attributes:
        inputs: Inputs of the network, each (N_eval, ...).
        reference: Reference values, shape (N_eval, C).
        outputs: Which outputs of the network these are, by number; None for all of them in order.
        one_hot: Whether the reference holds labels, 1 in the column of the class and 0 elsewhere: the share
            of points whose largest output is that of the class is then reported too.
        groups: Number of equal groups of consecutive points, such as the functions of an operator; the error
            is the mean over the groups of each one's relative L2 error.
    """

    inputs: tuple[RowSource, ...]
    reference: RowSource
    outputs: tuple[int, ...] | None = None
    one_hot: bool = False
    groups: int = 1

    @property
    def n_points(self) -> int:
        """Number of evaluation points."""
        return int(self.reference.shape[0])

    def take(self, points: slice) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs and reference of some points, floating ones as float64.

        Args:
            points: Which points.

        Returns:
            The network's inputs, and the reference values.
        """
        return tuple(as_tensor(source[points]) for source in self.inputs), as_tensor(self.reference[points])

    def judged(self, values: Tensor) -> Tensor:
        """The outputs that have a reference.

        Args:
            values: All outputs of the network, (n, C').

        Returns:
            Shape (n, C).
        """
        return values if self.outputs is None else values[:, list(self.outputs)]

    def error(self, values: Tensor) -> float:
        """Mean over the groups of the relative L2 error; absolute where the reference is zero.

        Args:
            values: All outputs of the network at all points, (n, C'), float64.

        Returns:
            The error.
        """
        _, reference = self.take(slice(None))

        deviations = (self.judged(values).reshape(reference.shape) - reference, reference)
        difference, norm = (torch.linalg.vector_norm(d.reshape(self.groups, -1), dim=1) for d in deviations)
        return float((difference / torch.where(norm > 0, norm, 1.0)).mean())


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """How a stored predictor finds its architecture again, without pickle.

    Attributes:
        architecture: A name of :data:`lsr_hpc.models.ARCHITECTURES`.
        arguments: JSON-compatible keyword arguments of that architecture.
    """

    architecture: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A trained network with its residual.

    Attributes:
        name: Shown in results.
        model: The trained network; it is never modified.
        blocks: Residual blocks, at least one.
        evaluation: Data for the error figures, or None.
        validation: Residual blocks of the user's own held-out data; replaces the held-out fraction.
        model_spec: How to rebuild the architecture on load; None for a user's own module.
        start_metrics: What is known of the start (command, seed, measured error); copied to the result.
        alignment_points: Inputs at which the network may be aligned to the refined predictor, (N, ...), best
            denser than those of the residual; None takes the points of the largest block.
        resample: ``resample(round)`` returns the blocks of a round with points drawn anew, the same on every
            rank; round 0 has ``blocks`` itself. None where points are fixed.
    """

    name: str
    model: nn.Module
    blocks: Sequence[ResidualBlock]
    evaluation: Evaluation | None = None
    validation: Sequence[ResidualBlock] = ()
    model_spec: ModelSpec | None = None
    start_metrics: dict[str, Any] = field(default_factory=dict)
    alignment_points: RowSource | None = None
    resample: Callable[[int], Sequence[ResidualBlock]] | None = None


@dataclass(frozen=True, kw_only=True)
class ProblemFamily:
    """Many instances of one trained operator, each refined by itself.

    Attributes:
        name: Shown in results.
        n_instances: Number of instances.
        instance: ``instance(i) -> Problem``, cheap, the same on every rank.
    """

    name: str
    n_instances: int
    instance: Callable[[int], Problem]

    @classmethod
    def of(cls, problem: Problem) -> ProblemFamily:
        """A single problem as a family of one.

        Args:
            problem: The problem.

        Returns:
            The family.
        """
        return cls(name=problem.name, n_instances=1, instance=lambda _: problem)


def as_tensor(values: Any) -> Tensor:
    """Convert sliced rows to a CPU tensor; floating point becomes float64.

    Args:
        values: Tensor or array.

    Returns:
        Detached tensor that shares memory where it can.
    """
    tensor = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.ascontiguousarray(values))
    return tensor.double() if tensor.is_floating_point() else tensor


def _index_for(source: RowSource, indices: np.ndarray[Any, Any]) -> Any:
    return torch.from_numpy(indices) if isinstance(source, Tensor) else indices


def check_problem(problem: Problem) -> None:
    """Check what can be seen without evaluating anything; the same answer on every rank.

    Args:
        problem: The problem to check.

    Raises:
        JobError: Naming the block or parameter, the value and the remedy.
    """
    if not problem.blocks:
        raise JobError(f"problem {problem.name!r} has no residual block: give at least one ResidualBlock")
    trainable = [(n, p) for n, p in problem.model.named_parameters() if p.requires_grad]
    if not trainable:
        raise JobError(
            f"the model of problem {problem.name!r} has no trainable parameter: "
            "set requires_grad on those that may change"
        )
    for name, parameter in problem.model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise JobError(
                f"parameter {name!r} has no shape yet: call the model once, or load its weights, before the "
                "problem is made"
            )
        if parameter.is_meta:
            raise JobError(f"parameter {name!r} is on the meta device, without values: load its weights")
        if not (parameter.is_floating_point() or parameter.is_complex()):
            raise JobError(
                f"parameter {name!r} has dtype {parameter.dtype}: floating point is needed, real or complex; "
                "keep integers in buffers"
            )
        if not bool(torch.isfinite(parameter).all()):
            raise JobError(
                f"parameter {name!r} holds NaN or Inf: the model is not a trained state; "
                "reload the weights or train again"
            )
    names = [b.name for b in (*problem.blocks, *problem.validation)]
    for block in (*problem.blocks, *problem.validation):
        _check_block(block)
        if names.count(block.name) > 1:
            raise JobError(f"two residual blocks are called {block.name!r}: give each its own name")
    for kind, blocks in (("residual", problem.blocks), ("validation", problem.validation)):
        if blocks and all(b.weight == 0 for b in blocks):
            raise JobError(f"every {kind} block has weight 0: give one of them a positive weight")
    if problem.evaluation is not None:
        _check_evaluation(problem.evaluation)


def _check_block(block: ResidualBlock) -> None:
    if block.n_points == 0:
        raise JobError(f"residual block {block.name!r} has no points: leave the block out or give it data")
    if not (np.isfinite(block.weight) and block.weight >= 0):
        raise JobError(f"residual block {block.name!r} has weight {block.weight}: use a finite number >= 0")
    for i, source in enumerate(block.data):
        if source.shape[0] != block.n_points:
            raise JobError(
                f"residual block {block.name!r}: data[{i}] has {source.shape[0]} rows but points "
                f"has {block.n_points}; both are indexed by the same global point number"
            )
    for name, source in [("points", block.points), *((f"data[{i}]", d) for i, d in enumerate(block.data))]:
        _check_numbers(f"residual block {block.name!r}: {name}", source)


def _check_numbers(label: str, source: RowSource) -> None:
    """Refuse rows that no tensor can hold: text, objects."""
    try:
        as_tensor(source[_index_for(source, np.zeros(1, dtype=np.int64))])
    except Exception as error:
        raise JobError(
            f"{label} cannot be made a tensor ({in_one_line(error)}): give a tensor or an array of numbers"
        ) from error


def _check_evaluation(evaluation: Evaluation) -> None:
    named = {f"evaluation.inputs[{i}]": inputs for i, inputs in enumerate(evaluation.inputs)}
    named["evaluation.reference"] = evaluation.reference
    for name, values in named.items():
        if not hasattr(values, "shape"):
            raise JobError(f"{name} is a {type(values).__name__}: give a tensor or an array")
        if len(values.shape) == 0 or values.shape[0] == 0:
            raise JobError(f"{name} is empty: give at least one point, or evaluation=None")
        if values.shape[0] != evaluation.n_points:
            raise JobError(
                f"{name} has {values.shape[0]} rows, evaluation.reference has {evaluation.n_points}: give a "
                "row of each for every point"
            )
        _check_numbers(name, values)
        if not bool(torch.isfinite(as_tensor(values[:])).all()):
            raise JobError(f"{name} holds NaN or Inf: clean the evaluation data")

    if evaluation.outputs is not None and not evaluation.outputs:
        raise JobError("evaluation.outputs is empty: name the outputs that have a reference, or leave it out")
    if evaluation.one_hot:
        labels = as_tensor(evaluation.reference[:])
        is_one_hot = labels.ndim == 2 and ((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()
        if not is_one_hot:
            raise JobError(
                "evaluation.one_hot: evaluation.reference has rows that are not a single 1 among zeros; give "
                "labels by torch.nn.functional.one_hot, or leave it out"
            )
    if evaluation.groups < 1 or evaluation.n_points % evaluation.groups:
        raise JobError(
            f"evaluation.groups = {evaluation.groups}: {evaluation.n_points} points cannot be cut into so "
            "many equal groups; use a divisor"
        )


def check_outputs(evaluation: Evaluation, field: Field, device: torch.device) -> None:
    """Compare the network's outputs at a few evaluation points with the reference's shape.

    Args:
        evaluation: Checked evaluation data.
        field: The network.
        device: Where the network lives.

    Raises:
        JobError: If the network refuses the inputs, or its outputs have another shape.
    """
    inputs, reference = evaluation.take(slice(0, 4))
    shapes = ", ".join(str(tuple(t.shape)) for t in inputs)
    try:
        with torch.no_grad():
            outputs = evaluation.judged(field(*(t.to(device) for t in inputs)))
    except Exception as error:
        raise JobError(
            f"the model failed on evaluation.inputs of shape {shapes}: {in_one_line(error)}; give what the "
            "model is called with"
        ) from error
    if outputs.shape != reference.shape:
        raise JobError(
            f"the model maps evaluation.inputs of shape {shapes} to {tuple(outputs.shape)}, but "
            f"evaluation.reference has shape {tuple(reference.shape)} there: give both as (N, C)"
        )
