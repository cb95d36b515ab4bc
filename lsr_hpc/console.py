"""Printing that no run depends on."""

from __future__ import annotations

import os
import sys

__all__ = ["say"]


def say(text: str) -> None:
    """Print at once; where nobody listens any more (a closed pipe, a full disk) go on in silence.

    Args:
        text: What to print.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        # The descriptor itself, so that what is still buffered is gone too and the exit code stays ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"lsr-hpc: standard output is lost ({error.strerror}); going on without it", file=sys.stderr)
