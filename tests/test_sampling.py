"""Random draws are functions of (seed, stream, global index): no distribution of rows changes one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from lsr_hpc.sampling import gaussian_rows, held_out_mask, uniform_rows

Draw = Callable[[int, int, int, int, int], NDArray[np.float64]]
DRAWS: list[Draw] = [gaussian_rows, uniform_rows]
GAUSSIAN_7_2 = [[-0.05105917845519238, 0.9585033934034385], [0.9153995669626779, -0.37949709961919925]]
UNIFORM_7_2 = [[0.49065524280342765, 0.19010013809307447], [0.4839143518547532, 0.4053586902597155]]
# Rows are drawn in blocks of 4096; cuts fall before, on and behind the edges.
CUTS = [0, 1, 7, 4095, 4096, 4097, 8192, 9000, 12_289]


@pytest.mark.parametrize("draw", DRAWS)
def test_rows_do_not_depend_on_how_they_are_cut(draw: Draw) -> None:
    whole = draw(5, 1, 0, CUTS[-1], 3)

    np.testing.assert_array_equal(np.vstack([draw(5, 1, lo, hi, 3) for lo, hi in pairwise(CUTS)]), whole)


@pytest.mark.parametrize("draw", DRAWS)
def test_columns_do_not_depend_on_their_number(draw: Draw) -> None:
    np.testing.assert_array_equal(draw(5, 1, 100, 200, 7)[:, :3], draw(5, 1, 100, 200, 3))


@pytest.mark.parametrize("draw", DRAWS)
def test_seed_and_stream_make_independent_numbers(draw: Draw) -> None:
    draws = [draw(seed, stream, 0, 2000, 2).ravel(order="F") for seed in (0, 1, 2**40) for stream in (0, 1)]

    # 4000 numbers each: correlations of independent draws have standard deviation 1 / sqrt(4000) = 0.016.
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlations).max() < 5 / np.sqrt(4000)


@pytest.mark.parametrize("draw", DRAWS)
def test_columns_and_blocks_of_rows_are_independent(draw: Draw) -> None:
    a = draw(3, 1, 0, 8192, 4)
    series = [a[lo:hi, j] for j in range(4) for lo, hi in ((0, 4096), (4096, 8192))]

    assert np.abs(np.corrcoef(series) - np.eye(8)).max() < 5 / np.sqrt(4096)


def test_gaussian_numbers_have_gaussian_moments() -> None:
    a = gaussian_rows(1, 1, 0, 20_000, 5)
    n = a.size

    # Five standard errors of mean, variance and fourth moment.
    assert abs(a.mean()) < 5 / np.sqrt(n)
    assert abs(a.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs(np.mean(a**4) - 3) < 5 * np.sqrt(96 / n)


def test_uniform_numbers_lie_in_the_unit_interval() -> None:
    a = uniform_rows(1, 1, 0, 20_000, 5)

    assert a.min() >= 0.0
    assert a.max() < 1.0
    assert abs(a.mean() - 0.5) < 5 / np.sqrt(12 * a.size)
    # The empirical distribution, by Kolmogorov's bound at one in a million.
    distance = np.abs(np.sort(a.ravel()) - (np.arange(a.size) + 0.5) / a.size).max()
    assert distance < 2.7 / np.sqrt(a.size)


def test_what_a_seed_means_is_fixed_for_ever() -> None:
    # Written down once: a change, of ours or of numpy, would make stored results irreproducible.
    np.testing.assert_array_equal(gaussian_rows(7, 2, 4095, 4097, 2), GAUSSIAN_7_2)
    np.testing.assert_array_equal(uniform_rows(7, 2, 4095, 4097, 2), UNIFORM_7_2)


@pytest.mark.parametrize("draw", DRAWS)
def test_no_rows_and_no_columns_are_possible(draw: Draw) -> None:
    assert draw(0, 0, 4096, 4096, 3).shape == (0, 3)
    assert draw(0, 0, 0, 5, 0).shape == (5, 0)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("n", [20, 21, 99, 100, 1000, 1001])
def test_share_of_held_out_points_is_as_asked(n: int, fraction: float) -> None:
    held = int(held_out_mask(0, 5, n, fraction).sum())

    # Whole points: rounded down, by one more where the product itself is rounded below an integer.
    assert np.floor(n * fraction) - 1 <= held <= n * fraction


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.2, 0.3, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_held_out_points_are_spread_evenly(seed: int, fraction: float) -> None:
    held = np.flatnonzero(held_out_mask(seed, 5, 1000, fraction))

    # One per group of 1 / fraction points: no gap longer than two groups, and none crowded.
    assert np.diff(np.concatenate([[-1], held, [1000]])).max() <= 2 * np.ceil(1 / fraction)
    for lo in range(0, 1000, 100):
        inside = np.sum((held >= lo) & (held < lo + 100))
        assert abs(inside - 100 * fraction) <= 2


def test_every_point_may_be_held_out() -> None:
    counts = sum(held_out_mask(seed, 5, 100, 0.2).astype(int) for seed in range(400))

    # Binomial with p = 0.2 and 400 draws: 80 +- 8; five standard deviations.
    assert np.all(np.abs(counts - 80) <= 40)


def test_held_out_choice_reproduces_and_differs_between_seeds_and_streams() -> None:
    reference = held_out_mask(3, 5, 500, 0.2)

    np.testing.assert_array_equal(held_out_mask(3, 5, 500, 0.2), reference)
    assert not np.array_equal(held_out_mask(4, 5, 500, 0.2), reference)
    assert not np.array_equal(held_out_mask(3, 6, 500, 0.2), reference)


@pytest.mark.parametrize(("n", "fraction"), [(100, 0.0), (3, 0.2), (0, 0.2), (1, 0.9)])
def test_too_few_points_hold_nothing_out(n: int, fraction: float) -> None:
    mask = held_out_mask(0, 5, n, fraction)

    assert mask.shape == (n,)
    assert not mask.any()


def test_seeds_of_64_bits_are_all_different() -> None:
    seeds = [0, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
    draws = {gaussian_rows(seed, 1, 0, 1, 1)[0, 0] for seed in seeds}

    assert len(draws) == len(seeds)
