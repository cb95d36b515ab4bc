"""Choosing the rank: the grid, the smallest rank that is as good as the best, and refusal."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from lsr_hpc.least_squares.reduced import reduce_rows
from lsr_hpc.least_squares.selection import ScanEntry, choose_rank, scan_grid, scan_ranks

EPS = float(np.finfo(np.float64).eps)


def scan_of(*held_out: float | None, ranks: list[int] | None = None) -> list[ScanEntry]:
    """A scan with the given held-out norms at ranks 0, 1, 2, ..."""
    return [
        ScanEntry(rank, np.zeros(rank), 1.0, held)
        for rank, held in zip(ranks or range(len(held_out)), held_out, strict=True)
    ]


@pytest.mark.parametrize("rank_max", [0, 1, 2, 5, 31, 32, 33, 100, 250, 2000])
def test_grid_runs_from_zero_to_the_largest_rank(rank_max: int) -> None:
    grid = scan_grid(rank_max)

    assert grid[0] == 0
    assert grid[-1] == rank_max
    assert all(a < b for a, b in pairwise(grid))
    assert all(type(rank) is int for rank in grid)


@pytest.mark.parametrize("rank_max", [1, 5, 31, 32])
def test_grid_leaves_no_small_rank_out(rank_max: int) -> None:
    assert scan_grid(rank_max) == list(range(rank_max + 1))


@pytest.mark.parametrize("rank_max", [100, 1000, 5000])
def test_grid_of_large_ranks_is_even_with_a_geometric_start(rank_max: int) -> None:
    grid = scan_grid(rank_max, points=20)

    step = rank_max / 20
    assert max(b - a for a, b in pairwise(grid)) <= step + 1
    assert {2**i for i in range(20) if 2**i < step} <= set(grid)
    assert len(grid) <= 20 + 1 + 20


def test_grid_does_not_move_with_the_number_of_directions_found() -> None:
    assert scan_grid(53, wanted=60) == [0, 1, *range(2, 53, 2), 53]
    assert set(scan_grid(54, wanted=60)) - set(scan_grid(53, wanted=60)) == {54}


def test_smallest_rank_wins_among_equals() -> None:
    assert choose_rank(scan_of(1.0, 0.5, 0.1, 0.1, 0.1), 100) == 2


@pytest.mark.parametrize("n_held_out", [50, 200, 5000])
def test_margin_is_half_a_standard_error_of_the_held_out_norm(n_held_out: int) -> None:
    # The norm of n Gaussians has relative standard error 1 / sqrt(2 n).
    half = 0.5 / np.sqrt(2 * n_held_out)

    assert choose_rank(scan_of(1.0, 0.5, 0.1 * (1 + 0.9 * half), 0.1), n_held_out) == 2
    assert choose_rank(scan_of(1.0, 0.5, 0.1 * (1 + 1.1 * half), 0.1), n_held_out) == 3


def test_best_rank_wins_where_more_rank_does_harm() -> None:
    assert choose_rank(scan_of(1.0, 0.5, 0.1, 0.4, 3.0), 1000) == 2


def test_refinement_is_refused_where_every_rank_does_harm() -> None:
    assert choose_rank(scan_of(1.0, 1.001, 1.2, 5.0), 1000) == 0


def test_refinement_is_refused_where_nothing_is_gained() -> None:
    assert choose_rank(scan_of(1.0, 1.0, 1.0), 1000) == 0


def test_a_small_gain_is_not_refused() -> None:
    # Rank 0 lies within the margin of the best, but it is not the best.
    assert choose_rank(scan_of(1.0, 0.9999, 0.9998), 10) == 1


@pytest.mark.parametrize(("share", "expected"), [(0.9, 0), (1.1, 1)])
def test_a_gain_that_can_be_chance_is_refused(share: float, expected: int) -> None:
    # h_0^2 - h_1^2 as 1.64 times 2 h_1 ||d|| / sqrt(n), n = 400 and ||d|| = 0.3, less and more.
    held, change, n = 1.0, 0.3, 400
    before = float(np.sqrt(held**2 + share * 1.64 * 2 * held * change / np.sqrt(n)))
    scan = [ScanEntry(0, np.zeros(0), 1.0, before, 0.0), ScanEntry(1, np.zeros(1), 1.0, held, change)]
    assert choose_rank(scan, n) == expected


def test_directions_that_explain_nothing_are_refused_nineteen_times_in_twenty(comm_self: Any) -> None:
    refused = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        train = reduce_rows(comm_self, rng.standard_normal((1, 500)), rng.standard_normal(500), 500)
        held = reduce_rows(comm_self, rng.standard_normal((1, 200)), rng.standard_normal(200), 200)
        refused += choose_rank(scan_ranks(train, held, [0, 1]), 200) == 0
    # 380 expected, standard deviation 4.4.
    assert 362 <= refused <= 398


def test_a_perfect_fit_is_taken_on_a_single_held_out_row(comm_self: Any) -> None:
    rng = np.random.default_rng(0)
    av, held_av = rng.standard_normal((2, 30)), rng.standard_normal((2, 1))
    c = np.array([1.0, -2.0])
    scan = scan_ranks(
        reduce_rows(comm_self, av, -c @ av, 30), reduce_rows(comm_self, held_av, -c @ held_av, 1), [0, 2]
    )
    assert choose_rank(scan, 1) == 2


def test_without_held_out_rows_the_largest_rank_is_taken() -> None:
    assert choose_rank(scan_of(None, None, None, ranks=[0, 4, 9]), 0) == 9


def test_ranks_of_the_grid_are_returned_not_positions() -> None:
    assert choose_rank(scan_of(1.0, 0.5, 0.1, 0.3, ranks=[0, 8, 16, 24]), 1000) == 16


def test_scan_reports_norms_over_both_sets_of_rows(comm_self: Any) -> None:
    rng = np.random.default_rng(0)
    av, r0 = rng.standard_normal((6, 60)), rng.standard_normal(60)
    held_av, h0 = rng.standard_normal((6, 25)), rng.standard_normal(25)
    train, held = reduce_rows(comm_self, av, r0, 60), reduce_rows(comm_self, held_av, h0, 25)
    scan = scan_ranks(train, held, [0, 2, 6])

    assert [e.rank for e in scan] == [0, 2, 6]
    for entry in scan:
        assert entry.c.shape == (entry.rank,)
        fitted = np.linalg.norm(r0 + entry.c @ av[: entry.rank])
        judged = np.linalg.norm(h0 + entry.c @ held_av[: entry.rank])
        assert entry.train == pytest.approx(fitted, rel=100 * EPS)
        assert entry.held_out == pytest.approx(judged, rel=100 * EPS)
        changed = np.linalg.norm(entry.c @ held_av[: entry.rank])
        assert entry.held_change == pytest.approx(changed, rel=100 * EPS)


def test_scan_without_held_out_rows_says_so(comm_self: Any) -> None:
    rng = np.random.default_rng(1)
    scan = scan_ranks(
        reduce_rows(comm_self, rng.standard_normal((3, 20)), rng.standard_normal(20), 20), None, [0, 3]
    )

    assert [e.held_out for e in scan] == [None, None]


def test_rank_found_on_noisy_data_is_that_of_the_signal(comm_self: Any) -> None:
    # Five directions carry signal, twenty more fit noise; the held-out norm is smallest near five.
    rng = np.random.default_rng(2)
    signal = np.concatenate([[3.0, -2.0, 2.0, 1.5, -1.0], np.zeros(20)])
    av, held_av = rng.standard_normal((25, 200)), rng.standard_normal((25, 2000))
    r0 = -(signal @ av) + 0.1 * rng.standard_normal(200)
    h0 = -(signal @ held_av) + 0.1 * rng.standard_normal(2000)
    scan = scan_ranks(
        reduce_rows(comm_self, av, r0, 200), reduce_rows(comm_self, held_av, h0, 2000), list(range(26))
    )

    assert choose_rank(scan, 2000) == 5


def test_refinement_of_pure_noise_is_refused(comm_self: Any) -> None:
    # Coefficients fitted to noise raise the held-out norm: by about rank / n relative, here 10 %.
    rng = np.random.default_rng(3)
    train = reduce_rows(comm_self, rng.standard_normal((20, 100)), rng.standard_normal(100), 100)
    held = reduce_rows(comm_self, rng.standard_normal((20, 4000)), rng.standard_normal(4000), 4000)

    assert choose_rank(scan_ranks(train, held, [0, 5, 10, 20]), 4000) == 0
