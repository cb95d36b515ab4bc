"""Errors of the user's code in words: what was done, in which line of theirs, and how it failed."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsr_hpc.errors import JobError, LsrError

__all__ = ["explaining", "in_one_line", "line_of"]

_LIBRARIES = (Path(__file__).parent, Path(sysconfig.get_path("stdlib")))
_INSTALLED = {"site-packages", "dist-packages"}


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """Turn any error of the user's code into one that says what failed, where and how.

    Args:
        what: What was being done, as the beginning of the message.

    Yields:
        Nothing.

    Raises:
        LsrError: One of ours, as it is.
        JobError: For every other exception and for ``sys.exit``; only Ctrl-C passes.
    """
    try:
        yield
    except LsrError:
        raise
    except SystemExit as error:
        raise JobError(
            f"{what} called sys.exit({error.code!r}){line_of(error)}: raise an exception instead"
        ) from error
    except Exception as error:
        raise JobError(f"{what} failed{line_of(error)}: {in_one_line(error)}") from error


def in_one_line(error: BaseException) -> str:
    """Kind and message of an exception, without line breaks; one of ours needs no kind.

    Args:
        error: The exception.

    Returns:
        Such as ``"ValueError: no data"``.
    """
    message = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, LsrError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def line_of(error: BaseException) -> str:
    """The innermost line that is neither ours nor of an installed library.

    Args:
        error: The exception.

    Returns:
        Such as ``" at /home/me/mine.py:12"``, empty where there is none.
    """
    if isinstance(error, SyntaxError):
        return f" at {error.filename}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        is_library = any(map(file.is_relative_to, _LIBRARIES)) or not _INSTALLED.isdisjoint(file.parts)
        if file.is_file() and not is_library:
            return f" at {file}:{frame.lineno}"
    return ""
