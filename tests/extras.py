"""What some tests need besides the tools that `make env` installs."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

__all__ = ["require", "require_modules"]


def require_modules(*names: str) -> None:
    """Skip the test where a module is missing; fail where the set-up should have brought it."""
    missing = [name for name in names if find_spec(name) is None]
    require(not missing, f"not installed: {', '.join(missing)}")


def require(is_there: bool, reason: str) -> None:
    """Skip the test with a reason, or fail where extras were asked for."""
    if is_there:
        return
    if os.environ.get("LSR_EXTRAS") == "1":
        pytest.fail(f"{reason}, although LSR_EXTRAS=1")
    pytest.skip(f"{reason} (LSR_EXTRAS=1 make env)")
