"""Functions for light workers."""

from __future__ import annotations

import os
import time
from pathlib import Path


def report(run, instance, result):
    return {"instance_again": instance, "total": result.metrics["total"], "pid": os.getpid()}


def slow_report(run, instance, result):
    Path(run, f"light-{result.round}").write_text(str(os.getpid()))
    time.sleep(1.0)
    return {"total": result.metrics["total"]}


def failing(run, instance, result):
    raise ValueError("no figure today")


def total(run, results):
    return {"grand_total": sum(result.metrics["total"] for result in results)}


def failing_end(run, results):
    raise ValueError("no predictor today")


def unwritable_end(run, results):
    return {"error": float("nan")}


def slow_end(run, results):
    """Takes for ever the first time."""
    mark = Path(run, "end")
    if not mark.exists():
        mark.touch()
        time.sleep(600)
    return {"ends": 2}
