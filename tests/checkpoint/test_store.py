"""Checkpoints come back bit for bit, stay few, and are never silently replaced."""

from __future__ import annotations

import errno
import logging
import os
import stat

import numpy as np
import pytest
from safetensors.numpy import load_file

from lsr_hpc.checkpoint import files
from lsr_hpc.checkpoint.manifest import CheckpointId
from lsr_hpc.checkpoint.retention import Stored, superfluous
from lsr_hpc.checkpoint.store import CheckpointStore
from lsr_hpc.errors import CheckpointReadError, CheckpointWriteError, JobError, LsrError
from lsr_hpc.snapshot import Cut, Snapshot
from tests.checkpoint.states import JOB, check, panel, plain, snapshot


def entries(store: CheckpointStore) -> set[str]:
    return {path.name for path in store.root.iterdir()}


def test_round_trip(store, fill, comm_self) -> None:
    (written,) = fill(store, 3)
    found, state = store.load_newest(comm_self)

    assert found == written
    check(state, 3)
    check(store.load(comm_self, written), 3)
    assert store.names() == ["round-0003"]


def test_files_are_safetensors_for_everyone(store, fill) -> None:
    fill(store, 2)
    arrays = {}
    for path in (store.root / "round-0002").glob("*.safetensors"):
        arrays |= load_file(path)

    np.testing.assert_array_equal(arrays["panel"], panel(2))
    np.testing.assert_array_equal(arrays["theta"], plain(2))
    assert arrays["step size"] == 0.2


def test_views_that_are_not_contiguous_and_empty_arrays(store, comm_self) -> None:
    a = np.arange(24.0).reshape(4, 6)
    arrays = {
        "plain": a.T,
        "cut": Cut(a[:, ::2], 0, 3),
        "none": a[:0],
        "empty": Cut(a[:, :0], 0, 0),
    }
    store.save(comm_self, "x", Snapshot(arrays=arrays), progress=(0, 0), score=None)
    _, state = store.load_newest(comm_self)

    np.testing.assert_array_equal(state.whole("plain"), a.T)
    np.testing.assert_array_equal(state.whole("cut"), a[:, ::2])
    assert state.whole("none").shape == (0, 6)
    assert state.whole("empty").shape == (4, 0)
    with pytest.raises(KeyError, match="no array 'theta'"):
        state.whole("theta")
    with pytest.raises(ValueError, match="outside"):
        state.part("cut", 1, 4)


def test_there_never_was_any(store, comm_self) -> None:
    assert store.load_newest(comm_self) is None
    assert store.names() == []
    store.purge()
    assert not store.root.exists()


def test_only_the_owner_may_look_inside(store, fill) -> None:
    fill(store, 0)

    for path in (store.root.parent, store.root, store.root / "round-0000"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in (store.root / "round-0000").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_last_two_and_the_best_are_kept(store, fill) -> None:
    fill(store, *range(6), scores={0: 3.0, 1: 0.5, 2: 0.7, 3: 0.5, 4: 9.0, 5: 8.0})

    assert store.names() == ["round-0005", "round-0004", "round-0001"]
    assert entries(store) == {*store.names(), "latest"}


def test_state_inside_a_round_gives_way_to_a_newer_one_and_to_its_round(store, fill, comm_self) -> None:
    def part(step: int) -> CheckpointId:
        return store.save(
            comm_self, "round-0001-part", snapshot(comm_self, step), progress=(1, step), score=None
        )

    fill(store, 0)
    identifiers = [part(2), part(5), part(7)]

    assert len(set(identifiers)) == 3
    assert store.names() == [identifiers[-1].name, "round-0000"]
    check(store.load_newest(comm_self)[1], 7)
    fill(store, 1)
    assert store.names() == ["round-0001", "round-0000"]


def test_round_that_is_done_again_replaces_nothing_and_comes_first(store, fill, comm_self) -> None:
    first = fill(store, 0, 1)[-1]
    again = store.save(comm_self, "round-0001", snapshot(comm_self, 8), progress=(1, 9), score=None)

    assert again.name != first.name
    check(store.load_newest(comm_self)[1], 8)
    fill(store, 2)
    assert store.names() == ["round-0002", again.name]


def stored(name: str, progress: tuple[int, int], score: float | None = None) -> Stored:
    return Stored(CheckpointId(name, ""), progress, not name.split(".")[0].endswith("-part"), score)


def test_what_was_just_written_stays_even_if_something_newer_is_there() -> None:
    all_of_them = [stored("a", (1, 0)), stored("b", (2, 0)), stored("c", (3, 0)), stored("d-part", (1, 5))]

    assert superfluous(all_of_them, 2, CheckpointId("d-part", "")) == [all_of_them[0]]
    assert superfluous(all_of_them, 2, CheckpointId("c", "")) == [all_of_them[0], all_of_them[3]]


def test_tenth_of_a_name_is_newer_than_the_ninth() -> None:
    ninth, tenth = stored("a.9", (1, 0)), stored("a.10", (1, 0))

    assert superfluous([tenth, ninth], 2, tenth.identifier) == [ninth]


def test_old_checkpoint_that_cannot_be_deleted_does_not_end_the_run(store, fill, monkeypatch, caplog) -> None:
    def fail(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("lsr_hpc.checkpoint.writing.shutil.rmtree", fail)
    with caplog.at_level(logging.WARNING):
        fill(store, 0, 1, 2)
    assert "could not be deleted" in caplog.text
    assert store.names() == ["round-0002", "round-0001"]
    monkeypatch.undo()
    store.purge()
    assert entries(store) == {"round-0002", "round-0001", "latest"}


def test_checkpoints_of_another_job_are_refused(store, fill, comm_self) -> None:
    (written,) = fill(store, 0)
    other = CheckpointStore(store.root, "cd" * 32)

    with pytest.raises(JobError, match="another job"):
        other.load_newest(comm_self)
    with pytest.raises(JobError, match="another job"):
        other.load(comm_self, written)
    check(store.load_newest(comm_self)[1], 0)


def test_another_checkpoint_of_the_same_name_is_refused(store, fill, comm_self) -> None:
    fill(store, 0)
    with pytest.raises(JobError, match="another one of the same name"):
        store.load(comm_self, CheckpointId("round-0000", "0" * 64))
    with pytest.raises(CheckpointReadError, match=r"MANIFEST\.json is missing"):
        store.load(comm_self, CheckpointId("round-0007", "0" * 64))


@pytest.mark.parametrize("hint", ["round-0000\n", "round-9999\n", "../../..\n", "", "\0\xff", None])
def test_nothing_depends_on_the_hint(hint, store, fill, comm_self) -> None:
    fill(store, 0, 1)
    latest = store.root / "latest"
    assert latest.read_text() == "round-0001\n"
    latest.unlink() if hint is None else latest.write_text(hint)

    assert store.load_newest(comm_self)[0].name == "round-0001"


def test_hint_alone_is_no_fresh_start(store, fill, comm_self) -> None:
    fill(store, 0)
    (store.root / "round-0000").rename(store.root.parent / "elsewhere")

    with pytest.raises(CheckpointReadError, match="latest names a checkpoint, but none is there"):
        store.load_newest(comm_self)


@pytest.mark.parametrize(
    ("name", "score"),
    [("", None), ("a/b", None), ("..", None), ("a.2", None), ("quarantine", None), ("latest", None),
     ("a\n", None), ("round-0001-part", 1.0), ("a", float("nan"))],
)  # fmt: skip
def test_names_and_scores_that_cannot_be(name, score, store, comm_self) -> None:
    with pytest.raises(LsrError, match=r"name|score"):
        store.save(comm_self, name, snapshot(comm_self, 0), progress=(0, 0), score=score)
    assert not store.root.exists()


def test_one_to_fall_back_to_is_always_kept(store) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        CheckpointStore(store.root, JOB, keep=1)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
@pytest.mark.parametrize("victim", ["whole.safetensors", "state.json", "part-0"])
def test_error_of_writing_leaves_what_was_there(code, victim, store, fill, comm_self, monkeypatch) -> None:
    fill(store, 0)
    before = entries(store)
    real = os.open

    def refuse(path, *arguments, **options):
        if victim in str(path) and arguments[0] & os.O_WRONLY:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr("lsr_hpc.checkpoint.files.os.open", refuse)
    with pytest.raises(CheckpointWriteError, match="then resume") as caught:
        fill(store, 1)
    monkeypatch.undo()
    assert caught.value.on_every_rank
    assert entries(store) == before
    check(store.load_newest(comm_self)[1], 0)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("failures", [2, 3])
def test_passing_errors_are_met_by_writing_anew(
    code, failures, store, fill, comm_self, monkeypatch, caplog
) -> None:
    fill(store, 0)
    pauses: list[float] = []
    left = [failures]
    real = os.fsync

    def flaky(descriptor: int) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr("lsr_hpc.checkpoint.files.os.fsync", flaky)
    monkeypatch.setattr("lsr_hpc.integrity.time.sleep", pauses.append)
    if failures == 3:
        with pytest.raises(CheckpointWriteError, match=os.strerror(code)):
            fill(store, 1)
    else:
        fill(store, 1)
    monkeypatch.undo()
    assert len(pauses) == 2
    assert pauses[1] > pauses[0]
    assert "trying again" in caplog.text
    check(store.load_newest(comm_self)[1], 0 if failures == 3 else 1)


def test_bytes_that_did_not_arrive_are_noticed_before_the_rename(store, fill, comm_self, monkeypatch) -> None:
    """A file system that loses the end of a file without telling."""
    fill(store, 0)

    def truncate(step: str) -> None:
        if step == "open state.json":
            (path,) = store.root.glob("round-0001.tmp-*/whole.safetensors")
            os.truncate(path, 40)

    monkeypatch.setattr(files, "at", truncate)
    with pytest.raises(CheckpointWriteError, match=r"40 of .* bytes arrived"):
        fill(store, 1)
    assert entries(store) == {"round-0000", "latest"}


def test_stale_temporaries_are_invisible_until_purged(store, fill, comm_self) -> None:
    fill(store, 0)
    (store.root / "round-0001.tmp-01234567").mkdir()
    (store.root / "round-0001.tmp-01234567" / "whole.safetensors").write_bytes(b"half")
    (store.root / "latest.tmp-01234567").write_text("x")

    assert store.load_newest(comm_self)[0].name == "round-0000"
    store.purge()
    assert entries(store) == {"round-0000", "latest"}
