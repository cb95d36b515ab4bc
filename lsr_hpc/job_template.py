"""A job file to begin with: every setting with its meaning and its default, in comments."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

from lsr_hpc.errors import JobError
from lsr_hpc.job_description import Setting, described, sections, settings_of
from lsr_hpc.problems import PROBLEMS
from lsr_hpc.toml_text import dump_toml

__all__ = ["job_template"]

_WIDTH = 100
# Sections that change what commands do by being there at all.
_OPTIONAL = ("iterate", "transfer", "campaign")
_TRAINING_STEPS = 2000


def job_template(function: str, name: str) -> str:
    """Write the job file.

    Args:
        function: A shipped problem, or ``file.py:function``, or ``package.module:function``.
        name: Name of the job.

    Returns:
        TOML with comments.

    Raises:
        JobError: If there is no such problem.
    """
    if ":" not in function and function not in PROBLEMS:
        raise JobError(
            f"problem {function!r} is not shipped: use one of {', '.join(PROBLEMS)}, or FILE.py:FUNCTION"
        )
    shipped = PROBLEMS.get(function)
    about = f"{function}: {shipped.summary}" if shipped else f"the problem that {function} makes"
    parts = [
        f"# Refinement of {about}.\n#\n#   mpiexec -n 2 lsr-hpc refine {name}.toml --preset small\n#\n"
        + _comment('Whatever stands behind "#" is as shown unless you say otherwise.'),
        _problem_section(function, name),
    ]
    for section, kind in sections().items():
        if section == "problem" or (section == "train" and not shipped):
            continue
        is_optional = section in _OPTIONAL
        head = inspect.cleandoc(kind.__doc__ or "").split("\n")[0].replace("``", "")
        text = _comment(head) + f"{'# ' if is_optional else ''}[{section}]\n"
        text += "".join(map(_setting, settings_of(kind)))
        if section == "train":
            text = text.replace("# steps: must be given\n", f"steps = {_TRAINING_STEPS}\n")
        parts.append(text)
    parts.append(_comment("lsr-hpc refine JOB --preset small") + "[preset.small]\nsubspace.rank = 40\n")
    return "\n".join(parts)


def _problem_section(function: str, name: str) -> str:
    text = "[problem]\n" + dump_toml({"function": function})
    if function not in PROBLEMS:
        return text + _comment("Keyword arguments of the function.") + "[problem.args]\n"
    weights = f"{name}.safetensors"
    text += _comment(f"The trained start, beside this file: lsr-hpc train {name}.toml --out {weights}")
    text += dump_toml({"weights": weights}) + "\n[problem.args]\n"
    build = PROBLEMS[function].build
    texts = described(build, "Args")
    for parameter in list(inspect.signature(build).parameters.values())[1:]:
        text += _comment(texts[parameter.name]) + _comment(
            dump_toml({parameter.name: parameter.default}).strip()
        )
    return text


def _setting(setting: Setting) -> str:
    text = _comment(setting.text)
    if setting.is_required:
        return text + _comment(f"{setting.name}: must be given")
    if setting.default is None:
        return text + _comment(f"{setting.name}: not set")
    default: Any = list(setting.default) if isinstance(setting.default, tuple) else setting.default
    written = f"{setting.name} = {{}}" if default == {} else dump_toml({setting.name: default}).strip()
    return text + f"# {written}\n"


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, _WIDTH))
