"""``lsr-hpc predict``: evaluate a stored predictor; needs neither MPI nor PETSc."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lsr_hpc.console import say
from lsr_hpc.errors import EnvironmentProblem, ExitCode, JobError, LsrError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Read points, write values.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If the run, the points or the instance do not fit.
        EnvironmentProblem: If the output cannot be written.
    """
    import torch

    from lsr_hpc.point_files import SUFFIXES, read_points, write_values
    from lsr_hpc.predictor import RefinedPredictor, load_predictors, read_predictor_manifest
    from lsr_hpc.publish import check_file, publish_file

    directory: Path = options.run / "predictor"
    if not directory.is_dir():
        raise JobError(f"{options.run} holds no predictor: give the run directory of a finished refinement")
    output = check_file(options.output, SUFFIXES, "--output")
    if output == options.input.resolve():
        raise JobError(f"--output {options.output} is the input: name another file")
    points = read_points(options.input)
    x = torch.from_numpy(points)
    manifest = read_predictor_manifest(directory)
    n_instances, instance = manifest["n_instances"], options.instance
    if output.suffix == ".csv" and instance is None and n_instances > 1:
        raise JobError(
            f"--output {options.output}: a table holds one instance, add --instance I, or use .npy"
        )
    if instance is not None:
        _require_solved(options.run, instance)
    model_of = _own_models(options.run, n_instances) if manifest["architecture"] is None else None
    if instance is None:
        predictors = load_predictors(directory, model_of)
    else:
        is_own = model_of is not None and 0 <= instance < n_instances
        model = model_of(instance) if model_of is not None and is_own else None
        predictors = [RefinedPredictor.load(directory, instance, model)]
    with _explaining_points(x):
        values = torch.stack([p.predict(x, batch_size=options.batch) for p in predictors])
    if instance is not None or n_instances == 1:
        values = values[0]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with publish_file(output) as temporary:
            write_values(temporary, output.suffix, points, values.numpy())
    except OSError as error:
        raise EnvironmentProblem(f"--output {options.output} cannot be written: {error.strerror}") from error
    say(f"{options.output}: shape {tuple(values.shape)}")
    return int(ExitCode.DONE)


def _require_solved(run: Path, instance: int) -> None:
    """Refuse a condition that a transfer could not solve; its predictor is NaN."""
    import json

    from lsr_hpc.publish import RUN_MARKER

    if not (run / RUN_MARKER).is_file():
        return
    result = json.loads((run / RUN_MARKER).read_text(encoding="utf-8"))
    for failed in result.get("transfer", {}).get("failed", []):
        if failed["instance"] == instance:
            raise JobError(
                f"--instance {instance} could not be solved: {failed['cause']}; name another one, or refine "
                "again"
            )


@contextmanager
def _explaining_points(x: Tensor) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, LsrError) else f"{type(error).__name__}: "
        message = " ".join(str(error).split())
        raise JobError(
            f"--input: points of shape {tuple(x.shape)} do not fit the network ({kind}{message}): give what "
            "it is called with"
        ) from error


def _own_models(run: Path, n_instances: int) -> Callable[[int], nn.Module]:
    """The user's own networks, built again from the run's job."""
    from lsr_hpc.build import build_problem
    from lsr_hpc.job import load_job

    family = build_problem(load_job(run / "job.toml"))
    if family.n_instances != n_instances:
        raise JobError(
            f"{run} holds {n_instances} instances, but its problem function now makes {family.n_instances}: "
            "restore the function that was refined"
        )
    return lambda i: family.instance(i).model
