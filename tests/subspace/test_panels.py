"""Both kinds of panels against dense references and against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lsr_hpc.comm import OneProcess
from lsr_hpc.errors import AccuracyError, EnvironmentProblem
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.rows import FitAndHeld
from lsr_hpc.subspace.krylov import krylov_basis
from lsr_hpc.subspace.panels import open_panels

Array = NDArray[np.float64]
AsJacobian = Callable[..., DistributedJacobian]
WithSpectrum = Callable[..., tuple[Array, Array, Array]]
KINDS = ("slepc", "torch")
WAYS = ("auto", "tsqr", "cholesky_qr2")
SPECTRUM = np.arange(1, 41) ** -1.0


@pytest.fixture
def a(with_spectrum: WithSpectrum) -> Array:
    return with_spectrum(90, 50, SPECTRUM)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_products_with_blocks_are_those_of_j(kind: str, a: Array, as_jacobian: AsJacobian) -> None:
    source = np.random.default_rng(0).standard_normal((5, 90))
    with open_panels(kind, as_jacobian(a), 8, 5, "auto") as room:
        room.pull(source)
        with room.fresh(5) as block, room.directions(slice(2, 7)) as directions:
            np.testing.assert_allclose(block.numpy(), source @ a, atol=1e-14)
            directions.copy_(block)
            del block, directions
        np.testing.assert_allclose(room.push(slice(3, 6)), source[1:4] @ a @ a.T, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_well_conditioned", [False, True])
def test_factors_of_a_block_are_its_qr(
    kind: str, way: str, is_well_conditioned: bool, a: Array, as_jacobian: AsJacobian
) -> None:
    block = np.random.default_rng(1).standard_normal((4, 50))
    with open_panels(kind, as_jacobian(a), 8, 6, way) as room:
        with room.fresh(4) as fresh:
            fresh.copy_(torch.from_numpy(block))
            del fresh
        r = room.factorise(4, is_well_conditioned=is_well_conditioned)
        with room.fresh(4) as fresh:
            q = fresh.numpy().copy()
            del fresh
    np.testing.assert_allclose(r.T @ q, block, atol=1e-13)
    np.testing.assert_allclose(q @ q.T, np.eye(4), atol=1e-13)
    np.testing.assert_array_equal(r, np.triu(r))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["auto", "tsqr"])
def test_a_nearly_dependent_block_is_orthonormal_all_the_same(
    kind: str, way: str, a: Array, as_jacobian: AsJacobian
) -> None:
    rng = np.random.default_rng(2)
    block = rng.standard_normal((1, 50)) + 1e-12 * rng.standard_normal((4, 50))
    with open_panels(kind, as_jacobian(a), 8, 4, way) as room:
        with room.fresh(4) as fresh:
            fresh.copy_(torch.from_numpy(block))
            del fresh
        room.factorise(4, is_well_conditioned=False)
        with room.fresh(4) as fresh:
            q = fresh.numpy().copy()
            del fresh
    np.testing.assert_allclose(q @ q.T, np.eye(4), atol=1e-13)


@pytest.mark.parametrize("width", [1, 4])
def test_both_kinds_span_the_same_krylov_space(width: int, a: Array, as_jacobian: AsJacobian) -> None:
    r0 = np.random.default_rng(3).standard_normal(90)
    spaces = [
        krylov_basis(
            as_jacobian(a[:-20]),
            as_jacobian(a[-20:]),
            FitAndHeld(r0[:-20], r0[-20:]),
            first_row=0,
            rank=12,
            width=width,
            orthogonalization="auto",
            panels=kind,
        )
        for kind in KINDS
    ]
    cosines = np.linalg.svd(spaces[0].v_local @ spaces[1].v_local.T, compute_uv=False)
    np.testing.assert_allclose(cosines, 1.0, atol=1e-10)
    assert "SLEPc" in spaces[0].detail
    assert "torch tensors on cpu" in spaces[1].detail


@pytest.mark.parametrize("kind", KINDS)
def test_a_space_drawn_in_float32_has_directions_and_image_in_float64(
    kind: str, a: Array, as_jacobian: AsJacobian
) -> None:
    r0 = np.random.default_rng(3).standard_normal(90)
    exact, drawn = (
        krylov_basis(
            as_jacobian(a[:-20]).in_precision(jtu=dtype),
            as_jacobian(a[-20:]),
            FitAndHeld(r0[:-20], r0[-20:]),
            first_row=0,
            rank=12,
            width=3,
            orthogonalization="auto",
            panels=kind,
        )
        for dtype in (torch.float64, torch.float32)
    )
    v = drawn.v_local
    np.testing.assert_allclose(v @ v.T, np.eye(12), atol=1e-13)
    assert drawn.image is not None
    np.testing.assert_allclose(drawn.image.fit, v @ a[:-20].T, atol=1e-14)
    np.testing.assert_allclose(drawn.image.held, v @ a[-20:].T, atol=1e-14)
    cosines = np.linalg.svd(exact.v_local @ v.T, compute_uv=False)
    # Single precision, amplified from block to block; not equal, or nothing was drawn in it.
    assert 1e-12 < 1.0 - cosines.min() < 1e-3
    assert "drawn in float32" in drawn.detail


@pytest.mark.parametrize("kind", KINDS)
def test_nan_is_refused_in_words(kind: str, a: Array, as_jacobian: AsJacobian) -> None:
    a[3, 4] = np.nan
    r0 = np.ones(90)
    with pytest.raises(AccuracyError, match="holds NaN or Inf"):
        krylov_basis(
            as_jacobian(a[:-20]),
            as_jacobian(a[-20:]),
            FitAndHeld(r0[:-20], r0[-20:]),
            first_row=0,
            rank=6,
            width=3,
            orthogonalization="auto",
            panels=kind,
        )


def test_a_process_without_mpi_has_torch_panels_alone(a: Array, as_jacobian: AsJacobian) -> None:
    comm: Any = OneProcess()
    alone = DistributedJacobian(comm, as_jacobian(a).local, 7)
    with open_panels("auto", alone, 4, 2, "auto") as room:
        assert room.name == "torch tensors on cpu"
    with pytest.raises(EnvironmentProblem, match="mpi4py is not installed"):
        open_panels("slepc", alone, 4, 2, "auto")
