"""The program that every MPI rank of a step runs: ``python -m mpi4py -m lsr_hpc.pipeline.worker SPEC``.

Every orderly end is exit 0, and the result file says which; anything else means that the step crashed.
The numerical libraries are imported by the body, once the world is known to be what was asked for.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lsr_hpc.errors import EnvironmentProblem, ExitCode, JobError, LsrError
from lsr_hpc.events import Event, listening
from lsr_hpc.phase_record import PhaseRecorder, append_timeline
from lsr_hpc.pipeline.heartbeat import Heartbeat, StopFlag
from lsr_hpc.pipeline.layout import AttemptFiles, RunLayout
from lsr_hpc.pipeline.lease import Lease, take
from lsr_hpc.pipeline.spec import StepResult, StepSpec, read_spec, write_result
from lsr_hpc.progress import LiveProgress
from lsr_hpc.publish import publish_file
from lsr_hpc.store import write_manifest
from lsr_hpc.traffic import counted, traffic_of

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["in_words", "main"]

Body = Callable[["MPI.Comm", StepSpec, StopFlag], StepResult]


def main(argv: Sequence[str]) -> int:
    """Do one attempt at a step.

    Args:
        argv: Path of the specification.

    Returns:
        0; a crash never returns, it ends all ranks.

    Collective: all ranks of COMM_WORLD.
    """
    flag = StopFlag()
    flag.listen()
    from mpi4py import MPI

    comm = counted(MPI.COMM_WORLD)
    files = AttemptFiles(Path(argv[0]).parent)
    try:
        spec = read_spec(files.spec)
        _check_world(comm, spec)
        lease = take(files) if comm.rank == 0 else None
        if comm.rank == 0 and lease is None:
            print(f"{files.root} is, or was, in the hands of another program: nothing done", flush=True)
        if comm.bcast(lease is not None, root=0):
            _work(comm, spec, files, lease, flag)
    except (Exception, SystemExit) as error:
        _end_all_ranks(comm, files, error)
    return 0


def _check_world(comm: MPI.Comm, spec: StepSpec) -> None:
    if comm.size != spec.world_size:
        raise EnvironmentProblem(
            f"the step was to run on {spec.world_size} MPI ranks and finds itself in a world of {comm.size}: "
            "the launcher belongs to another MPI than mpi4py, or was given another number (`lsr-hpc doctor` "
            "tries two ranks)"
        )


def _work(comm: MPI.Comm, spec: StepSpec, files: AttemptFiles, lease: Lease | None, flag: StopFlag) -> None:
    """Run the body and publish its result; ``lease`` is the first rank's."""
    body = _find_body(spec.body)
    if lease is None:
        _run_body(body, comm, spec, flag)
        return
    stop_files = (files.stop, files.revoked, RunLayout(Path(spec.run_directory)).stop)
    with Heartbeat(files.heartbeat, flag, stop_files):
        result, phases = _run_body(body, comm, spec, flag)
    try:
        append_timeline(files.timeline, phases)
    except OSError as error:
        print(f"no timeline: {error}", flush=True)
    if lease.is_valid():
        write_result(files.result, result)
    else:
        print(f"{files.root} was given up meanwhile: its result is not published", flush=True)


def _find_body(name: str) -> Body:
    module, _, function = name.partition(":")
    try:
        found: Body = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise JobError(f"run.body = {name!r} cannot be imported: {error}") from error
    return found


def _run_body(
    body: Body, comm: MPI.Comm, spec: StepSpec, flag: StopFlag
) -> tuple[StepResult, list[list[Event]]]:
    """The result, and on the first rank the phases of all."""
    recorder = PhaseRecorder(traffic_of(comm))
    try:
        with listening(recorder), listening(LiveProgress()) if comm.rank == 0 else nullcontext():
            result = body(comm, spec, flag)
    except Exception as error:
        if not getattr(error, "on_every_rank", False):
            raise
        code, cause = in_words(error)
        result = StepResult(status="failed", round=spec.round, message=cause, exit_code=int(code))
    # No result before every rank has come this far: the last act of one of them may still fail.
    phases = comm.gather(recorder.take(), root=0)
    comm.Barrier()
    return result, phases or []


def in_words(error: BaseException) -> tuple[ExitCode, str]:
    """What ended a step.

    Args:
        error: The exception.

    Returns:
        Exit code and cause.
    """
    if isinstance(error, LsrError):
        return error.exit_code, str(error)
    if isinstance(error, SystemExit):
        return ExitCode.CRASH, f"sys.exit({error.code!r}) was called: raise an exception instead"
    return ExitCode.CRASH, f"{type(error).__name__}: {error}"


def _end_all_ranks(comm: MPI.Comm, files: AttemptFiles, error: BaseException) -> None:
    """Leave the cause in a file and in the output, and end all ranks, which may be waiting for this one."""
    code, cause = in_words(error)
    phase = getattr(error, "lsr_phase", None)
    where = f"MPI rank {comm.rank} failed" + (f" in phase '{phase}'" if phase else "")
    crash = {
        "mpi_rank": comm.rank,
        "phase": phase,
        "message": f"{where}: {cause}",
        "exit_code": int(code),
        "time": time.time(),
        "traceback": "".join(traceback.format_exception(error)),
    }
    print(f"{where}: {cause}; all ranks are ended", file=sys.stderr, flush=True)
    try:
        with publish_file(files.crash(comm.rank)) as temporary:
            write_manifest(temporary, crash)
    except OSError as problem:
        print(f"no crash file: {problem}", file=sys.stderr, flush=True)
    # A moment for the message to travel before the launcher tears the pipes down.
    time.sleep(0.2)
    comm.Abort(int(ExitCode.CRASH))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
