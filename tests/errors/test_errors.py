"""Bad input of every kind: one message with a remedy, the exit code of the contract, and nothing written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lsr_hpc.cli import main
from tests.errors.case import FAMILY, JOB, Case, functions
from tests.errors.catalogue import AREAS, DOCUMENT, as_markdown
from tests.mpi.conftest import mpi_environment

CASES = [(area, case) for area, cases in AREAS.items() for case in cases]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Makes a directory on a disk that is full or may not be written."""
    mounted: list[Path] = []

    def make(kind: str) -> None:
        place = tmp_path / kind
        place.mkdir()
        if kind == "locked" and os.geteuid():
            place.chmod(0o500)
            return
        options = {"full": "size=64k", "locked": "ro"}[kind]
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no right to mount a disk: {done.stderr.strip()}")
        mounted.append(place)
        if kind == "full":
            with pytest.raises(OSError, match="No space"):
                (place / "filler").write_bytes(bytes(2**17))

    yield make
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def in_this_process(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as end:  # argparse leaves so
        return int(end.code or 0)


def tree(home: Path) -> dict[str, bytes]:
    """Every file with its content; Python's caches are Python's."""
    paths = [path for path in home.rglob("*") if "__pycache__" not in path.parts]
    return {str(p.relative_to(home)): p.read_bytes() if p.is_file() else b"" for p in paths}


def pattern(says: str, home: Path) -> str:
    """A message of the catalogue as a regular expression."""
    literal = re.escape(says).replace("HERE", re.escape(str(home)))
    return literal.replace(re.escape("..."), ".*")


def without_log(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not re.match(r"\d\d:\d\d:\d\d ", line))


@pytest.mark.usefixtures("quiet_process")
@pytest.mark.parametrize("case", [pytest.param(c, id=f"{area}: {c.what}") for area, c in CASES])
def test_bad_input_is_answered_as_documented(
    case: Case,
    tmp_path: Path,
    disk: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if case.run:
        Path("job.toml").write_text(JOB)
        Path("mine.py").write_text(functions("return problem()" if case.run == "run" else FAMILY))
        assert in_this_process(["refine", "job.toml", "--out", "run", "-q"]) == 0
    Path("job.toml").write_text(case.job)
    Path("mine.py").write_text(functions(case.build))
    if case.given is not None:
        case.given(tmp_path)
    if case.disk:
        disk(case.disk)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value.replace("HERE", str(tmp_path)))
    before = tree(tmp_path)
    capsys.readouterr()
    words = shlex.split(case.argv)
    if case.apart:
        command = [sys.executable, "-m", "lsr_hpc.cli", *words]
        done = subprocess.run(command, env=mpi_environment(), capture_output=True, text=True, timeout=120)
        code, printed, said = done.returncode, done.stdout, done.stderr
    else:
        code = in_this_process(words)
        printed, said = capsys.readouterr()

    assert code == case.code, printed + said
    assert "Traceback" not in printed + said
    if case.printed:
        assert re.search(rf"^{pattern(case.says, tmp_path)}$", printed, flags=re.MULTILINE), printed
    else:
        assert re.fullmatch(
            f"lsr-hpc: {pattern(case.says, tmp_path)}\n", without_log(said), flags=re.DOTALL
        ), said
    assert tree(tmp_path) == before


def test_document_lists_the_cases_as_they_are_tested() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == as_markdown(), "python -m tests.errors writes it anew"


def test_every_message_says_what_to_do_and_none_twice() -> None:
    inputs = [(area, case.what) for area, case in CASES]
    assert len(set(inputs)) == len(inputs) > 100
    for _, case in CASES:
        # What is wrong, and behind it what to do.
        is_whole = re.search(r"\w.*[:;,] *\S", case.says, flags=re.DOTALL) and len(case.says.split()) >= 6
        assert is_whole or case.printed, case.what


@pytest.mark.usefixtures("quiet_process")
def test_traceback_is_there_for_those_who_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert in_this_process(["--debug", "status", "nowhere"]) == 2
    assert "Traceback" in capsys.readouterr().err
