"""The ``lsr-hpc`` command: one sub-command per thing a user does, exit codes as in :mod:`lsr_hpc.errors`.

Importing this module starts neither MPI nor PETSc nor CUDA, so ``--help`` works on a login node.
"""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Sequence

from lsr_hpc.cli_parser import parse
from lsr_hpc.console import ConsoleHandler, say
from lsr_hpc.errors import ExitCode, LsrError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program name; None takes those of the process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["doctor"]:
        # doctor has arguments of its own and must work when nothing else does.
        from lsr_hpc import doctor

        return doctor.main(words[1:])
    # argparse has no clean way to hand the words behind "--" on, so they are cut off first.
    cut = words.index("--") if "--" in words else len(words)
    options = parse(words[:cut])
    options.petsc_options = words[cut + 1 :]
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", handlers=[ConsoleHandler()]
    )
    if options.command == "refine":
        # Runs inside an MPI world: errors are agreed on or end all ranks, see there.
        from lsr_hpc.commands import refine

        return refine.run(options)
    try:
        return _run_serial(options)
    except Exception as error:
        if options.debug:
            traceback.print_exception(error)
        is_ours = isinstance(error, LsrError)
        cause = str(error) if is_ours else f"{type(error).__name__}: {error} (--debug shows where)"
        print(f"lsr-hpc: {cause}", file=sys.stderr)
        return int(error.exit_code if isinstance(error, LsrError) else ExitCode.CRASH)


def _run_serial(options: argparse.Namespace) -> int:
    if options.command == "problems":
        from lsr_hpc.problems import PROBLEMS

        width = max(map(len, PROBLEMS))
        for problem in PROBLEMS.values():
            say(f"{problem.name:<{width}} {problem.summary}")
        return int(ExitCode.DONE)
    if options.command == "train":
        from lsr_hpc.commands import train

        return train.run(options)
    if options.command == "campaign":
        from lsr_hpc.commands import campaign

        return campaign.run(options)
    if options.command in {"status", "stop", "resume"}:
        from lsr_hpc.commands import campaign

        if campaign.is_campaign(options.run):
            known = {"status": campaign.status, "stop": campaign.stop, "resume": campaign.resume}
            return known[options.command](options)
    if options.command == "submit":
        from lsr_hpc.commands import submit

        return submit.submit(options)
    if options.command in {"run", "resume"}:
        from lsr_hpc.commands import run

        return run.run(options) if options.command == "run" else run.resume(options)
    if options.command == "status":
        from lsr_hpc.commands import status

        return status.run(options)
    if options.command == "logs":
        from lsr_hpc.commands import logs

        return logs.run(options)
    if options.command == "stop":
        from lsr_hpc.commands import stop

        return stop.run(options)
    if options.command == "verify":
        from lsr_hpc.commands import verify

        return verify.run(options)
    if options.command in {"init", "schema"}:
        from lsr_hpc.commands import init

        return init.init(options) if options.command == "init" else init.schema(options)
    if options.command == "report":
        from lsr_hpc.commands import report

        return report.run(options)
    from lsr_hpc.commands import predict

    return predict.run(options)


if __name__ == "__main__":
    sys.exit(main())
