"""The seal of a finished run: a digest of everything that it delivers, in ``RUN/MANIFEST.json``.

Identity, specifications, results and checkpoints carry digests of their own. Logs, locks, leases and
heartbeats have none: nothing is computed from them.
"""

from __future__ import annotations

from lsr_hpc.integrity import MANIFEST, Fault, file_fault, read_seal, seal
from lsr_hpc.pipeline.layout import RunLayout

__all__ = ["break_seal", "seal_faults", "seal_run"]


def seal_run(layout: RunLayout) -> None:
    """Record result, events, figures, network and predictor; to be done last.

    Args:
        layout: The run directory.

    Raises:
        OSError: If a file cannot be read or the manifest not be written.
    """
    delivered = (layout.figures, layout.network, layout.predictor)
    files = [path for directory in delivered for path in directory.rglob("*") if path.is_file()]
    seal(layout.root, [layout.result, layout.metrics, *files])


def seal_faults(layout: RunLayout) -> list[Fault]:
    """Compare what was delivered with the seal.

    Args:
        layout: The run directory.

    Returns:
        What is wrong, files named by their path below the run directory; a seal that is missing is a fault.

    Raises:
        JobError: If the seal is of another kind or version.
        EnvironmentProblem: If a file may be intact but cannot be read.
    """
    records = read_seal(layout.root)
    if isinstance(records, Fault):
        return [records]
    found = [(name, file_fault(layout.root / name, record)) for name, record in records.items()]
    return [Fault(name, fault.kind, fault.text) for name, fault in found if fault]


def break_seal(layout: RunLayout) -> None:
    """Take the seal away, because the run goes on.

    Args:
        layout: The run directory.
    """
    (layout.root / MANIFEST).unlink(missing_ok=True)
