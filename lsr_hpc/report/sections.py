"""The parts of a report on one run: a figure where one helps, and every number in a table."""

from __future__ import annotations

import io
import math
import statistics
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lsr_hpc.phase_table import PhaseCost
from lsr_hpc.report import figures, html, run_figures
from lsr_hpc.report.data import InstanceData, Phase, RunData
from lsr_hpc.report.field_figures import field_figure
from lsr_hpc.report_text import gain_in_words
from lsr_hpc.settings import parse_bytes

__all__ = ["Pictures", "in_one_sentence", "mean_errors", "run_sections"]

_DPI = 150
# Instances of a family whose fields and spectra are shown: the worst and the median one.
_SHOWN = 2


@dataclass
class Pictures:
    """Figures by file name, drawn once and used twice: inside the page and as files.

    Attributes:
        files: PNG by name.
    """

    files: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, drawn: Any, caption: str) -> str:
        """Render a figure.

        Args:
            name: File name without ending.
            drawn: The figure.
            caption: What it shows.

        Returns:
            HTML.
        """
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="png", dpi=_DPI)
        self.files[f"{name}.png"] = buffer.getvalue()
        return html.figure(buffer.getvalue(), caption)


def mean_errors(run: RunData) -> tuple[float, float] | None:
    """Mean errors before and after; None where an instance has none.

    Args:
        run: The run.

    Returns:
        Both means.
    """
    pairs = [(i.error_before, i.error_after) for i in run.instances]
    known = [(before, after) for before, after in pairs if before is not None and after is not None]
    if len(known) < len(pairs):
        return None
    befores, afters = zip(*known, strict=True)
    return statistics.fmean(befores), statistics.fmean(afters)


def in_one_sentence(run: RunData) -> str:
    """What was refined, and how well.

    Args:
        run: The run.

    Returns:
        A sentence.
    """
    n = len(run.instances)
    what = f"{n} networks of {run.problem}" if n > 1 else f"One network of {run.problem}"
    if run.is_transfer:
        what = f"{n} condition{'s' if n > 1 else ''} of {run.problem}, by the network of another one"
    how = (
        f"in up to {max(len(i.records) for i in run.instances)} rounds"
        if run.is_iterative
        else f"in a subspace of rank {statistics.median(i.rank for i in run.instances):g}"
    )
    size = f"{run.result['params']:,} parameters" + (" each" if n > 1 and not run.is_transfer else "")
    where = f"{run.result['world_size']} MPI ranks, {run.result['seconds']['total']:.3g} s"
    errors = mean_errors(run)
    if errors is None:
        before = statistics.fmean(i.residual_before for i in run.instances)
        after = statistics.fmean(i.residual_true for i in run.instances)
        measure = "residual"
    else:
        (before, after), measure = errors, "relative L2 error"
    fell = f"the {'mean ' if n > 1 else ''}{measure} went from {before:.2e} to {after:.2e}, "
    refused = sum(1 for i in run.instances if i.outcome == "refused")
    refusals = f"; {refused} refused, where the start is kept" if refused else ""
    missing = run.n_instances - n
    failures = f"; {missing} of {run.n_instances} instances failed" if missing else ""
    was = "were" if n > 1 else "was"
    gain = gain_in_words(before, after)
    done = "solved" if run.is_transfer else "refined"
    return f"{what} ({size}) {was} {done} {how}: {fell}{gain}{refusals}{failures} ({where})."


def run_sections(run: RunData, pictures: Pictures, prefix: str = "") -> list[str]:
    """All parts of the report on a run.

    Args:
        run: The run.
        pictures: Receives the figures.
        prefix: Put before their file names.

    Returns:
        HTML.
    """
    parts = _errors(run, pictures, prefix)
    for instance in _representatives(run.instances):
        is_one_of_many = len(run.instances) > 1
        name = f"{prefix}instance-{instance.number:04d}-" if is_one_of_many else prefix
        whose = f", instance {instance.number}" if is_one_of_many else ""
        for title, section in _OF_AN_INSTANCE.items():
            if made := section(instance, pictures, name):
                parts += [html.heading(3, title + whose), *made]
    return [*parts, *_phases(run, pictures, prefix), *_environment(run)]


def _representatives(instances: Sequence[InstanceData]) -> list[InstanceData]:
    """The worst and the median instance by error, or by residual where there is no error."""
    ranked = sorted(instances, key=lambda i: -(i.residual_true if i.error_after is None else i.error_after))
    return ranked if len(ranked) <= _SHOWN else [ranked[0], ranked[len(ranked) // 2]]


def _errors(run: RunData, pictures: Pictures, prefix: str) -> list[str]:
    parts = [html.heading(3, "Errors and residuals")]
    known = [(i.error_before, i.error_after, str(i.number)) for i in run.instances]
    pairs = [(b, a, n) for b, a, n in known if b is not None and a is not None]
    if len(pairs) > 1:
        drawn = figures.errors_of_instances(*zip(*pairs, strict=True))
        caption = "Relative L2 error on evaluation data that no fit has seen, of every instance."
        parts.append(pictures.add(f"{prefix}errors", drawn, caption))
    head = ["instance", "outcome", "rank", "error before", "error after", "gain", "residual before"]
    head += ["error, aligned network" if run.is_iterative else "residual linear", "residual true", "seconds"]
    rows = []
    for i in run.instances:
        gain = i.error_before / i.error_after if i.error_before and i.error_after else None
        row: list[object] = [i.number, i.outcome, i.rank, i.error_before, i.error_after, gain]
        row += [i.residual_before, i.network_error if run.is_iterative else i.residual_linear]
        row += [i.residual_true, i.seconds]
        rows.append(row)
    parts.append(html.table(head, rows, summary=f"{len(rows)} instances" if len(rows) > 12 else ""))
    advice = {sentence for i in run.instances for sentence in i.advice}
    parts += [html.paragraph(f"Note: {sentence}.") for sentence in sorted(advice)[:5]]
    if run.is_iterative and "recommendation" in run.result:
        parts.append(html.paragraph(run.result["recommendation"]))
    return parts


def _fields(instance: InstanceData, pictures: Pictures, prefix: str) -> list[str]:
    if not instance.fields:
        return []
    reference = instance.fields["reference"]
    names = [n for n in ("start", "refined", "network") if n in instance.fields]
    caption = (
        f"Reference, and absolute errors on one logarithmic scale, at {len(reference)} evaluation points"
        + (", first component." if reference.shape[1] > 1 else ".")
    )
    largest = float(abs(reference).max())
    rows: list[list[object]] = [
        [
            name,
            float(abs(instance.fields[name]).max()),
            float((instance.fields[name] ** 2).mean() ** 0.5),
            float((instance.fields[name] ** 2).sum() ** 0.5 / max((reference**2).sum() ** 0.5, 1e-300)),
        ]
        for name in names
    ]
    return [
        pictures.add(f"{prefix}field", field_figure(instance.fields), caption),
        html.table(["field", "largest error", "root mean square", "relative L2, at these points"], rows),
        html.paragraph(f"Largest absolute value of the reference: {largest:.3g}."),
    ]


def _spectrum(instance: InstanceData, pictures: Pictures, prefix: str) -> list[str]:
    table = instance.spectrum
    if len(table) == 0:
        return []
    used = table[table[:, 0] <= instance.rank]
    caption = (
        "Left: singular values of J V on the fitted rows. Right: how much of the residual of the start lies "
        f"along each left singular vector; rank {instance.rank} was chosen."
    )
    rows = [[int(n), float(s), None if math.isnan(c) else float(c)] for n, s, c in table]
    condition = f"{used[0, 1] / used[-1, 1]:.2e}" if len(used) and used[-1, 1] > 0 else "not known"
    return [
        pictures.add(f"{prefix}spectrum", figures.spectrum(table, instance.rank), caption),
        html.paragraph(f"Condition number of J V up to the chosen rank: {condition}."),
        html.table(["direction", "singular value", "share of r0"], rows, summary=f"{len(rows)} directions"),
    ]


def _scan(instance: InstanceData, pictures: Pictures, prefix: str) -> list[str]:
    if not instance.scan:
        return []
    rows = [[e["rank"], e["train"], e["held_out"], e.get("true"), e["error"]] for e in instance.scan]
    caption = (
        "Residual of the linearisation on fitted and held-out rows for every rank looked at, and the true "
        "residual of the refined field at the rank chosen. The rank is chosen on held-out rows alone."
    )
    head = ["rank", "train", "held out", "true", "relative L2 error"]
    return [
        pictures.add(f"{prefix}rank", figures.scan(instance.scan, instance.rank), caption),
        html.table(head, rows, summary=f"{len(rows)} ranks"),
    ]


def _rounds(instance: InstanceData, pictures: Pictures, prefix: str) -> list[str]:
    if not instance.records:
        return []
    keys = ["round", "rank", "network_error_before", "predictor_error", "network_error", "predictor_residual"]
    keys += ["network_residual", "held_out", "steps", "seconds"]
    rows = [[record[key] for key in keys] for record in instance.records]
    return [
        pictures.add(
            f"{prefix}rounds",
            figures.rounds(instance.records),
            "Network and refined predictor round by round, against the seconds spent.",
        ),
        html.table([key.replace("_", " ") for key in keys], rows),
    ]


_OF_AN_INSTANCE: dict[str, Callable[[InstanceData, Pictures, str], list[str]]] = {
    "Field and errors": _fields,
    "Spectrum and residual components": _spectrum,
    "Residual and error against the rank": _scan,
    "Rounds": _rounds,
}


def _phases(run: RunData, pictures: Pictures, prefix: str) -> list[str]:
    if not run.phases:
        return []
    caption = "Phases of the MPI ranks against time" + (
        "; between them processes start, libraries load, and checkpoints are written."
        if run.is_iterative
        else "."
    )
    limit = parse_bytes(tomllib.loads(run.job)["compute"]["memory_per_rank"])
    names = list(dict.fromkeys(phase.name for phase in run.phases))
    ranks = sorted({phase.mpi_rank for phase in run.phases})
    rows = [
        [
            f"MPI rank {rank}",
            *(_seconds_in(run.phases, rank, name) for name in names),
            _peak(run.phases, rank),
        ]
        for rank in ranks
    ]
    balance: list[object] = ["mean / largest"]
    for column in range(1, len(names) + 1):
        values = [float(row[column]) for row in rows]  # type: ignore[arg-type]
        balance.append(statistics.fmean(values) / max(values) if max(values) > 0 else None)
    return [
        html.heading(3, "Where the time went"),
        pictures.add(f"{prefix}timeline", run_figures.timeline(run.phases), caption),
        *_costs(run.costs),
        html.heading(3, "Memory"),
        pictures.add(
            f"{prefix}memory",
            run_figures.memory(run.phases, limit),
            "Largest resident memory of each MPI rank up to the end of each phase, libraries included.",
        ),
        html.table(
            ["", *(f"{name}, s" for name in names), "peak, MiB"],
            [*rows, [*balance, None]],
            summary=f"seconds and memory of {len(ranks)} MPI ranks" if len(ranks) > 12 else "",
        ),
    ]


def _costs(costs: Sequence[PhaseCost]) -> list[str]:
    head = ["phase", "seconds", "in MPI, s", "balance", "GF", "GF/s", "balance of GF", "MiB received"]
    head += ["messages", "reductions"]
    rows: list[list[object]] = [
        [
            *(c.phase, c.seconds, c.wait_s, c.balance, c.flops / 1e9),
            c.flops / 1e9 / c.seconds if c.seconds > 0 else None,
            *(c.flops_balance, c.received_bytes / 2**20, round(c.messages), round(c.reductions)),
        ]
        for c in costs
    ]
    return [
        html.table(head, rows),
        html.paragraph(
            "Seconds of the slowest rank, and the mean of those spent inside of MPI. Balance: mean of the "
            "ranks over the largest, for the seconds outside of MPI and for the flops; 1 is even. Flops "
            "(products with J, QR factorisations, PETSc and SLEPc), bytes and messages are those of all "
            "ranks; reductions are collective calls of PETSc."
        ),
    ]


def _seconds_in(phases: Sequence[Phase], rank: int, name: str) -> float:
    return math.fsum(p.end - p.begin for p in phases if p.mpi_rank == rank and p.name == name)


def _peak(phases: Sequence[Phase], rank: int) -> float:
    return max(p.peak_rss_bytes for p in phases if p.mpi_rank == rank) / 2**20


def _environment(run: RunData) -> list[str]:
    keys = ("world_size", "threads_per_rank", "rows", "params", "basis", "jacobian", "solver", "dtype")
    facts: list[list[object]] = [[key, run.result[key]] for key in keys if key in run.result]
    facts += [[name, version] for name, version in run.result["versions"].items()]
    return [
        html.heading(3, "Environment"),
        html.table(["", ""], facts),
        html.preformatted(run.job, "The job, fully resolved"),
    ]
