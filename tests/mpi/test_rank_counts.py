"""The answer does not depend on the number of MPI ranks, and an error on one rank ends them all."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.mpi
PROGRAM = Path(__file__).parent / "program.py"

AGREEING = [
    "krylov",
    "krylov-torch",
    "empty-rank-krylov-torch",
    "krylov-narrow",
    "svd+krylov",
    "empty-rank-krylov",
    "svd",
    "svd-trlanczos",
    "svd-cross",
    "svd-cholesky",
    "randomized",
    "dual",
    "empty-rank-dual",
    "random",
    "lsqr",
    "cgls",
    "empty-rank-svd",
    "empty-rank-randomized",
    "empty-rank-lsqr",
    "empty-rank-nearly-square",
    "empty-rank-nearly-square-full",
    "own-validation",
    "resolve",
    "resolve-logarithm",
    "noise",
]
RANK_COUNTS = (1, 2, 3, 5)


def refine(mpiexec, n: int, directory: Path, *cases: str) -> dict[str, dict[str, np.ndarray]]:
    directory.mkdir(exist_ok=True)
    done = mpiexec(n, sys.executable, PROGRAM, directory, *cases)
    assert done.returncode == 0, done.stderr
    results = {}
    for case in cases:
        with np.load(directory / f"{case}.npz") as arrays:
            results[case] = dict(arrays)
    return results


@pytest.fixture(scope="module")
def by_rank_count(mpiexec, tmp_path_factory):
    """Every case on every number of ranks; one launch per number."""
    base = tmp_path_factory.mktemp("ranks")
    return {n: refine(mpiexec, n, base / str(n), *AGREEING, "krylov-float32") for n in RANK_COUNTS}


@pytest.mark.parametrize("case", AGREEING)
def test_predictors_agree_on_any_number_of_ranks(by_rank_count, case):
    one = by_rank_count[1][case]
    scale = np.linalg.norm(one["field"])
    before, after, _ = one["residual"]
    for n in RANK_COUNTS[1:]:
        other = by_rank_count[n][case]
        assert np.linalg.norm(other["field"] - one["field"]) <= 1e-10 * scale
        assert other["unequal_ranks"] == 0
        # Where the fit ends at rounding, the held-out figures of the last ranks are rounding too.
        if after > 1e-9 * before:
            assert other["rank"] == one["rank"]
        assert np.abs(other["residual"] - one["residual"]).max() <= 1e-9 * before


@pytest.mark.parametrize("case", ["krylov", "empty-rank-krylov"])
@pytest.mark.parametrize("n", RANK_COUNTS)
def test_panels_of_slepc_and_of_torch_give_one_predictor(by_rank_count, n, case):
    slepc, tensors = by_rank_count[n][case], by_rank_count[n][case + "-torch"]
    assert np.linalg.norm(slepc["field"] - tensors["field"]) <= 1e-10 * np.linalg.norm(slepc["field"])


@pytest.mark.parametrize("n", RANK_COUNTS)
def test_a_basis_drawn_in_float32_loses_no_accuracy(by_rank_count, n):
    single, double = by_rank_count[n]["krylov-float32"], by_rank_count[n]["krylov"]
    assert single["error"][1] <= 2 * double["error"][1]
    assert not np.array_equal(single["delta"], double["delta"])


def test_same_number_of_ranks_is_bit_identical(mpiexec, by_rank_count, tmp_path):
    again = refine(mpiexec, 3, tmp_path / "again", "svd", "randomized")
    for case, result in again.items():
        np.testing.assert_array_equal(result["delta"], by_rank_count[3][case]["delta"])


def test_refinement_lowers_the_error_and_the_training_residual_never_rises_with_the_rank(by_rank_count):
    out = by_rank_count[2]["svd"]
    before, after = out["error"]
    assert after < 1e-3 * before
    train = out["train"]
    assert (np.diff(train) <= 1e-12 * train[0]).all()
    # The problem is linear in u: the linear residual is the true one, to the rounding of a jvp.
    _, linear, true = out["residual"]
    assert true == pytest.approx(linear, rel=1e-2)


@pytest.mark.parametrize("n", [2, 3])
def test_exception_on_one_rank_ends_all_with_one_message(mpiexec, n, tmp_path):
    started = time.monotonic()
    done = mpiexec(n, sys.executable, PROGRAM, tmp_path, "one-rank-raises", limit_s=60)
    assert time.monotonic() - started < 20
    assert done.returncode == 70
    ours = [line for line in done.stderr.splitlines() if line.startswith("lsr-hpc:")]
    assert ours == [f"lsr-hpc: MPI rank {n - 1} failed in phase 'basis': ZeroDivisionError: deliberate; "
                    "all ranks are ended"]  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_nan_in_the_data_of_one_rank_is_one_message_on_all(mpiexec, tmp_path):
    done = mpiexec(3, sys.executable, PROGRAM, tmp_path, "nan-in-data", limit_s=60)
    assert done.returncode == 2
    ours = [line for line in done.stderr.splitlines() if line.startswith("lsr-hpc:")]
    assert len(ours) == 1
    assert "residual block 'equation' is nan at point" in ours[0]
    assert "MPI rank" in ours[0]


def test_rank_zero_wins_where_nothing_can_be_gained(by_rank_count):
    out = by_rank_count[2]["noise"]
    assert out["rank"] == 0
    assert not out["delta"].any()


@pytest.mark.parametrize("case", ["resolve", "resolve-logarithm"])
def test_nonlinear_residual_is_solved_again_and_falls_with_the_rank(by_rank_count, case):
    out = by_rank_count[2][case]
    assert out["resolve_steps"] > 1
    assert out["residual"][2] < 1e-2 * out["residual"][0]
    assert (np.diff(out["train"]) <= 0).all()


def test_own_validation_rows_choose_the_rank_and_stay_out_of_the_fit(by_rank_count):
    out = by_rank_count[2]["own-validation"]
    assert out["rank"] > 0
    assert out["error"][1] < 1e-6 * out["error"][0]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("infinite-derivative", "residual block 'root' has the parameter derivative"),
        ("dead", "changes with any parameter"),
        ("exit-called", "MPI rank 2: your code called sys.exit(0)"),
        ("more-ranks-than-parameters", "2 parameters may change, too few for 3 MPI ranks"),
    ],
)
def test_wrong_input_is_one_message_on_all_ranks(mpiexec, tmp_path, case, words):
    done = mpiexec(3, sys.executable, PROGRAM, tmp_path, case, limit_s=60)
    assert done.returncode == 2, done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("lsr-hpc:")]
    assert len(ours) == 1
    assert words in ours[0]
