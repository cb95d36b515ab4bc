"""Writing TOML, which the standard library only reads."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["dump_toml"]


def dump_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """Write nested tables as TOML; None is left out.

    Args:
        table: What to write: strings, numbers, booleans, dates and times, lists and tables of those.
        prefix: Dotted name of the table itself, ending in a dot.

    Returns:
        TOML text that :mod:`tomllib` reads back to the same table.
    """
    text = "".join(
        f"{_key(k)} = {_value(v)}\n" for k, v in table.items() if not isinstance(v, Mapping) and v is not None
    )
    for key, value in table.items():
        if isinstance(value, Mapping):
            name = prefix + _key(key)
            text += f"\n[{name}]\n" + dump_toml(value, name + ".")
    return text


def _key(key: str) -> str:
    is_bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if is_bare else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Mapping):
        # Tables inside lists are written in line.
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return repr(value)


def _string(text: str) -> str:
    # TOML's basic strings take JSON's escapes of control characters, and want DEL escaped too. Other
    # characters go as they are: JSON would split those above U+FFFF into surrogates, which TOML refuses.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
