"""Section ``[campaign]`` of a job: one job carried out for many members, which differ along some axes.

An axis is a setting of the job with its values: a list, ``{range = [first, last, step]}`` or
``{file = "values.txt"}``. Reading it needs the standard library only.
"""

from __future__ import annotations

import csv
import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lsr_hpc.errors import JobError

__all__ = ["CampaignSettings", "with_values"]

_MOST_MEMBERS = 100_000
# What a member may differ in. How it is carried out belongs to the campaign as a whole.
_SECTIONS = ("problem", "subspace", "solver", "held_out", "compute", "iterate")
_SOURCES = {"range", "file", "column"}
_LOCATIONS = ("problem.weights", "problem.path")


@dataclass(frozen=True, kw_only=True)
class CampaignSettings:
    """Section ``[campaign]``.

    Attributes:
        axes: Values by setting, such as ``problem.args.seed = [1, 2, 3]``. A ``range`` includes its last
            value. A file holds one value a line (``.txt``), a list (``.json``), or a table whose first line
            names its columns (``.csv``; ``column`` says which, where there are several).
        combine: ``"product"`` (every value with every other) or ``"zip"`` (first with first, and so on).
        command: What is done with a member: ``"refine"`` (one shot), ``"run"`` (rounds), ``"auto"``: rounds
            where the job has a section ``[iterate]``.
        ranks_per_member: MPI ranks of a member; absent takes ``run.ranks``, or all of ``nodes_per_member``.
        nodes_per_member: Nodes of a member in an allocation of SLURM; absent takes what the ranks need.
        at_once: Members side by side, each on ranks of its own; absent takes as many as there are cores for.
        members_per_step: Most members that one start of the ranks carries out one after another; absent lets
            it follow from what is left to do.
        tries: How often in a row a member is tried that is ended from outside.
    """

    axes: dict[str, Any]
    combine: str = "product"
    command: str = "auto"
    ranks_per_member: int | None = None
    nodes_per_member: int | None = None
    at_once: int | None = None
    members_per_step: int | None = None
    tries: int = 3

    def __post_init__(self) -> None:
        """Check each value, and put the axes side by side under dotted names."""
        mistakes = [
            f"campaign.{key} = {value!r}: use one of {', '.join(map(repr, allowed))}"
            for key, value, allowed in (
                ("combine", self.combine, ("product", "zip")),
                ("command", self.command, ("auto", "refine", "run")),
            )
            if value not in allowed
        ]
        for key in ("ranks_per_member", "nodes_per_member", "at_once", "members_per_step", "tries"):
            value = getattr(self, key)
            if value is not None and not 1 <= value <= _MOST_MEMBERS:
                mistakes.append(f"campaign.{key} = {value}: must be from 1 to {_MOST_MEMBERS}")
        found = list(_flat_axes(self.axes))
        if not found:
            mistakes.append("campaign.axes is empty: name a setting and its values")
        for name, source in found:
            mistakes += _complaints(name, source)
            if [other for other, _ in found].count(name) > 1:
                mistakes.append(f"campaign.axes: {name} is there twice")
        if mistakes:
            raise JobError(*dict.fromkeys(mistakes))
        object.__setattr__(self, "axes", dict(found))


def with_values(settings: CampaignSettings, base: Path) -> CampaignSettings:
    """The settings with every axis as a list of values, so that they can be read from anywhere.

    Args:
        settings: As the job file has them.
        base: Directory of the job file.

    Returns:
        The same with lists.

    Raises:
        JobError: Listing everything that is wrong with the values.
    """
    mistakes: list[str] = []
    axes: dict[str, list[Any]] = {}
    for name, source in settings.axes.items():
        try:
            axes[name] = _located(name, *_values(name, source, base))
        except JobError as error:
            mistakes.append(str(error))
    if not mistakes:
        mistakes = _size_complaints(settings.combine, axes)
    if mistakes:
        raise JobError(*mistakes)
    return replace(settings, axes=axes)


def _flat_axes(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Axes by dotted name: TOML makes nested tables of ``problem.args.seed = [1, 2]``."""
    for key, value in table.items():
        name = prefix + key
        is_source = isinstance(value, Mapping) and bool(value) and set(value) <= _SOURCES
        if isinstance(value, Mapping) and (not is_source or name == "problem.args" or "." not in name):
            yield from _flat_axes(value, name + ".")
        else:
            yield name, value


def _complaints(name: str, source: Any) -> list[str]:
    """What is wrong with an axis before any file is read."""
    label = f"campaign.axes: {name}"
    section, _, key = name.partition(".")
    if section not in _SECTIONS or not key:
        return [f"{label} cannot differ between members: use settings of {', '.join(_SECTIONS)}"]
    if name in {"problem.args", "problem.function"}:
        return [f"{label} is no single setting of a problem: name one, such as problem.args.seed"]
    if isinstance(source, Mapping):
        if ("range" in source) == ("file" in source) or ("column" in source and "file" not in source):
            return [f'{label} = {source!r}: write {{range = [first, last, step]}} or {{file = "values.txt"}}']
        if "range" in source:
            return _range_complaints(label, source["range"])
        texts = [source[key] for key in ("file", "column") if key in source]
        return [] if all(isinstance(t, str) for t in texts) else [f"{label}: file and column are strings"]
    if not isinstance(source, list):
        return [f"{label} = {source!r}: a list, a range or a file is expected"]
    return [] if source else [f"{label} has no values: give at least one, or leave the axis out"]


def _range_complaints(label: str, numbers: Any) -> list[str]:
    is_numeric = isinstance(numbers, list) and all(type(x) in {int, float} for x in numbers)
    if not is_numeric or len(numbers) not in {2, 3} or not all(math.isfinite(x) for x in numbers):
        return [f"{label}: range = {numbers!r}: two or three numbers are expected, first, last and step"]
    first, last, step = [*numbers, 1][:3]
    if step == 0 or (last - first) / step < 0:
        return [f"{label}: range = {numbers!r} leads nowhere: the step must lead from the first to the last"]
    if (last - first) / step >= _MOST_MEMBERS:
        return [f"{label}: range = {numbers!r} has more than {_MOST_MEMBERS} values"]
    return []


def _values(name: str, source: Any, base: Path) -> tuple[list[Any], Path]:
    """The values of an axis, and the directory from which paths among them are meant."""
    if isinstance(source, list):
        return list(source), base
    if "range" in source:
        first, last, step = [*source["range"], 1][:3]
        # A last value that the sum of the steps misses by rounding is meant to be in.
        return [first + i * step for i in range(math.floor((last - first) / step + 1e-9) + 1)], base
    path = base / source["file"]
    label = f"campaign.axes: {name}: {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise JobError(f"{label} cannot be read ({reason}): its path is relative to the job file") from error
    readers = {".txt": _lines, ".json": _json_list, ".csv": _csv_column}
    if path.suffix not in readers:
        raise JobError(f"{label}: a file that ends in .txt, .json or .csv is expected")
    try:
        values = readers[path.suffix](text, source.get("column"))
    except (ValueError, RecursionError, csv.Error) as error:
        raise JobError(f"{label}: {error}") from error
    if not values:
        raise JobError(f"{label} holds no values")
    return values, path.parent


def _lines(text: str, column: str | None) -> list[Any]:
    if column is not None:
        raise ValueError("a text file has no columns")
    lines = [line.strip() for line in text.splitlines()]
    return [_value(line) for line in lines if line and not line.startswith("#")]


def _json_list(text: str, column: str | None) -> list[Any]:
    values = json.loads(text)
    if column is not None and isinstance(values, dict):
        values = values.get(column)
    if not isinstance(values, list):
        raise ValueError("a list is expected, or with column = NAME a table of lists")
    return values


def _csv_column(text: str, column: str | None) -> list[Any]:
    rows = [row for row in csv.reader(text.splitlines()) if row]
    names = [name.strip() for name in rows[0]] if rows else []
    if column is None and len(names) != 1:
        raise ValueError(f"it has columns {', '.join(names) or 'none'}: say which by column = NAME")
    chosen = names[0] if column is None else column
    if chosen not in names:
        raise ValueError(f"no column {chosen!r}; it has: {', '.join(names)}")
    place = names.index(chosen)
    short = next((i for i, row in enumerate(rows) if len(row) <= place), None)
    if short is not None:
        raise ValueError(f"row {short + 1} has no column {chosen!r}")
    return [_value(row[place].strip()) for row in rows[1:]]


def _value(text: str) -> Any:
    """A value as in ``--set``: TOML, or a bare word."""
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return read["value"] if set(read) == {"value"} else text


def _located(name: str, values: list[Any], base: Path) -> list[Any]:
    """Values that members can be known by again: plain data, paths absolute."""
    try:
        text = json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise JobError(
            f"campaign.axes: {name} has a value that is no finite number, text, truth value, list or table "
            f"of those ({error})"
        ) from error
    plain: list[Any] = json.loads(text)
    if name in _LOCATIONS:
        return [str((base / v).resolve()) if isinstance(v, str) else v for v in plain]
    return plain


def _size_complaints(combine: str, axes: Mapping[str, list[Any]]) -> list[str]:
    lengths = {name: len(values) for name, values in axes.items()}
    if combine == "zip" and len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        return [f'campaign.combine = "zip" needs axes of one length: {listed}']
    members = math.prod(lengths.values()) if combine == "product" else max(lengths.values())
    if members > _MOST_MEMBERS:
        return [f"campaign.axes make {members} members: at most {_MOST_MEMBERS} are allowed"]
    return []
