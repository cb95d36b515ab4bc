"""Every command in README and docs can be given: what it names is there, and a test runs it."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import _SUMMARIES
from lsr_hpc.cli import main
from lsr_hpc.cli_parser import parse
from lsr_hpc.errors import JobError
from lsr_hpc.job import load_job
from tests.documented_commands import REPOSITORY, Command, documented_commands

COMMANDS = documented_commands()
# Words that stand for something of the reader's.
PLACEHOLDERS = re.compile(r"[A-Z]+(?:\.\w+)?|runs/.*|mine\.py.*|[xy]\.(?:npy|csv)|NAME|compared")
# Which test runs a command, or which target of the Makefile; the first that fits counts.
COVERED = {
    r"lsr-hpc (refine|run|campaign|submit) .*jobs/": "here, with --dry-run",
    r"lsr-hpc (init|schema|problems)\b": "here",
    r"lsr-hpc doctor": "tests/test_doctor.py",
    r"lsr-hpc predict": "tests/mpi/test_command_line.py",
    r"lsr-hpc verify": "tests/test_verify.py",
    r"lsr-hpc report": "tests/report/test_report.py",
    r"lsr-hpc train": "tests/test_training.py",
    r"lsr-hpc (status|stop|resume|logs|run)": "tests/pipeline/test_run.py",
    r"lsr-hpc campaign": "tests/campaign/test_run.py",
    r"lsr-hpc refine": "tests/mpi/test_command_line.py",
    r"lsr-hpc submit|sbatch|scancel|scontrol|srun": "tests/slurm/test_submit.py",
    r"python (regressor)\.py": "tests/test_bring_your_own.py",
    r"python -m benchmarks(\.cost_model)?\b": "tests/test_benchmarks.py",
    r"python -m tests\.torture": "make torture",
    r"python -m tests\.slurm\.chain": "make chain",
    r"python -m tests\.errors": "tests/errors/test_errors.py",
    r"python -m pytest tests/": "make test",
    r"make ": "tests/test_setup.py",
    # Other installations: a page of its own says what was tried, and when.
    r"(pip|conda|apt-get) |python3 -m venv|export ": "docs/install.md",
}


def covered_by(command: Command) -> str | None:
    text = command.text.replace(".venv/bin/", "")
    return next((test for pattern, test in COVERED.items() if re.search(pattern, text)), None)


def alternatives(text: str) -> list[str]:
    """`--set a=b|c` is two commands; `[--preset small]` may be left out."""
    text = re.sub(r"\[(--[^\]]*)\]", r"\1", text)
    choices = [part.split("|") if "=" in part and "'" not in part else [part] for part in text.split(" ")]
    heads = [[part[0], *(f"{part[0].rpartition('=')[0]}={c}" for c in part[1:])] for part in choices]
    longest = max(len(part) for part in heads)
    return [" ".join(part[min(i, len(part) - 1)] for part in heads) for i in range(longest)]


def lsr_words(command: Command) -> list[str] | None:
    """Words behind ``lsr-hpc``, whoever starts it; None for another command."""
    words = command.words
    names = [i for i, word in enumerate(words) if Path(word).name == "lsr-hpc"]
    return words[names[0] + 1 :] if names and words[0] != "conda" else None


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c.document}:{c.line}: {c.text[:60]}")
def test_documented_command_names_what_is_there(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    if not command.is_fragment:
        assert covered_by(command) is not None, f"no test runs this: {command.text}"
    for text in alternatives(command.text):
        one = Command(text, command.document, command.line)
        words = lsr_words(one)
        if command.is_fragment:
            check_options(one.words)
        elif words is None:
            check_files(one)
        elif len([word for word in words if word != "-v"]) > 1:
            # The name of a command alone is talked about.
            check_lsr(words, capsys)


def check_options(words: list[str]) -> None:
    """Options that are shown alone exist for some command; what they set is a setting with such values."""
    help_texts = (REPOSITORY / "lsr_hpc" / "cli_parser.py").read_text()
    presets = "".join(path.read_text() for path in (REPOSITORY / "jobs").glob("*.toml"))
    for option, value in zip(words[::2], words[1::2], strict=True):
        assert f'"{option}"' in help_texts, option
        if option == "--preset":
            assert f"[preset.{value}" in presets or f"\n[preset.{value}" in presets
        if option == "--set" and "..." not in value:
            said = ""
            try:
                load_job(REPOSITORY / "jobs" / "antiderivative.toml", [value])
            except JobError as error:
                said = str(error)
            # It may need another setting beside it, but there is such a key, and such a value.
            assert not re.search(r"unknown key|use one of|is expected|is missing", said), value


def check_lsr(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Options exist, and job, preset and settings are sound."""
    cut = words.index("--") if "--" in words else len(words)
    try:
        options = parse(words[:cut]) if words[0] != "doctor" else None
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    job = getattr(options, "job", None)
    if job is not None and not PLACEHOLDERS.fullmatch(str(job)):
        # Values that the reader is to choose.
        overrides = [o for o in options.overrides if "..." not in o]
        load_job(REPOSITORY / job, overrides, options.preset)


def check_files(command: Command) -> None:
    words = command.words
    program = Path(words[0]).name if words else "export"
    if program == "make":
        targets = {word for word in words[1:] if "=" not in word}
        known = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
        assert targets <= known
    if "benchmarks" in words:
        name = words[words.index("benchmarks") + 1]
        assert name in {*_SUMMARIES, "NAME"}
    outputs = {
        word for option, word in itertools.pairwise(words) if option in {"--json", "--markdown", "--png"}
    }
    for word in words[1:]:
        if word not in outputs and re.fullmatch(
            r"(?:jobs|tests|slurm|scripts|docs)/[\w./-]+|[\w-]+\.(?:yml|toml)", word
        ):
            assert (REPOSITORY / word).exists(), word
        if re.fullmatch(r"tests(?:\.\w+)+|benchmarks\.\w+", word):
            path = REPOSITORY / word.replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_tests_that_run_commands_are_there() -> None:
    targets = (REPOSITORY / "Makefile").read_text()
    for test in COVERED.values():
        if test.startswith("make "):
            assert f"\n{test.removeprefix('make ')}:" in targets
        elif not test.startswith("here"):
            assert (REPOSITORY / test).is_file()


def dry_runs() -> list[list[str]]:
    """The commands on shipped jobs; what is planned for one job, preset and settings is planned once."""
    found: dict[tuple[str, ...], list[str]] = {}
    for command in COMMANDS:
        words = planned(lsr_words(command) or [])
        is_choice = "|" in command.text or "..." in command.text
        if not is_choice and words[:1] and words[0] in {"refine", "run", "campaign", "submit"}:
            if any(word.startswith("jobs/") for word in words):
                found.setdefault(tuple(sorted(words)), words)
    return list(found.values())


def planned(words: list[str]) -> list[str]:
    """A command without where it writes, how much it says, and options of PETSc."""
    words = words[: words.index("--")] if "--" in words else words
    places = {i + n for i, word in enumerate(words) if word == "--out" for n in (0, 1)}
    return [w for i, w in enumerate(words) if i not in places and w not in {"--dry-run", "-v"}]


@pytest.mark.usefixtures("quiet_process")
@pytest.mark.parametrize("words", dry_runs(), ids=" ".join)
def test_command_on_a_shipped_job_plans_its_work(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absolute = [str(REPOSITORY / w) if w.startswith("jobs/") else w for w in words]
    monkeypatch.chdir(tmp_path)
    assert main([*absolute, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "# plan" in printed or "#SBATCH" in printed
    assert not list(tmp_path.iterdir())


def test_small_commands_do_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "poisson"]) == 0
    assert load_job("poisson.toml").problem.function == "poisson"
    assert main(["init", "mine.py:build"]) == 0
    assert Path("mine.toml").is_file()
    capsys.readouterr()
    assert main(["schema"]) == 0
    assert '"$schema"' in capsys.readouterr().out
    assert main(["problems"]) == 0
    assert "antiderivative" in capsys.readouterr().out


COST_MODELS = [c.words[3:] for c in COMMANDS if c.words[1:3] == ["-m", "benchmarks.cost_model"]]


@pytest.mark.parametrize("arguments", COST_MODELS, ids=" ".join)
def test_cost_model_answers_at_once(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cost_model", *arguments],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_commands_are_found_in_every_place() -> None:
    texts = {command.text for command in COMMANDS}
    assert len(texts) > 100
    places = itertools.chain(
        ["make demo", "lsr-hpc schema", "python -m benchmarks oneshot"],
        ["lsr-hpc refine jobs/function_fit.toml --preset k4_small"],
    )
    assert set(places) <= texts
