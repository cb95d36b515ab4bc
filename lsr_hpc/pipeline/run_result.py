"""``result.json`` of a run: where its instances stand, and what the functions of its end add."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr_hpc.phase_record import read_timelines
from lsr_hpc.phase_table import phase_costs, phases_as_json
from lsr_hpc.pipeline.record import RunRecord
from lsr_hpc.publish import publish_text

if TYPE_CHECKING:
    from lsr_hpc.pipeline.advance import Outcome

__all__ = ["run_result", "write_run_result"]

log = logging.getLogger(__name__)


def run_result(
    record: RunRecord, world_size: int, outcomes: Sequence[Outcome], timelines: Sequence[Path]
) -> dict[str, Any]:
    """What the result of a run says before the functions of its end add to it.

    Args:
        record: The run.
        world_size: MPI ranks of an instance.
        outcomes: Where its instances stand.
        timelines: Phases of its steps; one that cannot be read is no reason to have no result.

    Returns:
        JSON content.
    """
    try:
        costs = phase_costs(read_timelines(timelines))
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("no table of phases: %s", error)
        costs = []
    return {
        "schema": 1,
        "kind": "run",
        "run_id": record.run_id,
        "problem": record.problem,
        "world_size": world_size,
        "status": "done",
        "instances": [_instance_json(i, outcome) for i, outcome in enumerate(outcomes)],
        "phases": phases_as_json(costs),
    }


def _instance_json(instance: int, outcome: Outcome) -> dict[str, Any]:
    result = outcome.result
    content: dict[str, Any] = {"instance": instance, "state": outcome.state}
    if result is not None:
        checkpoint = result.checkpoint
        content |= {
            "status": result.status,
            "rounds": result.next_round,
            "why": result.why,
            "checkpoint": None if checkpoint is None else checkpoint.name,
            **result.metrics,
        }
    return content | ({"message": outcome.message} if outcome.message else {})


def write_run_result(path: Path, content: Mapping[str, Any]) -> None:
    """Put the result of a run in its place.

    Args:
        path: Where.
        content: See :func:`run_result`.

    Raises:
        OSError: If it cannot be written.
    """
    publish_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
