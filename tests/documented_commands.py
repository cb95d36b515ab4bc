"""Every command that README and docs show, wherever they show it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["REPOSITORY", "Command", "documented_commands"]

REPOSITORY = Path(__file__).parents[1]
# What begins a command, in listings and in code within a line.
_NAMES = "lsr-hpc python python3 mpiexec srun make sbatch salloc scontrol scancel pip apt-get conda"
_PROGRAMS = rf"(?:\.venv/bin/)?(?:{_NAMES.replace(' ', '|')})"
_START = re.compile(rf"^(?:export .*|(?:[A-Z_]+=\S+ )*{_PROGRAMS}(?: |$))")
# In tables the name of the program is left out, and an earlier command is gone on with.
_SHORT = re.compile(r"^(?:refine|run|train) jobs/")
_FENCE = re.compile(r"^```(\w*)\s*$")
_INLINE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
# What begins like a command and is a message.
_SENTENCES = {"lsr-hpc run cannot start steps", "srun brings no ranks to work"}
_SHELLS = {"sh", "bash", "console", ""}


@dataclass(frozen=True)
class Command:
    """A command and where it is shown.

    Attributes:
        text: As it is typed, on one line, without a comment.
        document: File, from the root of the repository.
        line: Line in it.
        is_fragment: Whether the text shows options alone, to be added to some command of lsr-hpc.
    """

    text: str
    document: str
    line: int
    is_fragment: bool = False

    @property
    def words(self) -> list[str]:
        """Words as the shell cuts them, without variables set before the command."""
        words = shlex.split(self.text, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        return words


def documented_commands() -> list[Command]:
    """All commands, each text once, at its first place."""
    documents = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]
    documents += sorted((REPOSITORY / "docs").glob("*.md"))
    found: dict[str, Command] = {}
    for document in documents:
        # The errors are commands that go wrong, and are run one by one already.
        if document.name == "errors.md":
            continue
        name = document.relative_to(REPOSITORY).as_posix()
        for line, text in _commands_of(document.read_text(encoding="utf-8")):
            found.setdefault(text, Command(text, name, line, is_fragment=text.startswith("--")))
    return list(found.values())


def _commands_of(text: str) -> Iterator[tuple[int, str]]:
    language: str | None = None
    before = ""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        at = number
        if match := _FENCE.match(line):
            language = match[1] if language is None else None
            continue
        is_listing = language in _SHELLS if language is not None else line.startswith("    ")
        if language is not None and not is_listing:
            continue
        if is_listing:
            while line.endswith("\\") and number < len(lines):
                line = line[:-1] + " " + lines[number].strip()
                number += 1
            # Behind three spaces a picture says what a command does.
            command = re.sub(r"(?:\s+#\s|\s{3,}).*$", "", line.strip().removeprefix("$ ")).strip()
            if _START.match(command):
                yield at, command
        else:
            for inline in _INLINE.finditer(line):
                command = inline[2].strip().replace("\\|", "|")
                if _SHORT.match(command):
                    command = before = f"lsr-hpc {command}"
                elif command.startswith("... --"):
                    command = f"{before.partition(' --')[0]} {command.removeprefix('... ')}"
                is_command = _START.match(command) and " " in command and command not in _SENTENCES
                if is_command or re.match(r"--(?:set|preset|ranks|jobs) ", command):
                    yield at, command
