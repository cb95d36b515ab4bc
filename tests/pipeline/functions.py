"""Functions for light workers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from distributed import get_worker


def report(run, instance, result):
    return {"instance_again": instance, "total": result.metrics["total"], "pid": os.getpid()}


def place(run, instance, result):
    """Ends once light work has begun on two nodes; tells what HTTP says, which asks for no certificate."""
    worker = get_worker()
    try:
        with urlopen(f"http://{worker.ip}:{worker.http_server.port}/health", timeout=10) as answer:
            status = answer.status
    except HTTPError as error:
        status = error.code
    node = os.environ["SLURMD_NODENAME"]
    Path(run, f"light-on-{node}").touch()
    until = time.monotonic() + 30
    while len(list(Path(run).glob("light-on-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    return {"node": node, "http": status}


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
