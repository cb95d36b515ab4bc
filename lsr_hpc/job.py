"""Job files: TOML, read strictly into frozen dataclasses, every mistake reported at once.

Reading a job needs the standard library only; the problem it names is built by :func:`build_problem`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lsr_hpc.errors import JobError
from lsr_hpc.problems import PROBLEMS
from lsr_hpc.settings import (
    ComputeSettings,
    HeldOutSettings,
    RefineSettings,
    SolverSettings,
    SubspaceSettings,
    TrainingSettings,
)

if typing.TYPE_CHECKING:
    from lsr_hpc.problem import ProblemFamily
    from lsr_hpc.training import TrainingTask

__all__ = [
    "Job",
    "ProblemSettings",
    "TrainSettings",
    "build_problem",
    "dump_toml",
    "load_job",
    "training_task",
]


@dataclass(frozen=True, kw_only=True)
class ProblemSettings:
    """Section ``[problem]``, or ``problem = "..."`` for the function alone.

    Attributes:
        function: Name of a shipped problem, ``package.module:function`` or ``file.py:function``.
        weights: Trained weights (safetensors), relative to the job file; verified against ``NAME.json``
            beside them where there is one. Passed to the function as its first argument.
        args: Keyword arguments of the function.
    """

    function: str
    weights: str | None = None
    args: dict[str, Any] = field(default_factory=dict)


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
        name: Name of the job; the default run directory is ``runs/NAME``.
        problem: What is refined.
        subspace: See :class:`~lsr_hpc.settings.SubspaceSettings`.
        solver: See :class:`~lsr_hpc.settings.SolverSettings`.
        held_out: See :class:`~lsr_hpc.settings.HeldOutSettings`.
        compute: See :class:`~lsr_hpc.settings.ComputeSettings`.
        train: How the start was trained, or None.
    """

    name: str
    problem: ProblemSettings
    subspace: SubspaceSettings = field(default_factory=SubspaceSettings)
    solver: SolverSettings = field(default_factory=SolverSettings)
    held_out: HeldOutSettings = field(default_factory=HeldOutSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    train: TrainSettings | None = None

    @property
    def refine_settings(self) -> RefineSettings:
        """The numerical sections together."""
        return RefineSettings(
            subspace=self.subspace, solver=self.solver, held_out=self.held_out, compute=self.compute
        )

    def as_toml(self) -> str:
        """The fully resolved job as a job file."""
        return dump_toml(asdict(self))


def load_job(path: str | Path, overrides: Sequence[str] = (), preset: str | None = None) -> Job:
    """Read a job file.

    Args:
        path: The TOML file.
        overrides: ``"section.key=value"`` settings, applied last; the value is TOML, or a bare word.
        preset: Name of a ``[preset.NAME]`` table whose values replace those of the job.

    Returns:
        The job, with paths made absolute.

    Raises:
        JobError: Listing everything that is wrong.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(
            f"job file {path} does not exist: check the path; the ready ones are in jobs/"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"job file {path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path} is not valid TOML: {error}") from error

    presets = table.pop("preset", {})
    if preset is not None:
        if preset not in presets:
            known = ", ".join(sorted(presets)) or "none"
            raise JobError(f"{path} has no preset {preset!r}; it has: {known}")
        table = _merge(_with_problem_table(table), _with_problem_table(presets[preset]))
    table = _with_problem_table(table)
    for override in overrides:
        table = _merge(table, _parse_override(override))

    mistakes: list[str] = []
    job = _read(Job, {"name": path.stem, **table}, "", mistakes)
    if mistakes:
        raise JobError(
            f"{path}: " + (mistakes[0] if len(mistakes) == 1 else "".join(f"\n  - {m}" for m in mistakes))
        )
    assert isinstance(job, Job)
    return _absolute(job, path.parent)


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


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise JobError(f"--set {text!r} is not understood: write --set section.key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    if parts == ["problem"]:
        parts = ["problem", "function"]
    for part in reversed(parts):
        parsed = {part: parsed}
    return dict(parsed)


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
            mistakes.append(_unknown(where + key, key, list(known)))
            continue
        values[key] = _convert(hints[key], value, where + key, mistakes)
    missing = [n for n, f in known.items() if n not in values and f.default is f.default_factory]
    mistakes += [f"{where}{n} is missing" for n in missing]
    if len(mistakes) > before:
        return None
    try:
        return cls(**values)
    except JobError as error:
        mistakes.append(str(error))
        return None


def _unknown(label: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
    return f"unknown key {label!r}; {hint}"


def _convert(hint: Any, value: Any, label: str, mistakes: list[str]) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not type(None))
    if hasattr(hint, "__dataclass_fields__"):
        return _read(hint, value, label + ".", mistakes)
    if hint is float and type(value) in {int, float}:
        return float(value)
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
    from dataclasses import replace

    problem = job.problem
    if problem.weights is not None:
        problem = replace(problem, weights=str((base / problem.weights).resolve()))
    file, colon, function = problem.function.rpartition(":")
    if colon and file.endswith(".py"):
        problem = replace(problem, function=f"{(base / file).resolve()}:{function}")
    return replace(job, problem=problem)


def dump_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """Write nested tables of strings, numbers, booleans and lists as TOML; None is left out.

    Args:
        table: What to write.
        prefix: Dotted name of the table itself.

    Returns:
        TOML text that :mod:`tomllib` reads back to the same table.
    """
    lines = [
        f"{_toml_key(k)} = {_toml_value(v)}"
        for k, v in table.items()
        if not isinstance(v, Mapping) and v is not None
    ]
    text = "".join(line + "\n" for line in lines)
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            name = prefix + _toml_key(key)
            text += f"\n[{name}]\n" + dump_toml(value, name + ".")
    return text


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, bool | str):
        # TOML's basic strings take JSON's escapes, except that a bare DEL is not allowed.
        return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")
    return repr(value)


def build_problem(job: Job) -> ProblemFamily:
    """Call the function that the job names.

    Args:
        job: The job.

    Returns:
        The family of instances; a single problem is a family of one.

    Raises:
        JobError: If the function cannot be found, refuses its arguments, or returns something else.
    """
    from lsr_hpc.problem import Problem, ProblemFamily

    function = _find_function(job.problem.function)
    arguments: list[Any] = []
    if job.problem.weights is not None:
        arguments.append(read_weights(Path(job.problem.weights)))
    elif job.problem.function in PROBLEMS:
        raise JobError(
            "problem.weights is missing: name the trained weights, or make them with `lsr-hpc train`"
        )
    _check_arguments(function, job.problem.args, "problem.args", skip=len(arguments))
    try:
        problem = function(*arguments, **job.problem.args)
    except JobError:
        raise
    except RuntimeError as error:
        raise JobError(
            f"problem {job.problem.function!r} could not be built from {job.problem.weights}: {error}"
        ) from error
    if not isinstance(problem, Problem | ProblemFamily):
        raise JobError(
            f"problem {job.problem.function!r} returned {type(problem).__name__}: return an lsr_hpc.Problem"
        )
    return ProblemFamily.of(problem) if isinstance(problem, Problem) else problem


def read_weights(path: Path) -> Any:
    """Read weights, checking them against the record that training left beside them.

    Args:
        path: safetensors file.

    Returns:
        Tensors by name.

    Raises:
        JobError: If they are missing, unreadable, or differ from the record.
    """
    from lsr_hpc.store import read_manifest, read_tensors

    record = path.with_suffix(".json")
    sha256 = read_manifest(record)["sha256"] if record.exists() else None
    return read_tensors(path, sha256)


def training_task(job: Job) -> tuple[TrainingTask, TrainingSettings]:
    """The training behind a shipped problem's weights.

    Args:
        job: A job with a ``[train]`` section.

    Returns:
        The task and its settings.

    Raises:
        JobError: If the job has no training, or its problem none.
    """
    if job.problem.function not in PROBLEMS:
        raise JobError(
            f"problem {job.problem.function!r} is your own: train it with your own program; "
            f"`lsr-hpc train` re-makes {', '.join(PROBLEMS)}"
        )
    if job.train is None:
        raise JobError("the job has no [train] section: add steps and batch_size")
    function = PROBLEMS[job.problem.function].training_task
    accepted = inspect.signature(function).parameters
    shared = {k: v for k, v in job.problem.args.items() if k in accepted}
    _check_arguments(function, job.train.args, "train.args", skip=1)
    return function(job.train, **{**shared, **job.train.args}), job.train


def _find_function(name: str) -> Callable[..., Any]:
    if name in PROBLEMS:
        return PROBLEMS[name].build
    module_name, colon, function_name = name.rpartition(":")
    if not colon:
        near = difflib.get_close_matches(name, list(PROBLEMS), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"shipped: {', '.join(PROBLEMS)}"
        raise JobError(
            f'problem {name!r} is not known; {hint} Or write "package.module:function" or "file.py:function"'
        )
    try:
        if module_name.endswith(".py"):
            spec = importlib.util.spec_from_file_location("lsr_hpc_user_problem", module_name)
            if spec is None or spec.loader is None or not Path(module_name).is_file():
                raise JobError(f"problem file {module_name} does not exist")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        function: Callable[..., Any] = getattr(module, function_name)
    except JobError:
        raise
    except Exception as error:
        raise JobError(f"problem {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    return function


def _check_arguments(
    function: Callable[..., Any], arguments: Mapping[str, Any], label: str, skip: int
) -> None:
    """Compare keyword arguments with a function's signature: names, and the plain types it annotates."""
    parameters = dict(list(inspect.signature(function).parameters.items())[skip:])
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    mistakes = [_unknown(f"{label}.{k}", k, list(parameters)) for k in arguments if k not in parameters]
    missing = [
        k
        for k, p in parameters.items()
        if p.default is p.empty and k not in arguments and p.kind is not p.VAR_POSITIONAL
    ]
    mistakes += [f"{label}.{k} is missing" for k in missing]
    hints = typing.get_type_hints(function)
    for key, value in arguments.items():
        if key in parameters and hints.get(key) in {int, float, str, bool}:
            _convert(hints[key], value, f"{label}.{key}", mistakes)
    if mistakes:
        raise JobError("; ".join(mistakes))
