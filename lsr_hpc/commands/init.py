"""``lsr-hpc init`` and ``lsr-hpc schema``: what a job file may hold, for people and for editors."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lsr_hpc.console import say
from lsr_hpc.errors import EnvironmentProblem, ExitCode, JobError

__all__ = ["init", "schema"]


def init(options: argparse.Namespace) -> int:
    """Write a job file with comments.

    Args:
        options: Parsed command line.

    Returns:
        Exit code.

    Raises:
        JobError: If there is no such problem, or the file is there already.
        EnvironmentProblem: If it cannot be written.
    """
    from lsr_hpc.job_template import job_template
    from lsr_hpc.publish import check_file, publish_text

    function: str = options.problem
    stem = Path(function.partition(":")[0]).stem if function.partition(":")[0].endswith(".py") else function
    out: Path = options.out or Path(f"{stem.replace(':', '_')}.toml")
    if check_file(out, ".toml", "--out").exists():
        raise JobError(f"{out} is there already: name another file by --out")
    text = job_template(function, out.stem)
    try:
        publish_text(out.resolve(), text)
    except OSError as error:
        raise EnvironmentProblem(f"--out {out} cannot be written: {error.strerror}") from error
    say(f"{out}: read it, change it, and try `lsr-hpc refine {out} --dry-run`")
    return int(ExitCode.DONE)


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema of job files.

    Args:
        options: Parsed command line, of which nothing is used.

    Returns:
        Exit code.
    """
    from lsr_hpc.job_description import job_schema

    say(json.dumps(job_schema(), indent=1, allow_nan=False))
    return int(ExitCode.DONE)
