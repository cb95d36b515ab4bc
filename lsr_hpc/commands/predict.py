"""``lsr-hpc predict``: evaluate a stored predictor; needs neither MPI nor PETSc."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lsr_hpc.errors import ExitCode, JobError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Read points, write values.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If the run, the points or the instance do not fit.
    """
    import torch

    from lsr_hpc.predictor import RefinedPredictor, load_predictors

    directory: Path = options.run / "predictor"
    if not directory.is_dir():
        raise JobError(f"{options.run} holds no predictor: give the run directory of a finished refinement")
    x = torch.from_numpy(_read_points(options.input))
    model = _own_model(options.run)
    if options.instance is not None:
        values = RefinedPredictor.load(directory, options.instance, model).predict(x)
    else:
        try:
            values = torch.stack([p.predict(x) for p in load_predictors(directory, model)])
        except RuntimeError as error:
            raise JobError(f"points of shape {tuple(x.shape)} do not fit the network: {error}") from error
        values = values[0] if len(values) == 1 else values
    temporary = options.output.with_name(f".{options.output.name}.tmp")
    with temporary.open("wb") as file:
        np.save(file, values.numpy())
    os.replace(temporary, options.output)
    print(f"{options.output}: shape {tuple(values.shape)}")
    return int(ExitCode.DONE)


def _read_points(path: Path) -> NDArray[np.float64]:
    try:
        x = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise JobError(f"--input {path} does not exist") from None
    except (ValueError, OSError, EOFError) as error:
        raise JobError(f"--input {path} is not a readable .npy array: {error}") from error
    if not isinstance(x, np.ndarray) or not np.issubdtype(x.dtype, np.number) or np.iscomplexobj(x):
        raise JobError(f"--input {path} must be one array of real numbers")
    if x.ndim == 0 or len(x) == 0:
        raise JobError(f"--input {path} has shape {x.shape}: give points as (n, d) or (n,)")
    if not np.isfinite(x).all():
        raise JobError(f"--input {path} holds NaN or Inf")
    return np.ascontiguousarray(x[:, np.newaxis] if x.ndim == 1 else x, dtype=np.float64)


def _own_model(run: Path) -> nn.Module | None:
    """The user's own network, built again from the run's job, or None for a shipped architecture."""
    from lsr_hpc.job import build_problem, load_job
    from lsr_hpc.store import read_manifest

    if read_manifest(run / "predictor" / "predictor.json")["architecture"] is not None:
        return None
    return build_problem(load_job(run / "job.toml")).instance(0).model
