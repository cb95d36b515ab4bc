"""Tables, sentences, figures and the document of ``accuracy``; everything in them comes from a record."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import TARGETS, summarised
from benchmarks.accuracy_registry import ARMS, PROBLEMS
from benchmarks.arms import Measurement
from benchmarks.record import Record

__all__ = ["draw_problem", "save_document", "sentence", "tables"]

# Okabe and Ito, without their yellow, which white paper swallows.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#999999", "#000000")
_OURS = "#D55E00"
_MARKS = "osD^v<>pPX"
# Factors below this are no difference.
_SAME = 1.3
# Left end of the figures' axis.
_FIRST_SECOND = 0.1
_BYTES_PER_MIB = 2**20
_PROTOCOL = Path(__file__).with_name("accuracy_protocol.md")


def tables(record: Record) -> str:
    """Everything in words and tables, as Markdown.

    Args:
        record: The record.

    Returns:
        Text, one section a problem.
    """
    lines = summarised(record.arms)
    parts = []
    for name in dict.fromkeys(m["problem"] for m in record.arms):
        own = [line for line in lines if line["problem"] == name]
        parts += [f"## {name}", _identities(record.arms, name), sentence(own), _errors(own), _seconds(own)]
        parts.append(_left_out(own, [m for m in record.arms if m["problem"] == name]))
    return "\n\n".join(filter(None, parts))


def _identities(arms: Sequence[Measurement], name: str) -> str:
    """Size of a problem and what its cases were given."""
    known = [m for m in arms if m["problem"] == name and "theta0_sha256" in m]
    if not known:
        return ""
    cases = {(m["seed"], m["instance"]): m for m in known}
    seeds = {seed for seed, _ in cases}
    words = [
        f"{known[0]['params']:,} parameters, {known[0]['rows']:,} rows; {_count(len(seeds), 'seed')}, "
        f"drawing {PROBLEMS[name].seeds_are}; {_count(len(cases), 'case')}. First 12 digits of the SHA-256 "
        "of theta0 and of the rows:"
    ]
    for (seed, instance), m in sorted(cases.items()):
        which = f"seed {seed}" + (f", function {instance}" if PROBLEMS[name].instances else "")
        words.append(f"{which}: {m['theta0_sha256'][:12]}, {m['rows_sha256'][:12]}")
    return words[0] + " " + "; ".join(words[1:]) + "."


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("s" if n != 1 else "")


def sentence(lines: Sequence[Measurement]) -> str:
    """Where ours stands among linear predictors and among weights, and what is better, with the reason.

    Args:
        lines: Summaries of one problem.

    Returns:
        One or two sentences.
    """
    return " ".join(
        filter(
            None,
            (
                _standing([line for line in lines if line.get("kind") == kind], kind)
                for kind in ("predictor", "weights")
            ),
        )
    )


def _standing(lines: Sequence[Measurement], kind: str) -> str:
    rivals = [line for line in lines if not ARMS[line["arm"]].is_ours and math.isfinite(line["median"])]
    ours = [line for line in lines if ARMS[line["arm"]].is_ours and math.isfinite(line["median"])]
    if not ours or not rivals:
        return ""
    best, other = (min(group, key=lambda line: float(line["median"])) for group in (ours, rivals))
    what = "linear predictors" if kind == "predictor" else "weights"
    said = (
        f"Of {what}, ours is best with {best['median']:.1e} ({best['title']}, {best['seconds']:.3g} s); "
        f"{other['title']} has {other['median']:.1e} after {other['seconds']:.3g} s."
    )
    factor = best["median"] / other["median"]
    if factor > _SAME:
        return (
            f"Of {what}, ours is not best: {other['title']} has {other['median']:.1e} after "
            f"{other['seconds']:.3g} s, {factor:.2g} times less than {best['title']} with "
            f"{best['median']:.1e} after {best['seconds']:.3g} s; {ARMS[other['arm']].why}."
        )
    if factor > 1 / _SAME:
        sooner = best if best["seconds"] <= other["seconds"] else other
        return (
            f"Of {what}, {best['title']} and {other['title']} are equal with {best['median']:.1e} and "
            f"{other['median']:.1e}; {sooner['title']} is sooner there, after {sooner['seconds']:.3g} s "
            f"against {max(best['seconds'], other['seconds']):.3g} s."
        )
    return said


def _errors(lines: Sequence[Measurement]) -> str:
    head = ["arm", "kind", "median error", "mean", "worst", "best on the way", "true residual"]
    head += ["linear residual", "at s", "late", "peak MiB", "columns of J", "of Jᵀ", "foreign cores"]
    rows = []
    for line in lines:
        if "skipped" in line:
            continue
        both = line["columns"]
        rows.append([
            line["title"],
            line["kind"],
            *(
                _short(line[key], ".2e")
                for key in ("median", "mean", "worst", "on_the_way", "true", "linear")
            ),
            _short(line["seconds"], ".3g"),
            f"{line['late']} of {line['cases']}" if line["late"] else "",
            _short(line["peak_rss_bytes"] / _BYTES_PER_MIB, ".0f"),
            f"{both:,.0f} both" if math.isfinite(both) else _short(line["j_columns"], ",.0f"),
            _short(line["jt_columns"], ",.0f"),
            _short(line["foreign_cores"], ".1f"),
        ])
    return _table(head, rows)


def _seconds(lines: Sequence[Measurement]) -> str:
    reached = [line for line in lines if "skipped" not in line and line["arm"] != "start"]
    start = min((line["median"] for line in lines if line["arm"] == "start"), default=math.inf)
    shown = [
        i
        for i, target in enumerate(TARGETS)
        if target < start and any(math.isfinite(line["reached"][i]) for line in reached)
    ]
    if not shown:
        return ""
    head = ["seconds to an error of", *(f"{TARGETS[i]:.0e}" for i in shown)]
    rows = [[line["title"], *(_short(line["reached"][i], ".3g") for i in shown)] for line in reached]
    return _table(head, rows)


def _left_out(lines: Sequence[Measurement], single: Sequence[Measurement]) -> str:
    notes = [f"- {line['title']}: {line['skipped']}" for line in lines if "skipped" in line]
    for line in lines:
        if line.get("failed"):
            reasons = {m["skipped"] for m in single if m["title"] == line["title"] and "skipped" in m}
            notes.append(
                f"- {line['title']}: {line['failed']} more cases without a result, {'; '.join(reasons)}"
            )
    return "\n".join(notes)


def _short(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw_problem(record: Record, name: str, figure: Any) -> None:
    """Error against seconds of one problem: medians over its cases; weights solid, linear predictors dashed.

    Args:
        record: The record.
        name: The problem.
        figure: Matplotlib figure.
    """
    axes = figure.subplots()
    groups: dict[str, list[Measurement]] = {}
    for m in record.arms:
        if m["problem"] == name and "skipped" not in m and m["history"]:
            groups.setdefault(m["title"], []).append(m)
    colours = iter(_COLOURS * len(groups))
    for number, (title, group) in enumerate(groups.items()):
        errors = [point["error"] for m in group for point in m["history"]]
        if group[0]["arm"] == "start":
            axes.axhline(float(np.median(errors)), color="black", linewidth=0.8, linestyle=":", label=title)
            continue
        is_ours = ARMS[group[0]["arm"]].is_ours
        seconds, error = _median_curve(group)
        axes.loglog(
            seconds,
            error,
            linestyle="-" if group[0]["kind"] == "weights" else "--",
            drawstyle="steps-post",
            color=_OURS if is_ours else next(colours),
            linewidth=2.2 if is_ours else 1.1,
            marker=_MARKS[number % len(_MARKS)],
            markersize=6 if is_ours else 4,
            markevery=max(1, len(seconds) // 5),
            label=title,
        )
    axes.set(title=name, xlabel="seconds", ylabel="relative L2 error, median over cases")
    # Before that nothing but the start is there.
    axes.set_xlim(left=_FIRST_SECOND)
    axes.grid(which="major", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        fontsize="x-small",
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        title="weights solid\npredictors dashed",
    )


def _median_curve(group: Sequence[Measurement]) -> tuple[list[float], list[float]]:
    """Median error of what each case has at every moment at which one of them has something new."""
    moments = sorted({p["seconds"] for m in group for p in m["history"] if p["seconds"] > 0})
    # From here on every case has something.
    first = max(
        min((p["seconds"] for p in m["history"] if p["seconds"] > 0), default=math.inf) for m in group
    )
    moments = [t for t in moments if t >= first]

    def at(m: Measurement, t: float) -> float:
        return float([p["error"] for p in m["history"] if p["seconds"] <= t][-1])

    return moments, [float(np.median([at(m, t) for m in group])) for t in moments]


def _command_of(command: str, name: str) -> str:
    """The command of one problem alone, which writes nothing."""
    words = shlex.split(command)
    kept = list(words)
    for option in ("--markdown", "--json", "--png"):
        if option in kept:
            place = kept.index(option)
            del kept[place : place + 2]
    kept[kept.index("--problem") + 1] = name
    return shlex.join(kept)


def save_document(
    record: Record, path: Path, pictures: dict[str, Path], budget_s: float, computer: dict[str, Any]
) -> None:
    """Write the page.

    Args:
        record: The record.
        path: File.
        pictures: Figures by problem.
        budget_s: Seconds of every arm.
        computer: The machine.
    """
    taken = [m for m in record.arms if "skipped" not in m]
    words = {
        "command": record.command,
        "budget": budget_s,
        "processor": computer["processor"],
        "cores": max((max(m["threads"], m["mpi_ranks"]) for m in taken), default=computer["cores"]),
    }
    text = tables(record)
    for name in dict.fromkeys(m["problem"] for m in record.arms):
        head = f"## {name}\n\n    {_command_of(record.command, name)}\n"
        if name in pictures:
            head += f"\n![{name}]({os.path.relpath(pictures[name], path.parent)})\n"
        text = text.replace(f"## {name}\n", head, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        _PROTOCOL.read_text(encoding="utf-8").format(**words) + "\n" + text + "\n", encoding="utf-8"
    )
