"""A prepared problem and a network at another state, against what is made there from the beginning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lsr_hpc.functional import FunctionalModel
from lsr_hpc.prepare import prepare
from tests.iterative.problems import X, bratu, fitted, refinement, stacked, start_of


@pytest.mark.parametrize("jacobian", ["matrix_free", "factored", "explicit"])
@pytest.mark.parametrize("chosen", [{}, {"parameters": ("layers.2.*",)}], ids=["all", "some"])
def test_jacobian_elsewhere_is_the_dense_one(jacobian: str, chosen: dict[str, Any], comm_self: Any) -> None:
    problem = bratu()
    prepared = prepare(problem, comm_self, refinement(5, 0.0, jacobian=jacobian, **chosen))
    theta = start_of(problem) + 0.1
    here = prepared.at(torch.from_numpy(theta))

    dense = torch.func.jacrev(lambda t: stacked(problem, t))
    free = np.arange(len(theta)) if prepared.free is None else prepared.free.numpy()
    for made, where in ((here, theta), (prepared, start_of(problem))):
        j = dense(torch.from_numpy(where)).numpy()[:, free]
        v = np.random.default_rng(0).standard_normal((3, j.shape[1]))
        np.testing.assert_allclose(made.jacobian.jv(v), v @ j.T, rtol=0, atol=1e-11 * np.abs(j).max())
        np.testing.assert_array_equal(made.model.theta0, where)
    assert here.fit is prepared.fit


def test_network_elsewhere_leaves_the_first_one_alone() -> None:
    problem = fitted()
    first = FunctionalModel(problem.model)
    theta = torch.from_numpy(start_of(problem) + 1.0)
    moved = first.at(theta)
    value = moved.field()(X)
    # The numbers are taken over.
    theta.zero_()

    np.testing.assert_array_equal(moved.field()(X), value)
    np.testing.assert_array_equal(moved.theta0, start_of(problem) + 1.0)
    np.testing.assert_array_equal(first.field()(X), problem.model(X).detach())
    assert not torch.equal(value, first.field()(X))


def test_network_in_single_precision_is_the_same_function() -> None:
    problem = fitted()
    double = FunctionalModel(problem.model)
    single = double.in_precision(torch.float32)

    assert double.in_precision(torch.float64) is double
    assert single.theta0.dtype == torch.float32
    value = single.field()(X.float())
    assert value.dtype == torch.float32
    np.testing.assert_allclose(value, double.field()(X), rtol=0, atol=1e-6)
    assert double.theta0.dtype == double.field()(X).dtype == torch.float64


def test_rank_is_lowered_to_rows_and_parameters_only_where_asked_for(comm_self: Any) -> None:
    problem = fitted()
    block = problem.blocks[0]
    x, y = block.take(np.arange(30))
    few = replace(problem, blocks=[replace(block, points=x, data=(y,))])
    ranks = [
        prepare(made, comm_self, refinement(400, 0.0), may_lower_rank=True).settings.subspace.rank
        for made in (problem, few)
    ]
    assert ranks == [61, 30]
