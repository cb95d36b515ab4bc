"""What a job file may hold, read off the dataclasses of its sections: names, types, defaults, words, meaning.

The meaning is the docstring's; the words that a text may be are asked of the section's own check, so that
nothing is written down twice.
"""

from __future__ import annotations

import ast
import inspect
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from lsr_hpc.errors import JobError
from lsr_hpc.job import Job, ProblemSettings, TrainSettings
from lsr_hpc.settings_campaign import CampaignSettings

__all__ = ["Setting", "described", "job_schema", "sections", "settings_of"]

# The least that makes a section valid which has settings without a default.
_LEAST: Mapping[type, Mapping[str, Any]] = {
    ProblemSettings: {"function": "poisson"},
    TrainSettings: {"steps": 1},
    CampaignSettings: {"axes": {"subspace.rank": [1]}},
}
_NO_WORD = "\0"
_JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean", dict: "object"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key of a section.

    Attributes:
        name: The key.
        types: Plain types it may have; ``tuple`` is a list of ``item``.
        item: Type of the items of a list; None for others.
        default: Value where it is absent; None for none.
        is_required: Whether it must be there.
        choices: The words that a text may be; empty for any.
        text: What it means.
    """

    name: str
    types: tuple[type, ...]
    item: type | None
    default: Any
    is_required: bool
    choices: tuple[str, ...]
    text: str


def sections() -> dict[str, type]:
    """The dataclass of every section of a job file.

    Returns:
        Classes by name of the section, in the order of :class:`~lsr_hpc.job.Job`.
    """
    hints = typing.get_type_hints(Job)
    return {f.name: kind for f in fields(Job) if (kind := _dataclass_in(hints[f.name])) is not None}


def settings_of(section: type) -> list[Setting]:
    """The keys of a section.

    Args:
        section: Its dataclass.

    Returns:
        Settings in order.
    """
    hints, texts = typing.get_type_hints(section), described(section, "Attributes")
    for base in section.__mro__[1:-1]:
        texts = described(base, "Attributes") | texts
    found = []
    for f in fields(section):
        allowed = [hint for hint in _alternatives(hints[f.name]) if hint is not type(None)]
        item = next((typing.get_args(h)[0] for h in allowed if typing.get_origin(h) is tuple), None)
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        found.append(
            Setting(
                name=f.name,
                types=tuple(typing.get_origin(hint) or hint for hint in allowed),
                item=item,
                default=None if default is MISSING else default,
                is_required=default is MISSING,
                choices=_choices(section, f.name) if str in allowed else (),
                text=texts[f.name],
            )
        )
    return found


def described(thing: Any, part: str) -> dict[str, str]:
    """What a Google-style docstring says of each name in one of its parts.

    Args:
        thing: Class or function.
        part: ``"Attributes"`` or ``"Args"``.

    Returns:
        Texts by name, on one line, without markup.
    """
    lines = inspect.cleandoc(thing.__doc__ or "").partition(f"\n{part}:\n")[2].split("\n\n")[0]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\w+: )", "\n" + lines)[1:]:
        name, _, text = entry.strip().partition(": ")
        plain = re.sub(r":\w+:`~?([^`]+)`", r"\1", " ".join(text.split())).replace("``", "")
        found[name] = plain
    return found


def job_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of job files, for editors.

    Returns:
        The schema.
    """
    texts = described(Job, "Attributes")
    properties: dict[str, Any] = {"name": {"type": "string", "description": texts["name"]}}
    for name, section in sections().items():
        schema = _section_schema(section)
        if name == "problem":
            schema = {"oneOf": [{"type": "string", "description": "Function alone."}, schema]}
        properties[name] = schema
    anything = {"type": "object", "description": "Values that replace those of the job."}
    properties["preset"] = {"type": "object", "additionalProperties": anything}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Job of lsr-hpc",
        "type": "object",
        "required": ["problem"],
        "additionalProperties": False,
        "properties": properties,
    }


def _section_schema(section: type) -> dict[str, Any]:
    settings = settings_of(section)
    summary = inspect.cleandoc(section.__doc__ or "").split("\n")[0].replace("``", "")
    return {
        "type": "object",
        "description": summary,
        "additionalProperties": False,
        "required": [s.name for s in settings if s.is_required],
        "properties": {s.name: _setting_schema(s) for s in settings},
    }


def _setting_schema(setting: Setting) -> dict[str, Any]:
    alternatives: list[dict[str, Any]] = []
    for kind in setting.types:
        if kind is tuple:
            assert setting.item is not None
            alternatives.append({"type": "array", "items": {"type": _JSON_TYPES[setting.item]}})
        elif kind is str and setting.choices:
            alternatives.append({"enum": list(setting.choices)})
        else:
            alternatives.append({"type": _JSON_TYPES[kind]})
    schema = alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}
    schema = {"description": setting.text, **schema}
    if setting.default is not None:
        is_list = isinstance(setting.default, tuple)
        schema["default"] = list(setting.default) if is_list else setting.default
    return schema


def _alternatives(hint: Any) -> list[Any]:
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return list(typing.get_args(hint)) if is_union else [hint]


def _dataclass_in(hint: Any) -> type | None:
    return next((h for h in _alternatives(hint) if hasattr(h, "__dataclass_fields__")), None)


def _choices(section: type, name: str) -> tuple[str, ...]:
    """The words that the section's check names when it refuses one that cannot be."""
    try:
        section(**{**_LEAST.get(section, {}), name: _NO_WORD})
    except JobError as error:
        named = re.search(rf"\.{name} = [^:]*: use one of ('[^;]*')", str(error))
        return tuple(ast.literal_eval(f"[{named[1]}]")) if named else ()
    return ()
