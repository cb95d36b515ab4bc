"""Site profiles: what every job of a cluster needs, ``~/.config/lsr-hpc/sites/NAME.toml``.

A profile has sections ``[slurm]`` and ``[run]`` as a job has, with the same checks; what the job says counts
above them.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from lsr_hpc.errors import JobError
from lsr_hpc.job import convert
from lsr_hpc.settings import RunSettings
from lsr_hpc.settings_slurm import SlurmSettings

__all__ = ["read_site", "sites_directory"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SECTIONS = {"slurm": SlurmSettings, "run": RunSettings}


def sites_directory() -> Path:
    """Where the profiles of this user are: below ``XDG_CONFIG_HOME``, by default ``~/.config``."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lsr-hpc" / "sites"


def read_site(name: str) -> dict[str, Any]:
    """Read a profile.

    Args:
        name: Its name.

    Returns:
        Its sections, to be laid below a job.

    Raises:
        JobError: If there is none of that name, or anything in it is wrong; every mistake is listed.
    """
    path = sites_directory() / f"{name}.toml"
    if not _NAME.fullmatch(name) or not path.is_file():
        there = sorted(p.stem for p in sites_directory().glob("*.toml"))
        raise JobError(
            f"--site {name!r}: there is no such profile in {sites_directory()}; there are: "
            f"{', '.join(there) or 'none'}; write {name}.toml there with sections [slurm] and [run]"
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise JobError(f"{path} cannot be read: {error}") from error
    mistakes = [f"unknown section {key!r}; known: run, slurm" for key in table if key not in _SECTIONS]
    for section, kind in _SECTIONS.items():
        convert(kind, table.get(section, {}), section, mistakes)
    if mistakes:
        raise JobError(f"{path}:" + "".join(f"\n  - {mistake}" for mistake in mistakes))
    return table
