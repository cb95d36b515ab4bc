"""What happens inside a computation, told to whoever listens.

Numerical code knows neither files nor terminals: it tells, others write and print. Events are few and small:
phases that begin and end, products of J, residuals on the way. Without a listener telling costs one look at
an empty list.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["Event", "Listener", "emit", "listening"]

Event = Mapping[str, Any]
"""JSON types: ``event`` (its kind), ``time`` (seconds since the epoch), and what belongs to the kind."""

Listener = Callable[[Event], None]

_listeners: list[Listener] = []


def emit(kind: str, **fields: Any) -> None:
    """Tell all listeners of this process; no communication.

    Args:
        kind: Kind of the event.
        **fields: JSON types.
    """
    if _listeners:
        event = {"event": kind, "time": time.time(), **fields}
        for listener in _listeners:
            listener(event)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have a listener told while the block lasts.

    Args:
        listener: Called with every event; must not raise.

    Yields:
        Nothing.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
