"""Section [iterate]: every value that cannot be is refused by name."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from lsr_hpc.errors import JobError
from lsr_hpc.settings import IterateSettings


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rounds", (0, -1, 2**31)),
        ("steps", (0, 2**31)),
        ("history", (0, 2**31)),
        ("tangent_rank", (0, -5, 2**31)),
        ("patience", (0, 2**31)),
        ("ranks", ((0,), (10, -1))),
        ("warm_share", (-0.1, 1.0, nan)),
        ("momentum", (-0.1, 1.0, inf, nan)),
        ("objective", ("loss", "")),
        ("optimizer", ("sgd",)),
        ("precision", ("float16",)),
        ("target_share", (0.0, -1.0, 1.5, nan)),
        ("pseudo_time", (0.0, -1.0, inf, nan)),
        ("learning_rate", (0.0, -1e-3, inf, nan)),
        ("max_seconds", (-1.0, nan)),
        ("target_error", (-1.0, nan)),
        ("target_residual", (-1e-9, nan)),
    ],
)
def test_value_that_cannot_be_is_refused_by_name(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(JobError, match=rf"iterate\.{name} = "):
            IterateSettings(**{name: value})


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(JobError, match=r"iterate\.optimizer.*iterate\.rounds.*iterate\.momentum"):
        IterateSettings(rounds=0, momentum=2.0, optimizer="sgd")


def test_tangent_steps_have_no_single_precision() -> None:
    with pytest.raises(JobError, match=r"iterate\.precision = \"float32\" is for"):
        IterateSettings(precision="float32")
    assert IterateSettings(precision="float32", optimizer="adam").precision == "float32"


@pytest.mark.parametrize("name", ["max_seconds", "target_error", "target_residual", "warm_share", "momentum"])
def test_zero_is_a_value_where_it_means_something(name: str) -> None:
    assert getattr(IterateSettings(**{name: 0.0}), name) == 0.0


def test_last_rank_of_the_schedule_is_repeated() -> None:
    schedule = IterateSettings(ranks=(50, 20))
    assert [schedule.rank_of(n, 7) for n in range(4)] == [50, 20, 20, 20]
    assert IterateSettings().rank_of(3, 7) == 7
