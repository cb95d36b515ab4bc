"""``lsr-hpc train``: make the trained start of a shipped problem again, with a record of how."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lsr_hpc.errors import ExitCode
from lsr_hpc.job import load_job, training_task
from lsr_hpc.versions import versions

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Train and write weights (safetensors) with a JSON record beside them.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.
    """
    import torch

    from lsr_hpc.store import write_manifest, write_tensors
    from lsr_hpc.training import train

    job = load_job(options.job, options.overrides, options.preset)
    task, settings = training_task(job)
    out: Path = options.out or Path("runs/weights") / f"{job.name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    # One thread: a start is then the same on every machine of one kind.
    torch.set_num_threads(1)
    print(f"training {job.name}: {settings.steps} steps of Adam, seed {settings.seed}", flush=True)
    metrics = train(task, settings, lambda line: print(line, flush=True))

    temporary = out.with_name(f".{out.name}.tmp")
    digest = write_tensors(temporary, task.model.state_dict())
    os.replace(temporary, out)
    preset = f" --preset {options.preset}" if options.preset else ""
    overrides = "".join(f" --set {o}" for o in options.overrides)
    write_manifest(
        out.with_suffix(".json"),
        {
            "file": out.name,
            "sha256": digest,
            "command": f"lsr-hpc train jobs/{options.job.name}{preset}{overrides}",
            "seed": settings.seed,
            "start_error": metrics["error"],
            "loss": metrics["loss"],
            "seconds": metrics["seconds"],
            "versions": versions(with_solvers=False),
        },
    )
    print(
        f"error {metrics['error']:.3e}; weights in {out}\n"
        f"refine them with: lsr-hpc refine {options.job} --set problem.weights='\"{out.resolve()}\"'"
    )
    return int(ExitCode.DONE)
