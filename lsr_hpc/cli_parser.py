"""What every command of ``lsr-hpc`` takes, its help, and what is said of words that it does not take."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lsr_hpc import __version__
from lsr_hpc.errors import ExitCode

__all__ = ["parse"]

_JOB_HELP = "job file (TOML); the ready ones are in jobs/"
_RUN_HELP = "run directory of lsr-hpc run"
_NO_CHOICE = "argument COMMAND: invalid choice: "


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read a command line; one that is wrong ends the process with exit code 2 and a sentence.

    Args:
        words: Arguments without the program name.

    Returns:
        The command and its arguments.
    """
    parser, commands = _parser()
    options, left = parser.parse_known_args(words)
    if left:
        commands[options.command].error(_unknown_word(left[0], options.command, commands))
    return options


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        if message.startswith(_NO_CHOICE):
            word, _, known = message.removeprefix(_NO_CHOICE).partition(" (choose from ")
            names = [name.strip(" '") for name in known.rstrip(")").split(",")]
            message = f"there is no command {word}{_near(word.strip(chr(39)), names)}"
        self.exit(int(ExitCode.BAD_INPUT), f"lsr-hpc: {message}; see `{self.prog} --help`\n")


def _unknown_word(word: str, command: str, commands: dict[str, _Parser]) -> str:
    name = word.partition("=")[0]
    if not name.startswith("-"):
        return f"{command} does not know what to do with {word!r}"
    options = {other: list(parser._option_string_actions) for other, parser in commands.items()}
    having = [other for other, known in options.items() if name in known]
    hint = f", which is an option of {', '.join(having)}" if having else _near(name, options[command])
    return f"{command} has no option {name}{hint}"


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="lsr-hpc",
        description="Linearized Subspace Refinement of trained neural networks on MPI, PETSc and SLEPc.",
        epilog="exit codes: 0 done, 2 wrong input (nothing was written), 70 crash, failed accuracy check or "
        "damage found by verify, 75 stopped in good order (lsr-hpc resume goes on), 76 broken environment "
        "(see lsr-hpc doctor) or full disk",
    )
    parser.add_argument("--version", action="version", version=f"lsr-hpc {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, summary: str, example: str, more: str = "") -> _Parser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example: {example}\n{more}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    refine = command(
        "refine",
        "Refine a trained network inside the MPI world this is started in.",
        "mpiexec -n 2 lsr-hpc refine jobs/antiderivative.toml --out runs/anti",
        "Words after -- go to PETSc and SLEPc (prefix lsr_): ... refine JOB -- -lsr_svd_type trlanczos",
    )
    _add_job_arguments(refine)
    _add_loudness(refine)
    refine.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="run directory (default: runs/NAME of the job); an earlier run there is kept as DIR.previous",
    )
    refine.add_argument(
        "--dry-run", action="store_true", help="print the resolved job and the plan, do nothing"
    )

    run = command(
        "run",
        "Refine in rounds under a controller that starts the MPI ranks itself, and goes on after any stop.",
        "lsr-hpc run jobs/antiderivative.toml --ranks 2 --out runs/anti-rounds",
        "Not to be started by mpiexec. Typed again with the same job, it goes on where it was.\n"
        "Ctrl-C, SIGTERM and SIGUSR1 stop it in good order (exit code 75), a second Ctrl-C or SIGTERM at "
        "once.",
    )
    _add_job_arguments(run)
    _add_loudness(run)
    run.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/NAME of the job)")
    _add_ranks(run)
    run.add_argument(
        "--dry-run", action="store_true", help="print the resolved job and how steps would be started"
    )

    resume = command(
        "resume",
        "Go on with a run that was stopped or killed, or has failed, with the job it was begun with.",
        "lsr-hpc resume runs/anti-rounds",
    )
    resume.add_argument("run", type=Path, metavar="DIR", help=_RUN_HELP)
    _add_ranks(resume)
    _add_loudness(resume)

    resume.add_argument(
        "--submit", action="store_true", help="submit the run's job again, where it was begun by submit"
    )

    campaign = command(
        "campaign",
        "Carry out a job for many members, which differ in the settings of its section [campaign].",
        "lsr-hpc campaign jobs/antiderivative_campaign.toml --preset small --out runs/many",
        "Not to be started by mpiexec. Typed again, it does what is missing or has failed; values added to\n"
        "an axis make new members. `status`, `stop`, `resume` and `verify` know DIR; DIR/members has a run\n"
        "directory for each member.",
    )
    _add_job_arguments(campaign)
    campaign.add_argument(
        "--out", type=Path, metavar="DIR", help="directory of the campaign (default: runs/NAME of the job)"
    )
    campaign.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="MPI ranks of a member (default: campaign.ranks_per_member of the job, else run.ranks)",
    )
    campaign.add_argument(
        "--jobs",
        type=_positive,
        metavar="N",
        help="carry members out by up to N jobs of SLURM as section [slurm] says, submitted from here",
    )
    campaign.add_argument(
        "--part",
        metavar="I/N",
        help="only members whose number leaves the remainder I when divided by N: a task of a job array",
    )
    campaign.add_argument(
        "--collect", action="store_true", help="write the table from what is there, do nothing else"
    )
    campaign.add_argument(
        "--dry-run", action="store_true", help="print the resolved job, the members and the plan, do nothing"
    )

    submit = command(
        "submit",
        "Refine as a job of SLURM, in rounds if the job file has a section [iterate]: write a script from "
        "its section [slurm], and submit that.",
        "lsr-hpc submit jobs/poisson_iterative.toml --set slurm.nodes=4 --out runs/poisson",
        "DIR.slurm gets the script, the job and the logs. `status`, `logs`, `stop` and `resume DIR --submit` "
        "know the job.",
    )
    _add_job_arguments(submit)
    submit.add_argument(
        "--out", type=Path, metavar="DIR", help="run directory (default: runs/NAME of the job)"
    )
    submit.add_argument(
        "--site",
        metavar="NAME",
        help="profile ~/.config/lsr-hpc/sites/NAME.toml: sections [slurm] and [run], below those of the job",
    )
    submit.add_argument("--dry-run", action="store_true", help="print the script, do nothing")

    status = command(
        "status",
        "Show how far a run is, from its files, and what SLURM says of its job.",
        "lsr-hpc status runs/anti-rounds --json",
        "ETA is what the rounds that are left take at most; stop rules may end them earlier.",
    )
    status.add_argument("run", type=Path, metavar="DIR", help=_RUN_HELP)
    status.add_argument("--json", action="store_true", help="print a JSON object")
    status.add_argument(
        "--progress",
        action="store_true",
        help="print one number, which grows whenever something was gained that a kill cannot take away",
    )

    logs = command(
        "logs",
        "Print the log of a run: that of its newest job, otherwise that of its controllers.",
        "lsr-hpc logs runs/anti-rounds -f",
    )
    logs.add_argument("run", type=Path, metavar="DIR", help=_RUN_HELP)
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run or its job is over")
    logs.add_argument("--ranks", action="store_true", help="what the ranks of the newest step print instead")

    stop = command(
        "stop",
        "Ask a run to stop in good order: its steps write a checkpoint and yield.",
        "lsr-hpc stop runs/anti-rounds",
        "lsr-hpc resume DIR goes on.",
    )
    stop.add_argument("run", type=Path, metavar="DIR", help=_RUN_HELP)

    train = command(
        "train",
        "Make the trained start of a shipped problem again.",
        "lsr-hpc train jobs/antiderivative.toml --out runs/weights/antiderivative.safetensors",
    )
    _add_job_arguments(train)
    train.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="weights to write, ending in .safetensors (default: runs/weights/NAME.safetensors); "
        "a record FILE with suffix .json goes beside it",
    )

    predict = command(
        "predict",
        "Evaluate a refined predictor at given points; needs neither MPI nor PETSc.",
        "lsr-hpc predict runs/anti --input x.npy --output y.npy --instance 3",
    )
    predict.add_argument("run", type=Path, metavar="DIR", help="run directory of refine")
    predict.add_argument(
        "--input",
        type=Path,
        required=True,
        metavar="X.npy",
        help="points, shape (n, d) or (n,): .npy, .npz (one array, or one named x), .csv (a point per line)",
    )
    predict.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="Y.npy",
        help="values, shape (n, C); (instances, n, C) for all instances of a family. Ends in .npy, .npz "
        "(points x and values y) or .csv (points and values side by side, one instance)",
    )
    predict.add_argument(
        "--batch",
        type=_positive,
        default=65536,
        metavar="N",
        help="points evaluated at once (default: 65536)",
    )
    predict.add_argument("--instance", type=int, metavar="I", help="one instance of a family (default: all)")

    verify = command(
        "verify",
        "Check every byte of a run directory against its digests, and say what is usable.",
        "lsr-hpc verify runs/anti",
        "Exit code 0: all intact; 70: something is damaged, what is still usable is said in the last lines.",
    )
    verify.add_argument("run", type=Path, metavar="DIR", help="directory of refine or run")

    report = command(
        "report",
        "Show finished runs, or a campaign, as a page of figures and tables; needs neither MPI nor PETSc.",
        "lsr-hpc report runs/anti",
        "The page needs no network and no script. Several are compared: ... report A B C --out OUT",
    )
    report.add_argument(
        "runs", type=Path, nargs="+", metavar="DIR", help="directory of refine or run, or one of campaign"
    )
    report.add_argument(
        "--out",
        type=Path,
        metavar="OUT",
        help="directory for report.html and the figures (default: DIR itself)",
    )

    init = command(
        "init",
        "Write a job file to begin with: every setting with its meaning and its default.",
        "lsr-hpc init poisson",
    )
    init.add_argument(
        "problem", metavar="PROBLEM", help="one of lsr-hpc problems, FILE.py:FUNCTION or MODULE:FUNCTION"
    )
    init.add_argument("--out", type=Path, metavar="FILE", help="job file to write (default: PROBLEM.toml)")
    command(
        "schema",
        "Print the JSON Schema of job files, for editors.",
        "lsr-hpc schema > job.schema.json",
    )

    doctor = command(
        "doctor",
        "Check the installation, in words and with a remedy for each fault.",
        "lsr-hpc doctor --json",
    )
    doctor.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    command("problems", "List the shipped problems.", "lsr-hpc problems")
    return parser, commands.choices


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _add_ranks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="MPI ranks of an instance (default: run.ranks of the job)"
    )


def _add_loudness(parser: argparse.ArgumentParser) -> None:
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print warnings and what came out")
    loudness.add_argument(
        "-v", "--verbose", action="store_true", help="print the phases of every instance, and what is decided"
    )


def _add_job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB", help=_JOB_HELP)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="override one value of the job file; may be repeated",
    )
    parser.add_argument("--preset", metavar="NAME", help="use the job's [preset.NAME], e.g. small")
