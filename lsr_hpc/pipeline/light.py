"""Tasks without MPI, for light workers: looking at the problem, and the functions that hang on rounds."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lsr_hpc.errors import JobError
from lsr_hpc.job import Job
from lsr_hpc.pipeline.advance import Outcome
from lsr_hpc.pipeline.spec import StepResult

__all__ = ["call_after_round", "call_at_end", "describe"]


def describe(job: Job) -> tuple[str, int]:
    """Build a job's problem, to see whether it can be built and how many instances it has.

    Args:
        job: The job.

    Returns:
        Name of the problem or family, and number of instances.

    Raises:
        JobError: If it cannot be built.
    """
    from lsr_hpc.build import build_problem

    family = build_problem(job)
    if job.rounds.resample and family.instance(0).resample is None:
        raise JobError(
            f"iterate.resample = true, but problem {family.name!r} has fixed points: leave it out, or give "
            "Problem.resample"
        )
    return family.name, family.n_instances


def call_after_round(function: str, run: str, instance: int, number: int, outcome: Outcome) -> dict[str, Any]:
    """Call a function that hangs on the steps of an instance.

    Args:
        function: ``"package.module:function"``.
        run: The run directory.
        instance: Number of the instance.
        number: Place in the chain of the instance's tasks.
        outcome: What came out there.

    Returns:
        What the function returned; nothing if no round was finished at this place.
    """
    if outcome.number != number or outcome.result is None or outcome.result.status == "yielded":
        return {}
    return _checked(function, _find(function)(Path(run), instance, outcome.result))


def call_at_end(function: str, run: str, results: Sequence[StepResult | None]) -> dict[str, Any]:
    """Call a function at the end of the run.

    Args:
        function: ``"package.module:function"``.
        run: The run directory.
        results: Last result of every instance, None for one that never had any.

    Returns:
        What the function returned.
    """
    return _checked(function, _find(function)(Path(run), list(results)))


def _find(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise JobError(f"the function {name!r} of section [run] cannot be imported: {error}") from error


def _checked(name: str, returned: object) -> dict[str, Any]:
    """Refuse what cannot go to a file, here and not in the controller."""
    if returned is None:
        return {}
    if not isinstance(returned, Mapping):
        raise JobError(f"{name} returned a {type(returned).__name__}: return a table of JSON values, or None")
    try:
        json.dumps(returned, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise JobError(f"{name} returned what JSON cannot hold ({error})") from error
    return dict(returned)
