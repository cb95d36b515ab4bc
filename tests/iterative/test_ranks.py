"""Rounds on several MPI ranks: equal states, interruption, restoring on other numbers, divergence."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.iterative import program
from tests.mpi.conftest import Run, mpiexec  # noqa: F401

pytestmark = pytest.mark.mpi
Array = NDArray[np.float64]

CASES = (
    "tangent",
    "pseudo-time",
    "lbfgs",
    "adam",
    "empty-rank",
    "empty-rank-lbfgs",
    "refused",
    "some-parameters",
)
STOPPED = ("tangent", "lbfgs", "adam")
RESTORED = (2, 7)
# Every start costs seconds of each rank, and all cases on every number of them would take minutes.
ON_RANKS = {
    2: CASES,
    3: ("tangent", "lbfgs", "some-parameters"),
    5: ("empty-rank", "empty-rank-lbfgs"),
}


@pytest.fixture(scope="module")
def results(mpiexec: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """What the program writes on every number of ranks; on two of them first, which make the checkpoints."""
    directory = tmp_path_factory.mktemp("rounds")
    for n, actions in {
        2: [*ON_RANKS[2], "diverge", "interrupt"],
        3: [*ON_RANKS[3], "diverge", "restore"],
        5: ON_RANKS[5],
    }.items():
        done = mpiexec(n, sys.executable, "-m", "tests.iterative.program", directory, *actions)
        assert done.returncode == 0, done.stderr
    # One rank is this process.
    program.main(directory, *CASES, "restore")
    return directory


def read(path: Path) -> dict[str, Array]:
    with np.load(path) as arrays:
        return dict(arrays)


def assert_close(one: dict[str, Array], other: dict[str, Array], case: str) -> None:
    """Equal but for the order of sums over the ranks."""
    assert one.keys() == other.keys()
    assert one["unequal"] == other["unequal"] == 0
    np.testing.assert_array_equal(one["ranks"], other["ranks"])
    # L-BFGS multiplies the rounding of its first gradient by about ten in every two steps.
    tolerance = 1e-7 if case == "lbfgs" else 1e-9
    # The correction itself may be large along directions that the field hardly feels.
    for name in ("theta", "network.theta", "predictor.theta", "field", "figures"):
        assert np.linalg.norm(one[name] - other[name]) <= tolerance * np.linalg.norm(other[name]), name


@pytest.mark.parametrize(("n_ranks", "case"), [(n, case) for n, cases in ON_RANKS.items() for case in cases])
def test_rounds_agree_on_any_number_of_ranks(n_ranks: int, case: str, results: Path) -> None:
    several, alone = (read(results / f"final-{n}-{case}.npz") for n in (n_ranks, 1))
    assert_close(several, alone, case)


@pytest.mark.parametrize("case", STOPPED)
@pytest.mark.parametrize("n_ranks", [1, 3])
def test_checkpoint_of_two_ranks_goes_on_on_another_number(n_ranks: int, case: str, results: Path) -> None:
    whole = read(results / f"final-2-{case}.npz")
    for boundary in RESTORED:
        assert_close(read(results / f"restored-{n_ranks}-{case}-{boundary}.npz"), whole, case)


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_divergence_is_raised_on_every_rank(n_ranks: int, results: Path) -> None:
    said = json.loads((results / f"diverged-{n_ranks}.json").read_text())
    assert len(said) == n_ranks
    assert len(set(said)) == 1
    assert said[0].startswith("AccuracyError: the alignment diverged after 50 steps")
    assert said[0].endswith("raised on all: True")
