"""Where in a job file a mistake is: the line of a key, or the ``--set`` that it came by."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any

__all__ = ["JobLines"]

# Finding lines reads the file once for every line of it; nobody writes a job as long as that.
_MOST_LINES = 2000
# In place of a line, behind all lines.
_OVERRIDDEN = inf
_PRESET = re.compile(r"preset\.([\w-]+): ")
_NAMES = re.compile(r"[\w-]+(?:\.[\w-]+)*")

Path = tuple[str, ...]


class JobLines:
    """Lines of the keys of a job file.

    Args:
        name: The file, as messages name it.
        text: Its text, valid TOML.
        preset: The preset in use, whose values come before those of the job.
        overridden: What ``--set`` has replaced.
    """

    def __init__(self, name: str, text: str, preset: str | None, overridden: Sequence[Path]) -> None:
        self._name = name
        self._lines = dict(_first_lines(text))
        self._preset = preset
        self._overridden = overridden

    def listed(self, mistakes: Sequence[str]) -> str:
        """All mistakes as one message, each with its place.

        Args:
            mistakes: Sentences that begin with the name of the key, or with ``preset.NAME:`` before it.

        Returns:
            The mistake itself where there is one, a line for each where there are several.
        """
        placed = sorted((self._line_of(mistake), mistake) for mistake in mistakes)
        texts = [f"{self._place(line)}: {mistake}" for line, mistake in placed]
        if len(texts) == 1:
            return texts[0]
        return f"{self._name} has {len(texts)} mistakes:" + "".join(f"\n  {text}" for text in texts)

    def _place(self, line: float) -> str:
        if line == _OVERRIDDEN:
            return "--set"
        return f"{self._name}:{line}" if line else self._name

    def _line_of(self, mistake: str) -> float:
        """The line, 0 where it is not known."""
        found = _PRESET.match(mistake)
        bases: list[Path] = [("preset", found[1])] if found else []
        if self._preset is not None and not found:
            bases.append(("preset", self._preset))
        bases.append(())
        names = [tuple(name.split(".")) for name in _NAMES.findall(mistake[found.end() if found else 0 :])]
        # A key that is missing is at the line of its section.
        for paths in (names, [name[:-1] for name in names if len(name) > 1]):
            for path in paths:
                if not found and any(path[: len(o)] == o or o[: len(path)] == path for o in self._overridden):
                    return _OVERRIDDEN
                for base in bases:
                    if line := self._lines.get(base + path):
                        return line
        return 0


def _first_lines(text: str) -> Iterator[tuple[Path, int]]:
    """Every key and table with the line where its statement begins.

    TOML's reader tells no lines, so beginnings of the file are read: a key is where it is there first.

    Yields:
        Path and line, from 1.
    """
    lines = text.splitlines(keepends=True)
    if len(lines) > _MOST_LINES:
        return
    known: set[Path] = set()
    begin = 1
    for number in range(1, len(lines) + 1):
        try:
            table = tomllib.loads("".join(lines[:number]))
        except ValueError:
            continue  # Inside of a value that takes several lines.
        for path in _paths(table):
            if path not in known:
                known.add(path)
                yield path, begin
        begin = number + 1


def _paths(table: Mapping[str, Any], prefix: Path = ()) -> Iterator[Path]:
    for key, value in table.items():
        yield (*prefix, key)
        if isinstance(value, Mapping):
            yield from _paths(value, (*prefix, key))
