"""The seal of a finished run: a digest of everything that it delivers, in ``RUN/MANIFEST.json``.

Identity, specifications, results and checkpoints carry digests of their own. Logs, locks, leases and
heartbeats have none: nothing is computed from them.
"""

from __future__ import annotations

from lsr_hpc.integrity import MANIFEST, seal
from lsr_hpc.pipeline.layout import RunLayout

__all__ = ["break_seal", "seal_run"]


def seal_run(layout: RunLayout) -> None:
    """Record result, events, timelines, figures, fields, network and predictor; to be done last.

    Args:
        layout: The run directory.

    Raises:
        OSError: If a file cannot be read or the manifest not be written.
    """
    delivered = (layout.figures, layout.fields, layout.network, layout.predictor)
    files = [path for directory in delivered for path in directory.rglob("*") if path.is_file()]
    seal(layout.root, [layout.result, layout.metrics, *layout.timelines, *files])


def break_seal(layout: RunLayout) -> None:
    """Take the seal away, because the run goes on.

    Args:
        layout: The run directory.
    """
    (layout.root / MANIFEST).unlink(missing_ok=True)
