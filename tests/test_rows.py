"""Rows: every point on exactly one rank, equal shares of the work, an even held-out split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.probe import BlockProbe, probe_block
from lsr_hpc.models import MLP
from lsr_hpc.problem import Field, ResidualBlock
from lsr_hpc.rows import RowSet, local_rows, partition, points_at_once, split_rows


def probe(rows_per_point: int = 1, flops_per_point: int = 100) -> BlockProbe:
    return BlockProbe(rows_per_point, flops_per_point, 10, torch.ones(1, dtype=torch.bool))


def block(name: str, n: int, *, hold_out: bool = True, weight: float = 1.0) -> ResidualBlock:
    points = torch.arange(float(n), dtype=torch.float64)[:, None]
    return ResidualBlock(
        name=name, residual=lambda u, x: u(x), points=points, hold_out=hold_out, weight=weight
    )


def row_set(*counts_and_flops: tuple[int, int]) -> RowSet:
    blocks = tuple(block(f"block {k}", n) for k, (n, _) in enumerate(counts_and_flops))
    probes = tuple(probe(flops_per_point=f) for _, f in counts_and_flops)
    return RowSet(blocks, probes, tuple(np.arange(n) for n, _ in counts_and_flops))


SETS = {
    "one block": row_set((103, 7)),
    "cheap and dear": row_set((1000, 1), (10, 500), (77, 13)),
    "one point": row_set((1, 5)),
    "an empty block between": row_set((5, 3), (0, 3), (4, 100)),
    "an empty block at each end": row_set((0, 3), (9, 3), (0, 3)),
    "nothing": row_set((0, 3)),
    "a huge point": row_set((1, 10**9), (50, 1)),
}


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5, 8, 64, 1200])
@pytest.mark.parametrize("name", SETS)
def test_every_point_lies_on_exactly_one_rank_and_in_order(name: str, n_ranks: int) -> None:
    rows = SETS[name]
    parts = partition(rows, n_ranks)

    assert len(parts) == n_ranks
    points = [(k, i) for part in parts for k, lo, hi in part for i in range(lo, hi)]
    assert points == [(k, i) for k, indices in enumerate(rows.indices) for i in range(len(indices))]


@pytest.mark.parametrize("n_ranks", [2, 3, 5, 8, 64])
@pytest.mark.parametrize("name", SETS)
def test_work_is_shared_evenly_up_to_one_point(name: str, n_ranks: int) -> None:
    rows = SETS[name]
    flops = [p.flops_per_point for p in rows.probes]
    work = [sum((hi - lo) * flops[k] for k, lo, hi in part) for part in partition(rows, n_ranks)]

    # Each of the two cuts of a part is off by half a point at most; a point cannot be split.
    dearest = max((f for f, i in zip(flops, rows.indices, strict=True) if len(i)), default=0)
    assert max(work) <= sum(work) / n_ranks + dearest


def test_more_ranks_than_points_leave_ranks_without_rows() -> None:
    parts = partition(row_set((3, 7)), 8)

    assert sum(1 for part in parts if not part) == 5


def test_no_part_holds_an_empty_piece() -> None:
    for rows in SETS.values():
        assert all(lo < hi for part in partition(rows, 7) for _, lo, hi in part)


def test_split_covers_every_point_once() -> None:
    blocks = [block("a", 100), block("b", 57)]
    fit, held = split_rows(blocks, [probe(), probe(2)], 0.2, 0)

    for k, b in enumerate(blocks):
        assert sorted([*fit.indices[k], *held.indices[k]]) == list(range(b.n_points))
        assert np.all(np.diff(fit.indices[k]) > 0)
        assert np.all(np.diff(held.indices[k]) > 0)
    assert (held.n_rows, fit.n_rows) == (20 + 2 * 11, 80 + 2 * 46)


def test_split_is_even_over_each_block() -> None:
    _, held = split_rows([block("a", 1000)], [probe()], 0.2, 3)

    for lo in range(0, 1000, 100):
        assert np.sum((held.indices[0] >= lo) & (held.indices[0] < lo + 100)) == 20


def test_split_reproduces_and_differs_between_seeds_and_blocks() -> None:
    blocks, probes = [block("a", 200), block("b", 200)], [probe(), probe()]
    first, again, other = (split_rows(blocks, probes, 0.2, seed)[1] for seed in (1, 1, 2))

    assert all(np.array_equal(a, b) for a, b in zip(first.indices, again.indices, strict=True))
    assert not np.array_equal(first.indices[0], other.indices[0])
    assert not np.array_equal(first.indices[0], first.indices[1])


@pytest.mark.parametrize(("n", "is_split"), [(1, False), (5, False), (19, False), (20, True), (200, True)])
def test_small_blocks_are_never_split(n: int, is_split: bool) -> None:
    _, held = split_rows([block("a", n)], [probe()], 0.2, 0)

    assert bool(len(held.indices[0])) == is_split


def test_blocks_that_must_not_be_held_out_are_not() -> None:
    _, held = split_rows(
        [block("data", 200), block("boundary", 200, hold_out=False)], [probe(), probe()], 0.2, 0
    )

    assert [len(i) for i in held.indices] == [40, 0]


def test_without_a_fraction_nothing_is_held_out() -> None:
    fit, held = split_rows([block("a", 200)], [probe()], 0.0, 0)

    assert (fit.n_rows, held.n_rows) == (200, 0)


def test_weight_sum_turns_norms_into_weighted_means() -> None:
    blocks = [block("a", 100, weight=2.0), block("b", 50, weight=3.0, hold_out=False)]
    fit, held = split_rows(blocks, [probe(), probe()], 0.2, 0)

    assert fit.weight_sum == pytest.approx(2.0 * 0.8 + 3.0)
    assert held.weight_sum == pytest.approx(2.0 * 0.2)


def two_columns(u: Field, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([u(x) - y, u(x) * y], dim=1)


@pytest.fixture
def model() -> FunctionalModel:
    torch.manual_seed(0)
    return FunctionalModel(MLP([1, 5, 1]))


@pytest.fixture
def rows(model: FunctionalModel) -> RowSet:
    x = torch.linspace(0, 1, 41).double()[:, None]
    blocks = [
        ResidualBlock(name="two", residual=two_columns, points=x, data=(torch.cos(x),), weight=2.0),
        ResidualBlock(name="one", residual=lambda u, x: u(x)[:, 0] - 1.0, points=x[:7]),
    ]
    return split_rows(blocks, [probe_block(b, model) for b in blocks], 0.0, 0)[0]


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5, 60])
def test_ranks_hold_consecutive_rows_of_the_same_residual(
    n_ranks: int, rows: RowSet, model: FunctionalModel
) -> None:
    whole = local_rows(rows, 0, 1, model).residual(model.field())
    pieces, first = [], 0
    for rank in range(n_ranks):
        local = local_rows(rows, rank, n_ranks, model)
        assert local.first_row == first
        assert local.n_rows_global == rows.n_rows == 2 * 41 + 7
        piece = local.residual(model.field())
        assert piece.shape == (local.n_rows,)
        assert piece.dtype == torch.float64
        pieces.append(piece)
        first += local.n_rows

    # The same numbers; batches of other sizes may round their products otherwise.
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("points_per_tile", [1, 2, 32, 4096])
def test_tiles_do_not_change_the_residual(points_per_tile: int, rows: RowSet, model: FunctionalModel) -> None:
    # A point that pretends to need much memory makes tiles of few points.
    numbers = 2**22 // points_per_tile
    assert points_at_once(numbers) == points_per_tile
    greedy = replace(rows, probes=tuple(replace(p, numbers_per_point=numbers) for p in rows.probes))
    tiled, whole = (local_rows(r, 0, 1, model).residual(model.field()) for r in (greedy, rows))

    torch.testing.assert_close(tiled, whole, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("numbers_per_point", [1, 10**3, 2**22, 10**12])
def test_points_at_once_keep_to_the_memory(numbers_per_point: int) -> None:
    points = points_at_once(numbers_per_point)

    assert 1 <= points <= 4096
    assert points == 1 or 8 * points * numbers_per_point <= 2**25


def test_rows_of_one_point_are_adjacent(rows: RowSet, model: FunctionalModel) -> None:
    residual = local_rows(rows, 0, 1, model).residual(model.field())
    x = rows.blocks[0].points
    scale = (2.0 / (41 * 2)) ** 0.5
    expected = scale * two_columns(model.field(), x, torch.cos(x))

    torch.testing.assert_close(residual[: 2 * 41].reshape(41, 2), expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("source", ["tensor", "array", "float32", "memmap"])
def test_any_source_of_rows_is_read_by_global_index(
    source: str, tmp_path: Path, model: FunctionalModel
) -> None:
    values = np.linspace(0, 1, 30, dtype=np.float32)[:, None]
    np.save(tmp_path / "points.npy", values)
    points = {
        "tensor": torch.from_numpy(values).double(),
        "array": values.astype(np.float64),
        "float32": values,
        "memmap": np.load(tmp_path / "points.npy", mmap_mode="r"),
    }[source]
    b = ResidualBlock(name="a", residual=lambda u, x: u(x) - x, points=points)
    rows = split_rows([b], [probe_block(b, model)], 0.2, 1)[0]
    local = local_rows(rows, 1, 3, model)

    (taken,) = local.segments[0].tensors
    assert taken.dtype == torch.float64
    assert np.isin(taken.numpy(), values.astype(np.float64)).all()
    first = sum(hi - lo for part in partition(rows, 3)[:1] for _, lo, hi in part)
    np.testing.assert_array_equal(taken[:, 0], values[rows.indices[0][first : first + len(taken)], 0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("n_ranks", [1, 3])
def test_a_value_that_is_not_finite_is_named_with_its_block_and_point(
    bad: float, n_ranks: int, rows: RowSet, model: FunctionalModel
) -> None:
    x = rows.blocks[0].points
    y = torch.cos(x)
    y[25] = bad
    spoiled = replace(rows, blocks=(replace(rows.blocks[0], data=(y,)), rows.blocks[1]))
    errors = []
    for rank in range(n_ranks):
        local = local_rows(spoiled, rank, n_ranks, model)
        try:
            local.require_finite(local.residual(model.field()), "is")
        except JobError as error:
            errors.append(str(error))

    assert len(errors) == 1
    assert "'two'" in errors[0]
    assert f"at point [{float(x[25])}" in errors[0]
