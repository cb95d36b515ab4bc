"""Files and directories appear whole or not at all, and nothing that is not ours is ever lost."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lsr_hpc.errors import JobError
from lsr_hpc.publish import (
    PendingDirectory,
    check_file,
    publish_directory,
    publish_file,
    unfinished,
)
from lsr_hpc.store import write_tensors

MARKER = "result.json"


def publish(place: Path, text: str = "new") -> None:
    with publish_directory(place, MARKER) as target:
        (target / MARKER).write_text(text)


def content(directory: Path) -> dict[str, str]:
    """Every file below a directory with its text."""
    return {str(p.relative_to(directory)): p.read_text() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_earlier_directory_of_ours_is_kept_once(tmp_path: Path) -> None:
    for text in ("first", "second", "third"):
        publish(tmp_path / "run", text)

    assert content(tmp_path) == {f"run/{MARKER}": "third", f"run.previous/{MARKER}": "second"}


@pytest.mark.parametrize("taken", ["run", "run.previous"])
@pytest.mark.parametrize("kind", ["directory", "file", "link"])
def test_what_is_not_ours_is_never_replaced(taken: str, kind: str, tmp_path: Path) -> None:
    publish(tmp_path / "run") if taken != "run" else None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.tex").write_text("precious")
    if kind == "directory":
        elsewhere.rename(tmp_path / taken)
    elif kind == "file":
        (tmp_path / taken).write_text("precious")
    else:
        (tmp_path / taken).symlink_to(elsewhere)
    before = content(tmp_path)

    with pytest.raises(JobError, match=r"not a run of lsr-hpc|not of lsr-hpc|is a file"):
        PendingDirectory(tmp_path / "run", MARKER)
    assert content(tmp_path) == before


def test_empty_directory_is_replaced_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run.previous").mkdir()
    (tmp_path / "run.previous" / "thesis.tex").write_text("precious")
    publish(tmp_path / "run")

    assert content(tmp_path) == {f"run/{MARKER}": "new", "run.previous/thesis.tex": "precious"}


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (".", "current directory"),
        ("..", "current directory"),
        ("/", "current directory"),
        ("a/..", "current directory"),
        ("file", "is a file"),
        ("file/x", "file is a file"),
        ("file/x/y", "cannot be used|file is a file"),
        ("loop", "loop"),
        ("x" * 250, "longer than"),
        ("a\0b", "null byte"),
        ("/proc/x", "cannot be made|no permission"),
        ("/dev/null", "is a file"),
        ("/dev/shm", "mount point"),
        ("run.previous", "earlier runs"),
    ],
)
def test_place_that_cannot_be_is_refused_before_any_work(place: str, expected: str, in_tmp: Path) -> None:
    (in_tmp / "file").touch()
    (in_tmp / "loop").symlink_to("loop")
    before = sorted(in_tmp.iterdir())

    with pytest.raises(JobError, match=expected):
        PendingDirectory(Path(place), MARKER)
    assert sorted(in_tmp.iterdir()) == before


def test_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "big")
    publish(tmp_path / "run", "first")
    publish(tmp_path / "run", "second")

    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "big" / MARKER).read_text() == "second"
    assert (tmp_path / "big.previous" / MARKER).read_text() == "first"


def test_failure_leaves_nothing_not_even_parents(tmp_path: Path) -> None:
    def fail() -> None:
        with publish_directory(tmp_path / "a" / "b" / "run", MARKER):
            assert len(unfinished(tmp_path / "a" / "b" / "run")) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_unfinished_runs_of_the_same_place_are_found(tmp_path: Path) -> None:
    pending = [PendingDirectory(tmp_path / name, MARKER) for name in ("run", "run", "run2", "[r]un")]

    assert unfinished(tmp_path / "run") == sorted(p.path for p in pending[:2])
    assert unfinished(tmp_path / "[r]un") == [pending[3].path]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(umask: int, tmp_path: Path) -> None:
    earlier = os.umask(umask)
    try:
        with publish_directory(tmp_path / "run", MARKER) as target:
            (target / MARKER).touch()
            write_tensors(target / "a.safetensors", {"a": torch.ones(2)})
        assert os.umask(umask) == umask
    finally:
        os.umask(earlier)

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(tmp_path / "run") == 0o777 & ~umask
    assert {mode(p) for p in (tmp_path / "run").iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("place", [".", "dir.npy", "y.txt", "y", "file/y.npy", "pipe.npy"])
def test_place_of_a_file_that_cannot_be_is_refused(place: str, in_tmp: Path) -> None:
    (in_tmp / "dir.npy").mkdir()
    (in_tmp / "file").touch()
    os.mkfifo(in_tmp / "pipe.npy")
    with pytest.raises(JobError, match=f"--output {place}"):
        check_file(Path(place), ".npy", "--output")


def test_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "y.npy").write_text("old")

    def fail() -> None:
        with publish_file(tmp_path / "y.npy") as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert content(tmp_path) == {"y.npy": "old"}
    with publish_file(tmp_path / "y.npy") as temporary:
        temporary.write_text("whole")
    assert content(tmp_path) == {"y.npy": "whole"}
