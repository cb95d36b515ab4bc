"""``lsr-hpc train``: make the trained start of a shipped problem again, with a record of how."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from lsr_hpc.build import training_task
from lsr_hpc.console import say
from lsr_hpc.errors import EnvironmentProblem, ExitCode, JobError
from lsr_hpc.job import load_job
from lsr_hpc.versions import versions

__all__ = ["run"]

_REPOSITORY = Path(__file__).parents[2]


def run(options: argparse.Namespace) -> int:
    """Train and write weights (safetensors) with a JSON record beside them.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If the job or the place of the weights is wrong; nothing is written then.
        EnvironmentProblem: If the weights cannot be written.
    """
    import torch

    from lsr_hpc.precision import in_precision
    from lsr_hpc.publish import publish_file
    from lsr_hpc.store import write_manifest, write_tensors
    from lsr_hpc.training import train

    job = load_job(options.job, options.overrides, options.preset)
    out = _checked_out(options.out or Path("runs/weights") / f"{job.name}.safetensors")
    task, settings = training_task(job)
    # One thread: a start is then the same on every machine of one kind.
    torch.set_num_threads(1)
    optimizer = {"adam": "Adam", "lbfgs": "L-BFGS"}[settings.optimizer]
    polish = f" and {settings.lbfgs_steps} of L-BFGS" if settings.lbfgs_steps else ""
    say(f"training {job.name}: {settings.steps} steps of {optimizer}{polish}, seed {settings.seed}")
    metrics = train(task, settings, say)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with publish_file(out.with_suffix(".json")) as record, publish_file(out) as weights:
            state = task.model.state_dict()
            # Also of a float64 training: a start is no more accurate than that, and half as large.
            digest = write_tensors(weights, {n: in_precision(t, torch.float32) for n, t in state.items()})
            write_manifest(
                record,
                {
                    "file": out.name,
                    "sha256": digest,
                    "command": shlex.join(_words("train", _in_repository(options.job), options)),
                    "seed": settings.seed,
                    "start_error": metrics["error"],
                    "loss": metrics["loss"],
                    "seconds": metrics["seconds"],
                    "versions": versions(with_solvers=False),
                },
            )
    except OSError as error:
        raise EnvironmentProblem(f"the weights cannot be written to {out}: {error}") from error
    there = f"problem.weights={json.dumps(str(out), ensure_ascii=False)}"
    again = shlex.join([*_words("refine", str(options.job), options), "--set", there])
    say(f"error {metrics['error']:.3e}; weights in {out}\nrefine them with: {again}")
    return int(ExitCode.DONE)


def _checked_out(place: Path) -> Path:
    """Where the weights go, refused if a file that training did not make would be lost."""
    from lsr_hpc.publish import check_file
    from lsr_hpc.store import is_manifest

    out = check_file(place, ".safetensors", "--out")
    record = out.with_suffix(".json")
    if (out.exists() or record.exists()) and not is_manifest(record):
        raise JobError(
            f"--out {place}: it or {record.name} beside it exists and was not made by `lsr-hpc train`; "
            "name another file"
        )
    return out


def _words(command: str, job: str, options: argparse.Namespace) -> list[str]:
    """A command with the preset and overrides of this one."""
    words = ["lsr-hpc", command, job]
    if options.preset:
        words += ["--preset", options.preset]
    for override in options.overrides:
        words += ["--set", override]
    return words


def _in_repository(job: Path) -> str:
    """The path as it is given in the repository, where the records of the shipped weights are read."""
    path = job.resolve()
    return str(path.relative_to(_REPOSITORY) if path.is_relative_to(_REPOSITORY) else path)
