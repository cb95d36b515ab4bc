"""Finding and calling the functions that a job names, so that whatever goes wrong in them is said in words.

Code of the user's may do anything: fail to import, raise, call ``sys.exit``, return something else. All of
that becomes a :class:`~lsr_hpc.errors.JobError` that names the function and the line.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from lsr_hpc.errors import JobError
from lsr_hpc.explaining import explaining
from lsr_hpc.job import convert, unknown_key
from lsr_hpc.problems import PROBLEMS

__all__ = ["check_arguments", "find_function"]

_PLAIN = {t.__name__: t for t in (int, float, str, bool)}


def find_function(name: str, path: str | None = None) -> Callable[..., Any]:
    """Find a shipped problem's ``build``, or a function of the user's.

    Args:
        name: A shipped problem, ``file.py:function`` or ``package.module:function``.
        path: Directory put in front of Python's search path for the user's modules.

    Returns:
        The function.

    Raises:
        JobError: If there is no such function, or its module fails.
    """
    if name in PROBLEMS:
        return PROBLEMS[name].build
    module_name, colon, function_name = name.rpartition(":")
    if not colon:
        near = difflib.get_close_matches(name, list(PROBLEMS), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"shipped: {', '.join(PROBLEMS)}."
        if name.endswith(".py"):
            raise JobError(f'problem.function = {name!r} names a file alone: write "{name}:FUNCTION"')
        raise JobError(
            f"problem.function = {name!r} is not known; {hint} "
            'Or write "file.py:function" or "package.module:function"'
        )
    if path is not None and path not in sys.path:
        sys.path.insert(0, path)
    if module_name.endswith(".py"):
        module = _module_of_file(Path(module_name))
    else:
        _refuse_unknown_module(module_name, name)
        with explaining(f"problem.function = {name!r}: importing {module_name}"):
            module = importlib.import_module(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        own = [
            k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__
        ]
        found = "is not a function" if hasattr(module, function_name) else "does not exist"
        raise JobError(
            f"problem.function = {name!r}: {function_name!r} {found} in {module_name}; "
            f"its functions: {', '.join(sorted(own)) or 'none'}"
        )
    return function  # type: ignore[no-any-return]


def _refuse_unknown_module(module_name: str, name: str) -> None:
    # Asked part by part: find_spec of a dotted name imports the parents, which may fail in their own ways.
    parts = module_name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise JobError(
            f'problem.function = {name!r}: write "file.py:function" or "package.module:function" '
            "(or the name of a shipped problem, see `lsr-hpc problems`)"
        )
    if module_name not in sys.modules and importlib.util.find_spec(parts[0]) is None:
        raise JobError(
            f"problem.function = {name!r}: there is no module {parts[0]!r} in {sys.path[0]} or among the "
            "installed packages: correct the name, or set problem.path to the directory that holds it"
        )


def _module_of_file(file: Path) -> ModuleType:
    """Execute a Python file as a module of its own, under a name that no other module has."""
    if not file.is_file():
        raise JobError(f"problem.function: file {file} does not exist: its path is relative to the job file")
    unique = f"lsr_hpc_user_{file.stem}_{hashlib.sha256(bytes(file)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(unique, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look a class's module up by name, also while it is executed.
    sys.modules[unique] = module
    try:
        with explaining(f"problem.function: running {file}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[unique]
        raise
    return module


def check_arguments(
    function: Callable[..., Any], positional: list[Any], arguments: Mapping[str, Any], label: str
) -> None:
    """Compare arguments with a function's signature: names, and the plain types it annotates.

    Args:
        function: The function.
        positional: Arguments that we pass.
        arguments: Keyword arguments of the job.
        label: Section of the job that holds them.

    Raises:
        JobError: With everything that does not fit.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # Functions written in C need not have one; calling them will tell.
    parameters = dict(list(signature.parameters.items())[len(positional) :])
    mistakes: list[str] = []
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        mistakes += [
            unknown_key(f"{label}.{k}", k, list(parameters)) for k in arguments if k not in parameters
        ]
    mistakes += [
        f"{label}.{k} is missing: the function has no default for it, write it into [{label}]"
        for k, p in parameters.items()
        if p.default is p.empty and k not in arguments and p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
    ]
    for key, value in arguments.items():
        annotation = parameters[key].annotation if key in parameters else None
        # Only plain types are compared; names that resolve for type checkers alone are none of our business.
        hint = _PLAIN.get(annotation, annotation) if isinstance(annotation, str) else annotation
        if isinstance(hint, type) and hint in _PLAIN.values():
            convert(hint, value, f"{label}.{key}", mistakes)
    if not mistakes:
        try:
            signature.bind(*positional, **arguments)
        except TypeError as error:
            given = "problem.weights as first argument and " if positional else ""
            mistakes.append(f"{given}{label} do not fit the function {function.__name__}{signature}: {error}")
    if mistakes:
        raise JobError(*mistakes)
