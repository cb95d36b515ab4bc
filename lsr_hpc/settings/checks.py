"""Checks that the settings share: values refused in words, all at once."""

from __future__ import annotations

import difflib
from math import inf
from typing import Any

from lsr_hpc.errors import JobError

__all__ = ["at_least", "choice", "parse_bytes", "refuse"]

_UNITS = {
    "": 1,
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


def parse_bytes(text: str | int) -> int:
    """Read a memory size.

    Args:
        text: A number of bytes, or a number with a unit such as ``"1.5GiB"`` or ``"800 MB"``.

    Returns:
        Bytes.

    Raises:
        JobError: If it is neither, or not positive.
    """
    if isinstance(text, int) and text > 0:
        return text
    if isinstance(text, str):
        number = text.strip().rstrip("BiKMGTk ")
        unit = text.strip()[len(number) :].strip()
        try:
            if unit in _UNITS and float(number) > 0:
                return int(float(number) * _UNITS[unit])
        except (ValueError, OverflowError):
            pass
    raise JobError(f'memory size {text!r} is not understood: write for example "2GiB" or "800MB"')


def choice(section: str, key: str, value: Any, allowed: tuple[str, ...]) -> list[str]:
    """The complaint about a value that is none of the allowed ones.

    Args:
        section: Section of the job file.
        key: Name of the setting.
        value: Its value.
        allowed: Values that it may have.

    Returns:
        One sentence, or nothing.
    """
    if value in allowed:
        return []
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return [f"{section}.{key} = {value!r}: {hint}use one of {', '.join(map(repr, allowed))}"]


def at_least(section: str, settings: object, **lowest: float) -> list[str]:
    """Complaints about numbers below their bound; those above what a 64-bit seed or PETSc's integers hold.

    Args:
        section: Section of the job file.
        settings: The settings of that section.
        **lowest: Bounds by name of the setting; one that is None is left alone.

    Returns:
        A sentence for each.
    """
    mistakes = []
    for key, bound in lowest.items():
        value = getattr(settings, key)
        limit = 2**64 if key == "seed" else 2**31 if isinstance(value, int) else inf
        if value is not None and not bound <= value < limit:
            above = "" if isinstance(value, float) else f" and below {limit}"
            mistakes.append(f"{section}.{key} = {value}: must be at least {bound}{above}")
    return mistakes


def refuse(*complaints: list[str]) -> None:
    """Raise what was complained about, all at once.

    Args:
        *complaints: Sentences.

    Raises:
        JobError: If there is any.
    """
    mistakes = [text for complaint in complaints for text in complaint]
    if mistakes:
        raise JobError(*mistakes)
