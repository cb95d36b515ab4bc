"""Where a controller logs: the screen, and a file that has more."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsr_hpc.console import say

__all__ = ["logging_to"]


class _ToStandardOutput(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


class _ToFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: on a full disk the run itself says so, and what is logged is printed as well."""


@contextmanager
def logging_to(path: Path, level: int = logging.INFO) -> Iterator[None]:
    """Log to standard output and to a file; what Dask complains about goes to the file alone.

    Args:
        path: The file.
        level: What is printed; the file has all from ``INFO`` on.

    Yields:
        Nothing.
    """
    path.parent.mkdir(exist_ok=True)
    to_file = _ToFile(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    to_output = _ToStandardOutput()
    to_output.setLevel(level)
    to_output.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours, *dasks = (logging.getLogger(name) for name in ("lsr_hpc", "distributed", "tornado", "asyncio"))
    before = [(logger, logger.handlers, logger.level, logger.propagate) for logger in (ours, *dasks)]
    ours.handlers = [to_file, to_output]
    ours.setLevel(min(level, logging.INFO))
    ours.propagate = False
    for logger in dasks:
        logger.handlers, logger.propagate = [to_file], False
    try:
        yield
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        to_file.close()
        sys.stdout.flush()
