"""Written on one number of ranks, read on another; what fails on one rank is raised on all."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest

from lsr_hpc.checkpoint.layout import Piece, plan_layout
from tests.checkpoint.states import check

COMMAND = [sys.executable, "-m", "tests.checkpoint.program"]


def run(mpiexec, n: int, *words: object) -> str:
    done = mpiexec(n, *COMMAND, *map(str, words), limit_s=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.mpi
@pytest.mark.parametrize("counts", [(1, 3, 2), (3, 5, 1), (5, 2, 3)], ids=str)
def test_state_travels_over_changing_numbers_of_ranks(counts, mpiexec, store) -> None:
    """On five ranks one of them owns no row."""
    for round_, (writers, readers) in enumerate(pairwise(counts)):
        run(mpiexec, writers, store.root, "write", round_)
        run(mpiexec, readers, store.root, "read", round_)
    names = {path.name for path in (store.root / "round-0001").glob("part-0-*")}
    assert len(names) == counts[1]


@pytest.mark.mpi
@pytest.mark.parametrize("mpi_rank", [0, 1, 2])
def test_full_disk_on_one_rank_is_raised_on_all(mpi_rank, mpiexec, store, fill, comm_self) -> None:
    fill(store, 0)
    output = run(mpiexec, 3, store.root, "full", 1, mpi_rank)

    lines = output.splitlines()
    assert [line.split(":")[0] for line in lines] == ["rank 0", "rank 1", "rank 2"]
    for line in lines:
        assert f"MPI rank {mpi_rank}: checkpoint" in line
        assert "No space left on device; free some of the disk, then resume" in line
        assert line.endswith("raised on all: True")
    assert {path.name for path in store.root.iterdir()} == {"round-0000", "latest"}
    check(store.load_newest(comm_self)[1], 0)


def cut(*ranges: tuple[int, int], shape: tuple[int, ...] = (3, 10)) -> list[dict[str, Piece]]:
    return [{"x": Piece("float64", shape, r)} for r in ranges]


@pytest.mark.parametrize(
    ("by_rank", "expected"),
    [
        (cut((0, 4), (5, 10)), "MPI rank 1 starts at 5 in place of 4"),
        (cut((0, 6), (4, 10)), "MPI rank 1 starts at 4 in place of 6"),
        (cut((0, 4), (4, 9)), "end at 9, the array at 10"),
        (cut((5, 10), (0, 5)), "MPI rank 0 starts at 5"),
        ([*cut((0, 4)), {}], "some MPI ranks only"),
        ([{}, *cut((0, 4))], "some MPI ranks only"),
        ([*cut((0, 4)), *cut((4, 10), shape=(2, 10))], "on MPI rank 1"),
        ([*cut((0, 4)), {"x": Piece("float32", (3, 10), (4, 10))}], "float32"),
        ([*cut((0, 10)), {"x": Piece("float64", (3, 10), None)}], "None"),
    ],
)
def test_ranges_that_do_not_tile_the_array_are_refused(by_rank, expected) -> None:
    for mpi_rank in range(2):
        with pytest.raises(ValueError, match=f"'x'.*{expected}"):
            plan_layout(by_rank, mpi_rank)


def test_arrays_cut_alike_share_files_and_no_two_ranks_write_one() -> None:
    """The same range of two differently cut arrays lies on different ranks."""
    by_rank = [
        {"a": Piece("float64", (8,), a), "b": Piece("float64", (2, 8), a), "c": Piece("int64", (8,), c)}
        for a, c in [((0, 4), (0, 0)), ((4, 8), (0, 4)), ((8, 8), (4, 8))]
    ]
    own = [plan_layout(by_rank, mpi_rank).own for mpi_rank in range(3)]

    assert [sorted(names) for names in own[0].values()] == [["a", "b"]]
    assert [sorted(names) for names in own[1].values()] == [["a", "b"], ["c"]]
    assert [sorted(names) for names in own[2].values()] == [["c"]]
    files = [file for layout in own for file in layout]
    assert len(files) == len(set(files)) == 4
