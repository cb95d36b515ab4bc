"""Job files: TOML, read strictly into frozen dataclasses, every mistake reported at once.

Reading a job needs the standard library only; :mod:`lsr_hpc.build` makes the problem that it names.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lsr_hpc.errors import JobError
from lsr_hpc.job_lines import JobLines
from lsr_hpc.settings import (
    ComputeSettings,
    HeldOutSettings,
    IterateSettings,
    RefineSettings,
    RunSettings,
    SolverSettings,
    SubspaceSettings,
    TrainingSettings,
    TransferSettings,
)
from lsr_hpc.settings_campaign import CampaignSettings, with_values
from lsr_hpc.settings_slurm import SlurmSettings
from lsr_hpc.toml_text import dump_toml

__all__ = [
    "Job",
    "ProblemSettings",
    "TrainSettings",
    "changed_job",
    "check_instance",
    "convert",
    "load_job",
    "unknown_key",
]

_IF_MISSING = {
    "problem": ': write problem = "NAME" of `lsr-hpc problems`, or "FILE.py:FUNCTION"',
    "problem.function": ': name one of `lsr-hpc problems`, or "FILE.py:FUNCTION"',
    "train.steps": ": write how many steps the optimiser takes",
}
# Part of the default run directory, and of file names beside it.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class ProblemSettings:
    """Section ``[problem]``, or ``problem = "..."`` for the function alone.

    Attributes:
        function: Name of a shipped problem, ``file.py:function`` with the file relative to the job file, or
            ``package.module:function``.
        path: Directory in which modules of yours are looked for first, as in ``python file.py``: that of
            the job file by default, that of the file for ``file.py:function``.
        weights: Trained weights (safetensors), relative to the job file; verified against ``NAME.json``
            beside them where there is one. Passed to the function as its first argument.
        args: Keyword arguments of the function.
        instance: The one instance of a family that is meant, from 0; absent takes all.
    """

    function: str
    path: str | None = None
    weights: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    instance: int | None = None

    def __post_init__(self) -> None:
        """Check the number of the instance."""
        if self.instance is not None and self.instance < 0:
            raise JobError(f"problem.instance = {self.instance}: must be at least 0")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TrainingSettings):
    """Section ``[train]``: how ``lsr-hpc train`` makes the weights of a shipped problem.

    Attributes:
        args: Further arguments of the problem's training.
    """

    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A whole job file.

    Attributes:
        name: Name of the job, by default that of the file; the default run directory is ``runs/NAME``.
        problem: What is refined.
        subspace: See :class:`~lsr_hpc.settings.SubspaceSettings`.
        solver: See :class:`~lsr_hpc.settings.SolverSettings`.
        held_out: See :class:`~lsr_hpc.settings.HeldOutSettings`.
        compute: See :class:`~lsr_hpc.settings.ComputeSettings`.
        iterate: See :class:`~lsr_hpc.settings.IterateSettings`; used by ``lsr-hpc run``. A job without it is
            one shot for ``submit``.
        transfer: See :class:`~lsr_hpc.settings.TransferSettings`; with it ``lsr-hpc refine`` solves all
            conditions of a family in the tangent space of one network.
        run: See :class:`~lsr_hpc.settings.RunSettings`.
        slurm: See :class:`~lsr_hpc.settings_slurm.SlurmSettings`; used by ``lsr-hpc submit``.
        train: How the start was trained, or None.
        campaign: See :class:`~lsr_hpc.settings_campaign.CampaignSettings`; used by ``lsr-hpc campaign``.
    """

    name: str
    problem: ProblemSettings
    subspace: SubspaceSettings = field(default_factory=SubspaceSettings)
    solver: SolverSettings = field(default_factory=SolverSettings)
    held_out: HeldOutSettings = field(default_factory=HeldOutSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    iterate: IterateSettings | None = None
    transfer: TransferSettings | None = None
    run: RunSettings = field(default_factory=RunSettings)
    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    train: TrainSettings | None = None
    campaign: CampaignSettings | None = None

    def __post_init__(self) -> None:
        """Check the name."""
        if not _NAME.fullmatch(self.name):
            raise JobError(
                f'name = {self.name!r}: use up to 100 letters, digits, ".", "_" and "-", not starting with '
                '"."; without a name in the job file, that of the file is taken'
            )
        if self.transfer is not None:
            _check_transfer(self)

    @property
    def refine_settings(self) -> RefineSettings:
        """The numerical sections together."""
        return RefineSettings(
            subspace=self.subspace, solver=self.solver, held_out=self.held_out, compute=self.compute
        )

    @property
    def rounds(self) -> IterateSettings:
        """Section ``[iterate]``, its defaults where there is none."""
        return self.iterate or IterateSettings()

    def as_toml(self) -> str:
        """The fully resolved job as a job file."""
        return dump_toml(asdict(self))


def _check_transfer(job: Job) -> None:
    """Refuse what does not go together with a transfer, all of it at once."""
    assert job.transfer is not None
    mistakes = [
        f"[{name}] and [transfer] do not go together: take one of the sections out"
        for name, section in (("iterate", job.iterate), ("campaign", job.campaign))
        if section is not None
    ]
    if job.problem.instance is not None:
        mistakes.append(
            f"problem.instance = {job.problem.instance}: [transfer] needs all conditions of the family; take "
            "it out, and name the instance to `lsr-hpc predict`"
        )
    if job.solver.space == "full":
        mistakes.append('solver.space = "full": [transfer] needs the modes of a subspace, set "subspace"')
    if job.solver.type != "tsqr":
        mistakes.append(f'solver.type = {job.solver.type!r}: [transfer] solves by "tsqr" alone')
    if mistakes:
        raise JobError(*mistakes)


def check_instance(instance: int, name: str, n_instances: int) -> None:
    """Refuse an instance that a family does not have.

    Args:
        instance: Number of the instance.
        name: Name of the family.
        n_instances: How many it has.

    Raises:
        JobError: If there is no such instance.
    """
    if not instance < n_instances:
        raise JobError(
            f"problem.instance = {instance}: {name!r} has instances 0 to {n_instances - 1} (problem.args)"
        )


def load_job(
    path: str | Path,
    overrides: Sequence[str] = (),
    preset: str | None = None,
    below: Mapping[str, Any] | None = None,
) -> Job:
    """Read a job file.

    Args:
        path: The TOML file.
        overrides: ``"section.key=value"`` settings, applied last; the value is TOML, or a bare word.
        preset: Name of a ``[preset.NAME]`` table whose values replace those of the job.
        below: Sections whose values count where the job says nothing.

    Returns:
        The job, with paths made absolute.

    Raises:
        JobError: Listing everything that is wrong.
    """
    path = Path(path)
    text, table = _read_toml(path)
    presets = table.pop("preset", {})
    if not isinstance(presets, Mapping):
        raise JobError(f"{path}: preset = {presets!r}: tables [preset.NAME] are expected")
    base = _merge(below or {}, _with_problem_table(table))
    mistakes: list[str] = []
    variants = _presets(base, presets, mistakes)
    # A preset that nobody uses today is used one day: all are checked, for what the job itself has right.
    inherited = _mistakes_of(base, path.stem) if variants else []
    for name, variant in variants.items():
        found = _mistakes_of(variant, path.stem)
        mistakes += [f"preset.{name}: {m}" for m in found if name != preset and m not in inherited]
    if preset is not None and preset not in presets:
        near = difflib.get_close_matches(preset, presets, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(sorted(presets)) or 'none'}"
        raise JobError(f"{path} has no preset {preset!r}; {hint}")
    chosen = base if preset is None else variants.get(preset, base)
    overridden: list[tuple[str, ...]] = []
    for override in overrides:
        parts, value = _parse_override(override)
        overridden.append(parts)
        for part in reversed(parts):
            value = {part: value}
        chosen = _merge(chosen, value)
    job = _read(Job, {"name": path.stem, **chosen}, "", mistakes)

    def placed(mistakes: Sequence[str]) -> str:
        return JobLines(str(path), text, preset, overridden).listed(mistakes)

    if mistakes:
        raise JobError(placed(mistakes))
    assert isinstance(job, Job)
    try:
        job = _absolute(job, path.parent)
        if job.campaign is not None:
            job = replace(job, campaign=with_values(job.campaign, path.parent))
        job.as_toml().encode()
    except JobError as error:
        raise JobError(placed(error.mistakes)) from error
    except (ValueError, OSError, RuntimeError) as error:
        raise JobError(f"{path}: a path or text of the job cannot be used: {error}") from error
    return job


def changed_job(job: Job, settings: Mapping[str, Any], mistakes: list[str]) -> Job | None:
    """A job with some of its settings replaced.

    Args:
        job: The job, with absolute paths.
        settings: Values by dotted name, such as ``{"problem.args.seed": 3}``; paths absolute.
        mistakes: Receives what is wrong.

    Returns:
        The job, or None if something is wrong.
    """
    table = asdict(job)
    for name, value in settings.items():
        *sections, key = name.split(".")
        inner = table
        for section in sections:
            if not isinstance(inner.get(section), dict):
                inner[section] = {}
            inner = inner[section]
        inner[key] = value
    changed = _read(Job, table, "", mistakes)
    return changed if isinstance(changed, Job) else None


def _read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        return text, tomllib.loads(text)
    except FileNotFoundError:
        raise JobError(
            f"job file {path} does not exist: check the path; the ready ones are in jobs/"
        ) from None
    except UnicodeDecodeError as error:
        raise JobError(f"job file {path} is not UTF-8 text ({error}): save it as that") from error
    except OSError as error:
        raise JobError(f"job file {path} cannot be read ({error.strerror}): name a TOML file") from error
    except (ValueError, RecursionError) as error:
        # Besides TOMLDecodeError: numbers of thousands of digits, brackets nested as deep.
        raise JobError(f"{path} is not valid TOML: {error}") from error


def _presets(
    base: Mapping[str, Any], presets: Mapping[str, Any], mistakes: list[str]
) -> dict[str, dict[str, Any]]:
    """The job with each preset merged in; what is no table is a mistake."""
    variants = {}
    for name, values in presets.items():
        if isinstance(values, Mapping):
            variants[name] = _merge(base, _with_problem_table(values))
        else:
            mistakes.append(f"preset.{name} = {values!r}: a table [preset.{name}] is expected")
    return variants


def _mistakes_of(table: Mapping[str, Any], name: str) -> list[str]:
    mistakes: list[str] = []
    _read(Job, {"name": name, **table}, "", mistakes)
    return mistakes


def _with_problem_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """``problem = "x"`` is short for ``[problem] function = "x"``."""
    out = dict(table)
    if isinstance(out.get("problem"), str):
        out["problem"] = {"function": out["problem"]}
    return out


def _merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in update.items():
        both_tables = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both_tables else value
    return merged


def _parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    key, equals, value = text.partition("=")
    parts = tuple(key.strip().split("."))
    if not equals or not all(parts):
        raise JobError(f"--set {text!r} is not understood: write --set section.key=value")
    try:
        read = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        read = {}
    parsed: Any = read["value"] if set(read) == {"value"} else value.strip()
    if parts == ("problem",) and isinstance(parsed, str):
        parts = ("problem", "function")
    return parts, parsed


def _read(cls: type, table: Any, where: str, mistakes: list[str]) -> Any:
    """Build a dataclass from a table; mistakes are collected, None stands for what cannot be built."""
    if not isinstance(table, Mapping):
        mistakes.append(f"{where.rstrip('.')} = {table!r}: a table [{where.rstrip('.')}] is expected")
        return None
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in fields(cls)}
    values: dict[str, Any] = {}
    before = len(mistakes)
    for key, value in table.items():
        if key not in known:
            mistakes.append(unknown_key(where + key, key, list(known)))
            continue
        values[key] = convert(hints[key], value, where + key, mistakes)
    missing = [n for n, f in known.items() if n not in values and f.default is f.default_factory]
    mistakes += [f"{where}{n} is missing{_IF_MISSING.get(where + n, '')}" for n in missing]
    if len(mistakes) > before:
        return None
    try:
        return cls(**values)
    except JobError as error:
        mistakes += error.mistakes
        return None


def unknown_key(label: str, key: str, known: Sequence[str]) -> str:
    """Say that a key is unknown, with the nearest known one.

    Args:
        label: The key with its section.
        key: The key.
        known: The known keys.

    Returns:
        The message.
    """
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    sections = [f"[{name}]" for name, keys in _keys_of_sections().items() if key in keys]
    hints = [f"did you mean {near[0]!r}?"] if near else []
    hints += [f"it is a key of {' and '.join(sections)}"] if sections else []
    return f"unknown key {label!r}; {' or '.join(hints) or 'known: ' + ', '.join(sorted(known))}"


def _keys_of_sections() -> dict[str, list[str]]:
    """What the sections of a job hold."""
    hints = typing.get_type_hints(Job)
    kinds = {name: [*typing.get_args(hint), hint] for name, hint in hints.items()}
    return {
        name: [f.name for kind in of for f in (fields(kind) if hasattr(kind, "__dataclass_fields__") else ())]
        for name, of in kinds.items()
    }


_PLURALS = {str: "strings", int: "integers"}


def convert(hint: Any, value: Any, label: str, mistakes: list[str]) -> Any:
    """Check the type of one value; an integer where a number is expected becomes a float.

    Args:
        hint: Annotation: a plain type, a dataclass, a tuple of strings or integers, or one of
            them or None.
        value: The value.
        label: Name of the value in messages.
        mistakes: Receives what is wrong.

    Returns:
        The value to use.
    """
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        allowed = [h for h in typing.get_args(hint) if h is not type(None)]
        hint = next((h for h in allowed if type(value) is h), allowed[0])
    if hasattr(hint, "__dataclass_fields__"):
        return _read(hint, value, label + ".", mistakes)
    if hint is float and type(value) is int and abs(value) < 10**300:
        return float(value)
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        if type(value) in {list, tuple} and all(type(item) is kind for item in value):
            return tuple(value)
        mistakes.append(f"{label} = {value!r}: a list of {_PLURALS[kind]} is expected")
        return value
    expected = dict if typing.get_origin(hint) is dict else hint
    if type(value) is not expected:
        names = {
            int: "an integer",
            float: "a number",
            str: "a string",
            bool: "true or false",
            dict: "a table",
        }
        mistakes.append(f"{label} = {value!r}: {names[expected]} is expected")
    return value


def _absolute(job: Job, base: Path) -> Job:
    """The job with absolute paths, so that it can be read from anywhere."""
    problem = job.problem
    if problem.weights is not None:
        problem = replace(problem, weights=str((base / problem.weights).resolve()))
    file, colon, function = problem.function.rpartition(":")
    if colon:
        directory = base
        if file.endswith(".py"):
            source = (base / file).resolve()
            directory, problem = source.parent, replace(problem, function=f"{source}:{function}")
        path = directory if problem.path is None else base / problem.path
        problem = replace(problem, path=str(path.resolve()))
    return replace(job, problem=problem)
