"""What light workers make of a run's checkpoints: figures while it goes on, predictor and network at its end.

Runs on Dask workers that know no MPI, from files alone.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.pipeline.record import read_record, stored_job
from lsr_hpc.pipeline.spec import StepResult

if TYPE_CHECKING:
    from torch import nn

    from lsr_hpc.iterative.state import IterateState, RoundRecord
    from lsr_hpc.predictor import RefinedPredictor
    from lsr_hpc.problem import Problem, ProblemFamily

__all__ = ["after_round", "at_end"]


def after_round(run: Path, instance: int, result: StepResult) -> dict[str, Any]:
    """Evaluate the newest network and the best predictor once more, without MPI, and draw the rounds so far.

    Args:
        run: The run directory.
        instance: Number of the instance.
        result: Result of the step.

    Returns:
        Errors on the evaluation data, relative L2 and largest; nothing where the problem has none.
    """
    state = _state(RunLayout(run), instance, result)
    if state is None:
        return {}
    _draw_rounds(_figure(RunLayout(run), instance), state.records)
    return _evaluated(_family(RunLayout(run)).instance(instance), state)


def at_end(run: Path, results: Sequence[StepResult | None]) -> dict[str, Any]:
    """Store predictors and networks, and gather what ``result.json`` tells.

    Args:
        run: The run directory.
        results: Last result of every instance, None for one that never had any.

    Returns:
        Fields of ``result.json``.
    """
    from lsr_hpc.iterative.stopping import advice
    from lsr_hpc.predictor import save_predictors
    from lsr_hpc.versions import versions

    layout = RunLayout(run)
    job = stored_job(layout, read_record(layout), [])
    family = _family(layout)
    predictors: list[RefinedPredictor] = []
    networks: list[nn.Module] = []
    entries: list[dict[str, Any]] = []
    for instance, result in enumerate(results):
        state = None if result is None else _state(layout, instance, result)
        if state is None or state.predictor is None or state.network is None:
            continue
        _draw_rounds(_figure(layout, instance), state.records)
        problem = family.instance(instance)
        network, predictor = _network(problem, state), _predictor(problem, state)
        _write_fields(layout, instance, family, problem, predictor, network)
        predictors.append(predictor)
        networks.append(network)
        entries.append(_entry(instance, state) | {"recommendation": advice(state)})
    if not predictors:
        return {"refined_instances": 0}
    save_predictors(layout.predictor, predictors)
    _save_networks(layout.network, [e["instance"] for e in entries], networks)
    for directory in (layout.predictor, layout.network):
        # Of an end that was killed before result.json was written.
        shutil.rmtree(directory.with_name(directory.name + ".previous"), ignore_errors=True)
    first = entries[0]
    content: dict[str, Any] = {
        "refined_instances": len(entries),
        "params": predictors[0].layout.size,
        "basis": job.subspace.basis,
        "solver": job.solver.type,
        "dtype": "float64",
        "objective": job.rounds.objective,
        "optimizer": job.rounds.optimizer,
        "error": _mean_of(entries, "error"),
        "residual": _mean_of(entries, "residual"),
        "network": _mean_of(entries, "network"),
        "seconds": {"total": sum(e["seconds"] for e in entries)},
        "recommendation": first["recommendation"],
        "rounds": entries,
        "versions": versions(with_solvers=False),
    }
    return content


def _state(layout: RunLayout, instance: int, result: StepResult) -> IterateState | None:
    """The state that a step's checkpoint holds; nothing is moved or deleted, a step may be at work."""
    from lsr_hpc.checkpoint.store import CheckpointStore
    from lsr_hpc.comm import OneProcess
    from lsr_hpc.iterative.state import IterateState

    if result.checkpoint is None:
        return None
    comm: Any = OneProcess()
    store = CheckpointStore(layout.checkpoints(instance), read_record(layout).job_sha256)
    state = IterateState.restored(store.load(comm, result.checkpoint), comm)
    return state if state.records else None


def _draw_rounds(path: Path, records: Sequence[RoundRecord]) -> None:
    from lsr_hpc.publish import publish_file
    from lsr_hpc.report.figures import rounds

    path.parent.mkdir(mode=0o700, exist_ok=True)
    with publish_file(path) as temporary:
        rounds([asdict(record) for record in records]).savefig(temporary, format="png", dpi=120)


def _figure(layout: RunLayout, instance: int) -> Path:
    return layout.figures / f"instance-{instance:04d}.png"


def _family(layout: RunLayout) -> ProblemFamily:
    from lsr_hpc.build import build_problem

    return build_problem(stored_job(layout, read_record(layout), []))


def _network(problem: Problem, state: IterateState) -> nn.Module:
    from lsr_hpc.iterative.rounds import with_parameters

    assert state.network is not None
    return with_parameters(problem, state.network.theta).model


def _predictor(problem: Problem, state: IterateState) -> RefinedPredictor:
    import torch

    from lsr_hpc.iterative.rounds import with_parameters
    from lsr_hpc.predictor import RefinedPredictor

    assert state.predictor is not None
    model = with_parameters(problem, state.predictor.theta).model
    return RefinedPredictor(model, torch.from_numpy(state.predictor.delta), problem.model_spec)


def _write_fields(
    layout: RunLayout,
    instance: int,
    family: ProblemFamily,
    problem: Problem,
    predictor: RefinedPredictor,
    network: nn.Module,
) -> None:
    """Errors of the trained start, the best predictor and the best network at some evaluation points."""
    from lsr_hpc.field_sample import sample_fields, write_fields
    from lsr_hpc.iterative.rounds import with_parameters
    from lsr_hpc.iterative.state import IterateState

    if problem.evaluation is None:
        return
    start = with_parameters(problem, IterateState.start(problem).theta).model
    kept = sample_fields(
        problem.evaluation,
        {"start": start.eval(), "refined": predictor.predict, "network": network.eval()},
        family.n_instances,
    )
    write_fields(layout.fields / f"instance-{instance:05d}.safetensors", kept)


def _evaluated(problem: Problem, state: IterateState) -> dict[str, Any]:
    """Errors of predictor and network on all of the evaluation data."""
    import torch

    from lsr_hpc.iterative.rounds import with_parameters

    evaluation = problem.evaluation
    if evaluation is None:
        return {}
    inputs, reference = evaluation.take(slice(None))
    largest = float(reference.abs().max()) or 1.0

    def errors(values: torch.Tensor) -> dict[str, float]:
        return {
            "relative_l2": evaluation.error(values),
            "relative_max": float((evaluation.judged(values) - reference).abs().max()) / largest,
        }

    with torch.no_grad():
        newest = with_parameters(problem, state.theta).model.eval()(*inputs)
        best = _predictor(problem, state).predict(*inputs)
    return {"network": errors(newest), "best_predictor": errors(best)}


def _entry(instance: int, state: IterateState) -> dict[str, Any]:
    assert state.predictor is not None
    assert state.network is not None
    first = state.records[0]
    return {
        "instance": instance,
        "rank": state.records[state.predictor.round].rank,
        "error": {"before": first.network_error_before, "after": state.predictor.error},
        "residual": {"before": first.network_residual_before, "true": state.predictor.residual},
        "network": {
            "error": state.network.error,
            "residual": state.network.residual,
            "round": state.network.round,
        },
        "predictor_round": state.predictor.round,
        "why": state.finished,
        "seconds": state.seconds,
        "records": [asdict(record) for record in state.records],
    }


def _mean_of(entries: Sequence[dict[str, Any]], key: str) -> dict[str, float | None]:
    """Means over the instances of the figures under a key; None where an instance has none."""
    means: dict[str, float | None] = {}
    for name in entries[0][key]:
        values = [entry[key][name] for entry in entries]
        means[name] = None if None in values else statistics.fmean(values)
    return means


def _save_networks(directory: Path, instances: Sequence[int], networks: Sequence[nn.Module]) -> None:
    """The aligned networks' own weights, one file an instance, under a manifest."""
    from lsr_hpc.integrity import MANIFEST, seal
    from lsr_hpc.publish import publish_directory
    from lsr_hpc.store import write_tensors

    with publish_directory(directory, MANIFEST) as target:
        for instance, network in zip(instances, networks, strict=True):
            write_tensors(target / f"instance-{instance:05d}.safetensors", network.state_dict())
        (target / "instances.json").write_text(json.dumps(list(instances)) + "\n", encoding="utf-8")
        seal(target)
