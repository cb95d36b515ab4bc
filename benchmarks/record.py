"""The record of a benchmark run: machine, table, JSON and picture."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.arms import Measurement, MissingPeerError, peer

__all__ = ["Column", "Record", "machine", "ratio", "save_json", "save_markdown", "save_png", "table"]


@dataclass(frozen=True)
class Column:
    """A column of the printed table.

    Attributes:
        key: Entry of the measurement.
        title: Heading, with the unit.
        form: Format specification.
        scale: Factor before printing.
    """

    key: str
    title: str
    form: str = ".3g"
    scale: float = 1.0


@dataclass(kw_only=True)
class Record:
    """What one benchmark run found.

    Attributes:
        name: The benchmark.
        preset: Its size.
        arms: One entry per measurement.
        ratios: Ratios between arms of this run; those of others to ours favour ours above 1.
        notes: Sentences that belong under the table.
        command: How it was started.
    """

    name: str
    preset: str
    arms: list[Measurement]
    ratios: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    command: str = ""

    def as_json(self) -> dict[str, Any]:
        """The record with the machine it was made on; JSON types only."""
        return {
            "name": self.name,
            "preset": self.preset,
            "command": self.command,
            "machine": machine(),
            "arms": self.arms,
            "ratios": self.ratios,
            "notes": self.notes,
        }


def machine() -> dict[str, Any]:
    """Hardware and versions, without anything that names the machine or the place.

    Returns:
        A dictionary of JSON types.
    """
    import numpy as np
    import scipy
    import torch

    from lsr_hpc.versions import versions

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_before": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            **versions(with_solvers=False),
            "scipy": scipy.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def ratio(over: Measurement | None, under: Measurement | None, key: str = "seconds") -> float | None:
    """Quotient of one entry of two measurements.

    Args:
        over: Numerator's measurement.
        under: Denominator's measurement.
        key: The entry.

    Returns:
        The quotient, or None where one of them is missing or zero.
    """
    if over is None or under is None or not over.get(key) or not under.get(key):
        return None
    return float(over[key]) / float(under[key])


def table(record: Record, columns: Sequence[Column]) -> str:
    """The measurements as a Markdown table, ratios and notes below.

    Args:
        record: The record.
        columns: What to show.

    Returns:
        Text.
    """
    rows = [["arm", *(c.title for c in columns)]]
    rows.append(["---"] * len(rows[0]))
    rows += [[_label(m), *(_cell(m, c) for c in columns)] for m in record.arms if "skipped" not in m]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in rows]
    lines += [f"{_label(m)}: {m['skipped']}" for m in record.arms if "skipped" in m]
    if record.ratios:
        lines += ["", "ratios (of others to ours: above 1 ours is better)"]
        lines += [f"  {name:<60s} {value:8.3g}" for name, value in record.ratios.items()]
    return "\n".join([*lines, *([""] if record.notes else []), *record.notes])


def _label(measurement: Measurement) -> str:
    case = measurement.get("case")
    return f"{case}: {measurement['arm']}" if case else str(measurement["arm"])


def _cell(measurement: Measurement, column: Column) -> str:
    value = measurement.get(column.key)
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return format(value * column.scale if column.scale != 1.0 else value, column.form)


def save_json(record: Record, path: Path) -> None:
    """Write the record.

    Args:
        record: The record.
        path: File.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record.as_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def save_markdown(
    record: Record, path: Path, columns: Sequence[Column], about: str | None, png: Path | None
) -> None:
    """Write the table as a document.

    Args:
        record: The record.
        path: File.
        columns: What to show.
        about: What the benchmark is, its first line for a title.
        png: The picture of the record, or None.
    """
    computer = machine()
    title, _, text = (about or record.name).strip().partition("\n")
    lines = [f"# {title.rstrip('.')}", text.strip(), table(record, columns)]
    if png is not None:
        lines.append(f"![{record.name}]({os.path.relpath(png, path.parent)})")
    lines.append(f"Made by `{record.command}` on {computer['processor']}, {computer['cores']} cores.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(filter(None, lines)) + "\n", encoding="utf-8")


def save_png(record: Record, path: Path, draw: Callable[[Record, Any], None]) -> bool:
    """Draw the record.

    Args:
        record: The record.
        path: File.
        draw: ``draw(record, figure)`` fills a matplotlib figure.

    Returns:
        False where matplotlib is missing; a line on stderr then says how to get it.
    """
    try:
        figure_module = peer("matplotlib.figure", "matplotlib")
    except MissingPeerError as error:
        print(f"no picture: {error}", file=sys.stderr)
        return False
    figure = figure_module.Figure(figsize=(9, 4.5), layout="constrained")
    draw(record, figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return True
