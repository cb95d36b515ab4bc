"""Printing that no run depends on: lines, and below them on a terminal one that is drawn anew in place."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from typing import TextIO

__all__ = ["ConsoleHandler", "clear_live", "is_terminal", "log_level", "say", "say_aside", "show_live"]

# Whether the last line of the terminal is a live one, to be erased before anything else is printed.
_has_live = False


def say(text: str) -> None:
    """Print at once; where nobody listens any more (a closed pipe, a full disk) go on in silence.

    Args:
        text: What to print.
    """
    clear_live()
    _print(text + "\n", sys.stdout, "standard output")


def say_aside(text: str) -> None:
    """Print to standard error, where what passes by goes and results do not.

    Args:
        text: What to print.
    """
    clear_live()
    _print(text + "\n", sys.stderr, "")


def log_level(options: argparse.Namespace) -> int:
    """Level of what is logged, from ``-q`` and ``-v``.

    Args:
        options: Parsed command line.

    Returns:
        A level of :mod:`logging`.
    """
    if options.quiet:
        return logging.WARNING
    return logging.DEBUG if options.verbose else logging.INFO


def is_terminal() -> bool:
    """Whether standard error is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def show_live(text: str) -> None:
    """Draw the live line, in place of the last one.

    Args:
        text: What to show; cut off at the width of the terminal.
    """
    global _has_live
    width = shutil.get_terminal_size().columns
    _print(f"\r{text[: width - 1]}\x1b[K", sys.stderr, "")
    _has_live = True


def clear_live() -> None:
    """Erase the live line, if there is one."""
    global _has_live
    if _has_live:
        _has_live = False
        _print("\r\x1b[K", sys.stderr, "")


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Log lines on standard error that do not run into a live line."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record.

        Args:
            record: The record.
        """
        clear_live()
        super().emit(record)


def _print(text: str, stream: TextIO, name: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        # The descriptor itself, so that what is still buffered is gone too and the exit code stays ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if name:
            print(f"lsr-hpc: {name} is lost ({error.strerror}); going on without it", file=sys.stderr)
