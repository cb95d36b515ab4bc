"""What a case of the catalogue of errors is: one bad input, and what the product answers to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["FAMILY", "JOB", "Case", "Given", "functions"]

Given = Callable[[Path], object]
"""Makes the bad input in the directory that the command is given in."""

# The job that a case starts from, unless it brings one.
JOB = """\
[problem]
function = "mine.py:build"
[subspace]
rank = 5
"""
_FUNCTIONS = """\
import torch
from torch import nn
from lsr_hpc import Evaluation, Problem, ProblemFamily, ResidualBlock

x = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
y = torch.sin(3 * x)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))


def problem(residual=lambda u, x, y: u(x) - y, model=None, points=x, data=(y,), weight=1.0, **more):
    block = ResidualBlock(name="fit", residual=residual, points=points, data=data, weight=weight)
    return Problem(**({"name": "mine", "model": model or network(), "blocks": [block]} | more))


"""
# Two instances.
FAMILY = "return ProblemFamily(name='two', n_instances=2, instance=lambda i: problem(data=(y + i,)))"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One bad input.

    Attributes:
        what: The input, as the document says it.
        says: What is printed, without ``lsr-hpc: `` before it: ``HERE`` is the directory of the command, ``...``
            stands for any text.
        code: Exit code.
        argv: The command after ``lsr-hpc``, as in a shell.
        job: Text of ``job.toml``.
        build: Text of ``mine.py`` behind what all cases share; without ``def build`` it is the body of that.
        given: What else is there.
        environment: Variables of the environment.
        run: ``"run"`` or ``"family"``: the finished refinement that is there, of one problem or two.
        disk: ``"full"`` or ``"locked"``: a directory of that name is there, on a disk without room or without
            the right to write.
        printed: Whether the message is a result, on standard output.
        apart: Whether a process of its own is needed, because libraries read what they are given once.
    """

    what: str
    says: str
    code: int = 2
    argv: str = "refine job.toml --out out"
    job: str = JOB
    build: str = "return problem()"
    given: Given | None = None
    environment: dict[str, str] = field(default_factory=dict)
    run: str = ""
    disk: str = ""
    printed: bool = False
    apart: bool = False


def functions(build: str) -> str:
    """Text of ``mine.py``.

    Args:
        build: As in :class:`Case`.

    Returns:
        The text of the file.
    """
    if "def build" in build:
        return _FUNCTIONS + build
    return _FUNCTIONS + "def build():\n" + "".join(f"    {line}\n" for line in build.splitlines())
