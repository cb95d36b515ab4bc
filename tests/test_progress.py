"""Progress: one live line on a terminal, plain lines in a log, nothing with ``-q``."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lsr_hpc.progress
from lsr_hpc import refine
from lsr_hpc.events import emit, listening
from lsr_hpc.phase_record import PhaseRecorder
from lsr_hpc.progress import LiveProgress
from tests.test_refine import problem, settings

REPOSITORY = Path(__file__).parents[1]
LINE = re.compile(r"basis  sweep (\d+) of (\d+)  \S+ rows/s  ETA \d+ s  residual \S+  \d+ MiB")
SMALL = ("--preset", "small", "--set", "subspace.rank=60")


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    def strftime(self, form: str) -> str:
        return "12:00:00"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lsr_hpc.progress, "time", made)
    return made


def test_line_follows_the_work(clock: Clock) -> None:
    progress = LiveProgress(every_s=1e9)
    with listening(progress):
        emit("instance", number=2, of=3)
        emit("work", sweeps=4, rows=4 * 5 * 200)
        emit("residual", value=0.25)
        emit("phase began", phase="basis")
        clock.now += 2
        emit("product", columns=5, rows=200, is_held_out=False)
    # A quarter of the rows in 2 s: 1000 rows in 2 s, and 6 s are left.
    expected = "instance 2 of 3  basis  sweep 1 of 4  5.0e+02 rows/s  ETA 6 s  residual 2.50e-01"
    assert progress.line().startswith(expected)


def test_steps_of_an_alignment_are_counted_and_the_next_phase_begins_anew(clock: Clock) -> None:
    progress = LiveProgress(every_s=1e9)
    with listening(progress):
        emit("phase began", phase="align")
        clock.now += 3
        emit("step", done=1, of=4, residual=1e-3)
        assert progress.line().startswith("align  step 1 of 4  ETA 9 s  residual 1.00e-03")
        emit("phase began", phase="network")
    assert progress.line().startswith("network  residual 1.00e-03")


def test_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with listening(LiveProgress()):
        emit("work", sweeps=100, rows=100)
        emit("phase began", phase="basis")
        for _ in range(100):
            clock.now += 1
            emit("product", columns=1, rows=1, is_held_out=False)
    lines = capsys.readouterr().err.splitlines()
    assert [re.search(r"sweep (\d+) of 100", line)[1] for line in lines] == ["30", "60", "90"]
    assert all(line.startswith("12:00:00 basis") for line in lines)


def test_a_refinement_tells_its_sweeps_and_its_phases(capsys: pytest.CaptureFixture[str]) -> None:
    recorder = PhaseRecorder()
    with listening(LiveProgress(every_s=0.0)), listening(recorder):
        refine(problem(), settings=settings())
    sweeps = [tuple(map(int, m.groups())) for m in LINE.finditer(capsys.readouterr().err)]
    # Krylov: 30 columns of J and as many of its transpose, in blocks of 3.
    assert sweeps[0] == (1, 20)
    assert sorted(sweeps) == sweeps
    assert len({i for i, _ in sweeps}) >= 15
    phases = [event["phase"] for event in recorder.take()]
    assert phases == ["prepare", "prepare", "basis", "jacobian", "solve", "resolve", "check"]
    assert recorder.take() == []


def on_terminal(*words: str, out: Path) -> tuple[str, str]:
    """Standard output, and what a terminal gets that standard error is."""
    mine, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "lsr_hpc.cli", "refine", "jobs/function_fit.toml", *words, "--out", str(out)],
        cwd=REPOSITORY,
        env=os.environ | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(mine, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    output = process.communicate(timeout=60)[0]
    os.close(mine)
    assert process.returncode == 0, output
    return output, seen.decode()


def test_terminal_has_one_live_line_that_is_erased_before_others(tmp_path: Path) -> None:
    output, seen = on_terminal(*SMALL, out=tmp_path / "run")
    assert "\x1b" not in output
    assert LINE.search(seen)
    # Every line of the log begins where the live line was erased, or behind another line.
    for line in re.findall(r"(.{4})\d\d:\d\d:\d\d INFO", seen, flags=re.DOTALL):
        assert line.endswith(("\x1b[K", "\n"))
    assert seen.endswith(("\x1b[K", "\n"))


def test_quiet_prints_what_came_out_alone(tmp_path: Path) -> None:
    output, seen = on_terminal("-q", *SMALL, out=tmp_path / "run")
    assert seen == ""
    assert len(output.splitlines()) == 2
    assert "smaller" in output
