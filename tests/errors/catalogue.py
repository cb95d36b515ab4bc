"""All cases by area, and the document that lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.errors import commands, job_files, places, problems, runs
from tests.errors.case import Case

__all__ = ["AREAS", "DOCUMENT", "as_markdown"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"
AREAS: Mapping[str, Sequence[Case]] = {
    "The command line": commands.CASES,
    "Job files": job_files.CASES,
    "Functions of yours": problems.FUNCTIONS,
    "Networks": problems.NETWORKS,
    "What a residual returns or does": problems.RESIDUALS,
    "Data": problems.DATA,
    "Sizes and resources": problems.SIZES,
    "Files and directories": places.CASES,
    "Predictions": runs.PREDICTIONS,
    "Directories of runs": runs.CASES,
}
_HEAD = """\
# Errors

What `lsr-hpc` answers to input that is wrong: one message, which names what is wrong and what to do, and an exit code. `--debug`
before the command shows the traceback behind it. Where a row below says 2, nothing has been written; 76 is for a broken or full
environment, 70 for damage that was found. With several MPI ranks the message comes once.

`HERE` stands for the directory the command was typed in, `...` for text that differs from machine to machine or comes from torch.
`job.toml` names a function `build` in `mine.py`, unless the row is about something else.

Every row is run by `tests/errors/test_errors.py`, and this page is written by `python -m tests.errors` from the same cases.
"""


def as_markdown() -> str:
    """The document.

    Returns:
        Its text.
    """
    parts = [_HEAD]
    for area, cases in AREAS.items():
        rows = [f"| {_plain(case.what)} | {_code(case.says)} | {case.code} |" for case in cases]
        parts.append(
            "\n".join([f"## {area}\n", "| input | message | exit code |", "| --- | --- | --- |", *rows, ""])
        )
    return "\n".join(parts)


def _plain(text: str) -> str:
    return text.replace("|", "\\|")


def _code(text: str) -> str:
    return "<br>".join(f"`` {line.strip()} ``".replace("|", "\\|") for line in text.splitlines())
