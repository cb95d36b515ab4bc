"""From a job to what it names: the problem to refine, or the training of its start."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr_hpc.errors import JobError
from lsr_hpc.explaining import explaining
from lsr_hpc.job import Job, check_instance
from lsr_hpc.problems import PROBLEMS
from lsr_hpc.problems.arguments import ArgumentError
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.user_code import check_arguments, find_function

if TYPE_CHECKING:
    from lsr_hpc.problem import Problem, ProblemFamily
    from lsr_hpc.training import TrainingTask

__all__ = ["build_problem", "only_instance", "read_weights", "training_task"]


def build_problem(job: Job) -> ProblemFamily:
    """Call the function that the job names.

    Args:
        job: The job.

    Returns:
        The family of instances; a single problem, or the one that ``problem.instance`` names, is a family of
        one.

    Raises:
        JobError: If the function cannot be found, refuses its arguments, fails, or returns something else;
            the family's ``instance`` raises it too.
    """
    family = _build_family(job)
    return family if job.problem.instance is None else only_instance(family, job.problem.instance)


def only_instance(family: ProblemFamily, instance: int) -> ProblemFamily:
    """One instance of a family, as a family of one.

    Args:
        family: The family.
        instance: Number of the instance.

    Returns:
        The family of one.

    Raises:
        JobError: If the family has no such instance.
    """
    from lsr_hpc.problem import ProblemFamily

    check_instance(instance, family.name, family.n_instances)
    return ProblemFamily(name=family.name, n_instances=1, instance=lambda _: family.instance(instance))


def _build_family(job: Job) -> ProblemFamily:
    from lsr_hpc.problem import Problem, ProblemFamily

    name = job.problem.function
    function = find_function(name, job.problem.path)
    arguments: list[Any] = []
    if job.problem.weights is not None:
        arguments.append(read_weights(Path(job.problem.weights)))
    elif name in PROBLEMS:
        raise JobError(
            "problem.weights is missing: name the trained weights, or make them with `lsr-hpc train`"
        )
    check_arguments(function, arguments, job.problem.args, "problem.args")
    if name in PROBLEMS:
        with _explaining_arguments(job):
            built = function(*arguments, **job.problem.args)
    else:
        with explaining(f"problem.function = {name!r}"):
            built = function(*arguments, **job.problem.args)
    if isinstance(built, Problem):
        _check_types(built, f"problem.function = {name!r}")
        return ProblemFamily.of(built)
    if not isinstance(built, ProblemFamily):
        raise JobError(
            f"problem.function = {name!r} returned {_kind(built)}: return an lsr_hpc.Problem or ProblemFamily"
        )
    if not isinstance(built.n_instances, int) or built.n_instances < 1 or not callable(built.instance):
        raise JobError(
            f"problem.function = {name!r} returned a ProblemFamily with n_instances = {built.n_instances!r} "
            f"and instance = {_kind(built.instance)}: a number from 1 on and a function are needed"
        )
    return ProblemFamily(
        name=str(built.name), n_instances=built.n_instances, instance=_checked_instance(name, built.instance)
    )


def _checked_instance(name: str, instance: Callable[[int], Problem]) -> Callable[[int], Problem]:
    """The family's function, with its errors in words and its problems checked."""
    from lsr_hpc.problem import Problem

    def checked(i: int) -> Problem:
        what = f"problem.function = {name!r}: instance({i}) of its family"
        with explaining(what):
            problem = instance(i)
        if not isinstance(problem, Problem):
            raise JobError(f"{what} is {_kind(problem)}: return an lsr_hpc.Problem")
        _check_types(problem, what)
        return problem

    return checked


def _check_types(problem: Problem, what: str) -> None:
    """Refuse what would fail far from its cause: a model, blocks or data of another type."""
    from torch import nn

    from lsr_hpc.problem import Evaluation, ModelSpec, ResidualBlock

    def expect(value: object, kind: Any, label: str, wanted: str) -> None:
        if not isinstance(value, kind):
            raise JobError(f"{what}: {label} is {_kind(value)}: {wanted} is expected")

    expect(problem.name, str, "name", "a string")
    expect(problem.model, nn.Module, "model", "a torch.nn.Module")
    expect(problem.evaluation, Evaluation | None, "evaluation", "an lsr_hpc.Evaluation or None")
    expect(problem.model_spec, ModelSpec | None, "model_spec", "a ModelSpec or None")
    for label, blocks in (("blocks", problem.blocks), ("validation", problem.validation)):
        expect(blocks, Sequence, label, "a list of lsr_hpc.ResidualBlock")
        for i, block in enumerate(blocks):
            expect(block, ResidualBlock, f"{label}[{i}]", "an lsr_hpc.ResidualBlock")
            block_label = f"residual block {block.name!r}: "
            if not callable(block.residual):
                raise JobError(
                    f"{what}: {block_label}residual is {_kind(block.residual)}: a function is expected"
                )
            expect(block.weight, int | float, f"{block_label}weight", "a number")
            expect(block.data, tuple | list, f"{block_label}data", "a tuple of arrays")
            for name, source in [
                ("points", block.points),
                *((f"data[{j}]", d) for j, d in enumerate(block.data)),
            ]:
                if len(getattr(source, "shape", ())) == 0:
                    raise JobError(
                        f"{what}: {block_label}{name} is {_kind(source)}: a tensor or an array with one "
                        "row per point is expected"
                    )


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


@contextmanager
def _explaining_arguments(job: Job, training: bool = False) -> Iterator[None]:
    """Name the place in the job file of what a shipped problem refuses."""
    try:
        yield
    except ArgumentError as error:
        if error.argument == "weights":
            raise JobError(f"problem.weights = {str(job.problem.weights)!r}: {error.complaint}") from error
        is_own = training and job.train is not None and error.argument in job.train.args
        in_train = training and error.argument in {"batch_size"}
        section = "train" if in_train else "train.args" if is_own else "problem.args"
        raise JobError(f"{section}.{error}") from error
    except MemoryError as error:
        raise JobError(
            f"problem.args: not enough memory for this size ({error}): use a smaller one"
        ) from error


def read_weights(path: Path) -> Any:
    """Read weights, checking them against the record that training left beside them.

    Args:
        path: safetensors file.

    Returns:
        Tensors by name.

    Raises:
        JobError: If they are missing, unreadable, or differ from the record.
    """
    from lsr_hpc.store import is_manifest, read_manifest, read_tensors

    record = path.with_suffix(".json")
    sha256 = None
    if is_manifest(record):
        sha256 = read_manifest(record).get("sha256")
    return read_tensors(path, sha256)


def training_task(job: Job) -> tuple[TrainingTask, TrainingSettings]:
    """The training behind a shipped problem's weights.

    Args:
        job: A job with a ``[train]`` section.

    Returns:
        The task and its settings.

    Raises:
        JobError: If the job has no training, or its problem none, or an argument cannot be.
    """
    if job.problem.function not in PROBLEMS:
        raise JobError(
            f"problem.function = {job.problem.function!r} is your own: train it with your own program; "
            f"`lsr-hpc train` re-makes {', '.join(PROBLEMS)}"
        )
    if job.train is None:
        raise JobError("the job has no section [train]: add one with the number of steps")
    function = PROBLEMS[job.problem.function].training_task
    accepted = inspect.signature(function).parameters
    shared = {k: v for k, v in job.problem.args.items() if k in accepted}
    check_arguments(PROBLEMS[job.problem.function].build, [None], job.problem.args, "problem.args")
    check_arguments(function, [job.train], job.train.args, "train.args")
    with _explaining_arguments(job, training=True):
        return function(job.train, **{**shared, **job.train.args}), job.train
