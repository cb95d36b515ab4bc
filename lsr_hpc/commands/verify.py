"""``lsr-hpc verify``: every byte of a run directory against its digests; needs neither MPI nor PETSc."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsr_hpc.console import say
from lsr_hpc.errors import ExitCode, JobError
from lsr_hpc.integrity import MANIFEST, Fault, digest_fault, file_fault, read_seal, read_signed
from lsr_hpc.pipeline.layout import RunLayout
from lsr_hpc.publish import RUN_MARKER, RUNNING, unfinished

__all__ = ["run"]

_IDENTITY = "run.json"
_SPEC = "spec.json"
# How a step ends that leaves a result.
_WITH_RESULT = {"done", "yielded", "diverged"}
_JOB = "job.toml"
_CAMPAIGN = "campaign.json"
_PREDICTOR = "predictor"
_CHECKPOINTS = "checkpoints"
_USABLE, _DAMAGED, _UNFINISHED, _UNCHECKED, _ASIDE = (
    "usable",
    "damaged",
    "unfinished",
    "no digest",
    "set aside",
)


@dataclass(frozen=True)
class _Unit:
    """One line of the table: something that is usable or not as a whole."""

    name: str
    state: str
    remark: str = ""


def run(options: argparse.Namespace) -> int:
    """Check a run directory and print a line per unit.

    Args:
        options: Parsed command line.

    Returns:
        Exit code: 70 if something is damaged.

    Raises:
        JobError: If the directory is none of ours.
        EnvironmentProblem: If a file may be intact but cannot be read.
    """
    directory: Path = options.run
    if (directory / _CAMPAIGN).exists():
        return _verify_campaign(directory)
    is_run = (directory / _IDENTITY).exists() or (directory / _CHECKPOINTS).is_dir()
    if not is_run and not _is_refinement(directory):
        raise JobError(_no_run_directory(directory))
    units = []
    for unit in _run_units(directory) if is_run else _refinement_units(directory):
        say(f"{unit.state:<11} {unit.name:<40} {unit.remark}".rstrip())
        units.append(unit)
    damaged = [unit.name for unit in units if unit.state == _DAMAGED]
    say(f"damaged: {', '.join(damaged)}" if damaged else "nothing is damaged")
    for line in _prospects(units, is_run=is_run):
        say(line)
    return int(ExitCode.CRASH if damaged else ExitCode.DONE)


def _verify_campaign(directory: Path) -> int:
    """Print a line per file of a campaign's own, and one per member; returns the exit code."""
    identity = read_signed(directory / _CAMPAIGN)
    units = [_unit(_CAMPAIGN, identity if isinstance(identity, Fault) else None)]
    if (directory / MANIFEST).exists():
        records = read_seal(directory)
        units.append(_unit(MANIFEST, records if isinstance(records, Fault) else None))
        if not isinstance(records, Fault):
            units += [_unit(name, file_fault(directory / name, record)) for name, record in records.items()]
    else:
        units.append(_Unit(RUN_MARKER, _UNCHECKED, "sealed once every member has come to an end"))
    for member in sorted(path for path in (directory / "members").glob("*") if path.is_dir()):
        units.append(_member_unit(member))
    damaged = [unit.name for unit in units if unit.state == _DAMAGED]
    for unit in units:
        say(f"{unit.state:<11} {unit.name:<40} {unit.remark}".rstrip())
    say(f"damaged: {', '.join(damaged)}" if damaged else "nothing is damaged")
    if damaged:
        say("`lsr-hpc campaign` with the same job makes damaged members again, and the table")
    return int(ExitCode.CRASH if damaged else ExitCode.DONE)


def _member_unit(directory: Path) -> _Unit:
    name = f"member {directory.name}"
    if RUNNING in directory.name or not (directory / RUN_MARKER).exists():
        return _Unit(name, _UNFINISHED, "at work, or stopped")
    is_run = (directory / _IDENTITY).exists()
    units = _run_units(directory) if is_run else _refinement_units(directory)
    faults = [f"{unit.name} {unit.remark}" for unit in units if unit.state == _DAMAGED]
    return _Unit(name, _DAMAGED, "; ".join(faults)) if faults else _Unit(name, _USABLE)


def _is_refinement(directory: Path) -> bool:
    is_finished = any((directory / name).exists() for name in (RUN_MARKER, MANIFEST, _PREDICTOR))
    return is_finished or (RUNNING in directory.name and (directory / _JOB).is_file())


def _no_run_directory(directory: Path) -> str:
    left = unfinished(directory)
    if left:
        return f"{directory} does not exist yet; of runs into it that did not end there is {left[-1]}"
    what = "is no run directory of lsr_hpc" if directory.is_dir() else "is no directory"
    return f"{directory} {what}: give what was --out of refine or run"


def _refinement_units(directory: Path) -> Iterator[_Unit]:
    """A directory of ``refine``: sealed as a whole at its end."""
    if not (directory / MANIFEST).exists() and not (directory / RUN_MARKER).exists():
        for path in sorted(path for path in directory.iterdir() if path.is_file()):
            yield _Unit(path.name, _UNFINISHED, "of a run that was killed, or is still going on")
        return
    records = read_seal(directory)
    if isinstance(records, Fault):
        yield _Unit(MANIFEST, _DAMAGED, f"{records.text}: refine again to have all files under digests")
        for name in (_JOB, "metrics.jsonl", RUN_MARKER):
            is_there = (directory / name).is_file()
            yield _Unit(name, _UNCHECKED if is_there else _DAMAGED, "" if is_there else "is missing")
    else:
        yield _Unit(MANIFEST, _USABLE)
        for name, record in records.items():
            if not name.startswith(f"{_PREDICTOR}/"):
                yield _unit(name, file_fault(directory / name, record))
    yield _predictor_unit(directory / _PREDICTOR)


def _run_units(directory: Path) -> Iterator[_Unit]:
    """A directory of ``run``: each part under digests of its own."""
    identity = read_signed(directory / _IDENTITY)
    job_sha256 = None if isinstance(identity, Fault) else identity.get("job_sha256")
    yield _unit(_IDENTITY, identity if isinstance(identity, Fault) else None)
    yield _job_unit(directory / _JOB, job_sha256)
    for instance in sorted((directory / _CHECKPOINTS).glob("instance-*")):
        yield from _checkpoint_units(instance, job_sha256)
    for name in (_SPEC, RUN_MARKER, "crash.rank-*.json"):
        for path in sorted((directory / "steps").glob(f"*/*/*/{name}")):
            content = read_signed(path)
            relative = path.relative_to(directory).as_posix()
            yield _unit(relative, content if isinstance(content, Fault) else None)
    for path in sorted(_missing_of_steps(directory)):
        yield _Unit(path.relative_to(directory).as_posix(), _DAMAGED, "is missing")
    yield from _delivered_units(directory)
    if (directory / _PREDICTOR).exists():
        yield _predictor_unit(directory / _PREDICTOR)


def _missing_of_steps(directory: Path) -> Iterator[Path]:
    """Specifications of attempts that were begun, and results of those that are noted as ended well."""
    for attempt in (directory / "steps").glob("*/*/*"):
        if not (attempt / _SPEC).exists() and any(attempt.iterdir()):
            yield attempt / _SPEC
    for event in _events(directory / "metrics.jsonl"):
        if event.get("event") == "step" and event.get("status") in _WITH_RESULT:
            found = [event.get(key) for key in ("instance", "round", "attempt")]
            numbers = [number for number in found if isinstance(number, int)]
            if len(numbers) == len(found):
                path = RunLayout(directory).attempt(*numbers).result
                if not path.exists():
                    yield path


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Events that can be read; they are a hint, and what has no digest is not judged."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def _delivered_units(directory: Path) -> Iterator[_Unit]:
    """What a run delivers at its end; sealed then, and without digests while it goes on."""
    if (directory / MANIFEST).exists():
        records = read_seal(directory)
        yield _unit(MANIFEST, records if isinstance(records, Fault) else None)
        if not isinstance(records, Fault):
            delivered = [name for name in records if not name.startswith(f"{_PREDICTOR}/")]
            yield from (_unit(name, file_fault(directory / name, records[name])) for name in delivered)
        return
    for name in (RUN_MARKER, "metrics.jsonl", "figures", "fields", "network"):
        if (directory / name).exists():
            yield _Unit(name, _UNCHECKED, "sealed at the end of the run: `lsr-hpc resume`")


def _unit(name: str, fault: Fault | None) -> _Unit:
    return _Unit(name, _DAMAGED, fault.text) if fault else _Unit(name, _USABLE)


def _job_unit(path: Path, sha256: str | None) -> _Unit:
    if sha256 is None and path.is_file():
        return _Unit(path.name, _UNCHECKED, f"it was in {_IDENTITY}")
    return _unit(path.name, digest_fault(path, sha256 or ""))


def _checkpoint_units(root: Path, job_sha256: str | None) -> Iterator[_Unit]:
    """Checkpoints of an instance, the newest last."""
    from lsr_hpc.checkpoint.manifest import TEMPORARY, checkpoint_directories, examine, load_manifest
    from lsr_hpc.checkpoint.retention import Stored

    usable: list[tuple[Stored, _Unit]] = []
    for path in sorted(checkpoint_directories(root)):
        name = f"{root.name}/{path.name}"
        try:
            faults, loaded = examine(path), load_manifest(path)
        except JobError as error:
            yield _Unit(name, _DAMAGED, str(error))
            continue
        if faults or isinstance(loaded, Fault):
            yield _Unit(name, _DAMAGED, "; ".join(map(str, faults)))
        elif job_sha256 not in {None, loaded[1].job_sha256}:
            yield _Unit(name, _DAMAGED, "belongs to another job")
        else:
            stored = Stored.of(*loaded)
            remark = f"round {stored.progress[0]}" + ("" if stored.is_finished else ", inside the round")
            usable.append((stored, _Unit(name, _USABLE, remark)))
    for path in sorted(root.glob(f"*{TEMPORARY}*")):
        yield _Unit(f"{root.name}/{path.name}", _UNFINISHED, "being written, or left by a killed process")
    for path in sorted((root / "quarantine").glob("*")):
        # Without another to go on from, being set aside has mended nothing.
        state = _ASIDE if usable else _DAMAGED
        yield _Unit(f"{root.name}/quarantine/{path.name}", state, "damaged, and passed over by the run")
    yield from (unit for _, unit in sorted(usable, key=lambda entry: entry[0].age))


def _predictor_unit(directory: Path) -> _Unit:
    from lsr_hpc.predictor import read_predictor_manifest

    try:
        manifest = read_predictor_manifest(directory)
    except JobError as error:
        return _Unit(_PREDICTOR, _DAMAGED, str(error))
    faults = [digest_fault(directory / name, sha256) for name, sha256 in manifest["files"].items()]
    found = [str(fault) for fault in faults if fault]
    if found:
        return _Unit(_PREDICTOR, _DAMAGED, "; ".join(found))
    return _Unit(_PREDICTOR, _USABLE, f"instances: {manifest['n_instances']}")


def _prospects(units: list[_Unit], *, is_run: bool) -> Iterator[str]:
    """What can still be done with the directory."""
    state = {unit.name: unit.state for unit in units}
    if state.get(_PREDICTOR) == _USABLE:
        yield "the predictor can be used"
    elif state.get(_PREDICTOR) == _DAMAGED:
        yield "predict refuses the damaged instances; --instance I reads one that may be intact"
    elif not is_run:
        yield "a refinement does not resume: start it again; what it had finished is in metrics.jsonl"
    if not is_run:
        return
    if _DAMAGED in {state[_IDENTITY], state[_JOB]}:
        yield f"the run cannot resume: restore {_IDENTITY} and {_JOB} from a copy"
        return
    newest: dict[str, str | None] = {}
    for unit in units:
        instance, _, name = unit.name.partition("/")
        if instance.startswith("instance-") and unit.state != _UNFINISHED:
            newest[instance] = name if unit.state == _USABLE else newest.get(instance)
    for instance, found in newest.items():
        yield f"{instance} {f'resumes from {found}' if found else 'cannot resume: no checkpoint is intact'}"
