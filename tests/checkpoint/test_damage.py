"""Any byte changed, cut off, added or lost is noticed; the checkpoint before it is used."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from lsr_hpc.checkpoint.manifest import examine
from lsr_hpc.checkpoint.store import CheckpointStore
from lsr_hpc.errors import CheckpointReadError, JobError
from lsr_hpc.store import read_manifest, write_manifest
from tests.checkpoint.states import JOB, check

SAMPLES = 300


def spoil(path: Path, rng: random.Random) -> str:
    """Change one file: mostly one bit or byte, sometimes its length."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    how = rng.choice(["bit", "bit", "byte", "byte", "cut", "added"])
    if how == "bit":
        content[at] ^= 1 << rng.randrange(8)
    elif how == "byte":
        content[at] = (content[at] + rng.randrange(1, 256)) % 256
    elif how == "cut":
        del content[at:]
    else:
        content[at:at] = rng.randbytes(rng.choice([1, 8, 4096]))
    path.write_bytes(content)
    return f"{how} at {at} of {path.name}"


def test_every_change_of_any_file_is_noticed_and_the_checkpoint_before_is_used(
    tmp_path, store, fill, comm_self
) -> None:
    fill(store, 0, 1)
    names = sorted(path.name for path in (store.root / "round-0001").iterdir())
    assert len(names) == 5
    rng = random.Random(0)
    for sample in range(SAMPLES):
        copy = CheckpointStore(tmp_path / str(sample), JOB)
        shutil.copytree(store.root, copy.root)
        # Every file in turn.
        what = spoil(copy.root / "round-0001" / names[sample % len(names)], rng)

        found, state = copy.load_newest(comm_self)
        assert found.name == "round-0000", what
        check(state, 0)
        (aside,) = (copy.root / "quarantine").iterdir()
        assert aside.name.startswith("round-0001-"), what
        assert examine(aside), what
        shutil.rmtree(copy.root)


def test_a_changed_space_or_the_case_of_an_exponent_in_the_manifest_is_noticed(
    store, fill, comm_self
) -> None:
    """Both mean the same to a JSON parser, as would anything that comes with them."""
    (written,) = fill(store, 0, scores={0: 1e-9})
    path = store.root / "round-0000" / "MANIFEST.json"
    intact = path.read_text()
    for changed in (intact.replace("1e-09", "1E-09"), intact.replace("\n ", "\n\t", 1), intact + "\n"):
        assert changed != intact
        path.write_text(changed)
        with pytest.raises(CheckpointReadError, match=r"MANIFEST\.json was changed or damaged"):
            store.load(comm_self, written)
    path.write_text(intact)
    check(store.load(comm_self, written), 0)


@pytest.mark.parametrize("how", ["extra", "hidden", "missing", "directory", "link"])
def test_files_too_many_or_too_few_are_damage(how, store, fill, comm_self) -> None:
    fill(store, 0, 1)
    directory = store.root / "round-0001"
    shard = next(directory.glob("part-*"))
    if how in {"extra", "hidden"}:
        (directory / ("more" if how == "extra" else ".nfs0001")).touch()
    elif how == "missing":
        shard.unlink()
    elif how == "directory":
        shard.unlink()
        shard.mkdir()
    else:
        shard.rename(store.root / "shard")
        shard.symlink_to(store.root / "shard")

    assert store.load_newest(comm_self)[0].name == "round-0000"
    assert len(list((store.root / "quarantine").iterdir())) == 1


def test_several_damaged_ones_are_passed_over_and_kept_for_inspection(tmp_path, fill, comm_self) -> None:
    store = CheckpointStore(tmp_path, JOB, keep=4)
    fill(store, 0, 1, 2, 3)
    (tmp_path / "round-0003" / "MANIFEST.json").unlink()
    (tmp_path / "round-0002" / "state.json").write_text("{}")
    with (tmp_path / "round-0001" / "whole.safetensors").open("r+b") as file:
        file.seek(30)
        file.write(b"\xff")

    check(store.load_newest(comm_self)[1], 0)
    assert {path.name for path in (tmp_path / "quarantine").iterdir()} == {
        "round-0003-missing",
        "round-0002-size",
        "round-0001-digest",
    }
    fill(store, 1)
    check(store.load_newest(comm_self)[1], 1)


def test_same_checkpoint_damaged_again_finds_another_place(store, fill, comm_self) -> None:
    fill(store, 0)
    for _ in range(2):
        fill(store, 1)
        (store.root / "round-0001" / "state.json").unlink()
        assert store.load_newest(comm_self)[0].name == "round-0000"
    assert len(list((store.root / "quarantine").iterdir())) == 2


def test_no_silent_fresh_start_when_all_are_damaged_not_even_the_second_time(store, fill, comm_self) -> None:
    fill(store, 0, 1)
    for directory in store.root.glob("round-*"):
        (directory / "state.json").unlink()

    with pytest.raises(CheckpointReadError, match=r"round-0001: state\.json is missing; round-0000: state"):
        store.load_newest(comm_self)
    with pytest.raises(CheckpointReadError, match="quarantine/round-0000-missing"):
        store.load_newest(comm_self)


def test_one_damaged_checkpoint_that_was_asked_for_stays_where_it_is(store, fill, comm_self) -> None:
    (written,) = fill(store, 0)
    (store.root / "round-0000" / "extra").touch()

    with pytest.raises(CheckpointReadError, match="extra does not belong there"):
        store.load(comm_self, written)
    assert (store.root / "round-0000").is_dir()


def test_checkpoint_of_a_later_version_is_no_damage(store, fill, comm_self) -> None:
    fill(store, 0, 1)
    path = store.root / "round-0001" / "MANIFEST.json"
    write_manifest(path, read_manifest(path) | {"schema": 2})

    with pytest.raises(JobError, match="use the lsr_hpc version that wrote it"):
        store.load_newest(comm_self)
    assert (store.root / "round-0001").is_dir()


def test_no_byte_is_parsed_before_all_are_checked(store, fill, comm_self, monkeypatch) -> None:
    """A header that would make a reader allocate 2**60 bytes never reaches it."""
    fill(store, 0, 1)
    shard = next((store.root / "round-0001").glob("part-*"))
    shard.write_bytes((2**60).to_bytes(8, "little") + shard.read_bytes()[8:])

    def never(*_arguments, **_options):
        raise AssertionError("parsed")

    monkeypatch.setattr("safetensors.safe_open", never)
    assert store.load_newest(comm_self)[0].name == "round-0000"
