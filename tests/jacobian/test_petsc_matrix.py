"""J as a PETSc matrix: products of blocks reach the Jacobian as blocks, and every entry is the dense one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lsr_hpc.errors import AccuracyError, JobError
from lsr_hpc.jacobian.operator import DistributedJacobian
from lsr_hpc.jacobian.petsc_matrix import jacobian_matrix, padded_rows
from lsr_hpc.petsc import destroying, libraries, local_panel
from lsr_hpc.subspace.svd import svd_basis

Array = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
SHAPES = {"more rows": (60, 25), "more parameters": (25, 60), "square": (30, 30)}
AsJacobian = Callable[..., DistributedJacobian]


def random_matrix(shape: tuple[int, int]) -> Array:
    return np.random.default_rng(shape[0]).standard_normal(shape)


def randomised_svd(jacobian: DistributedJacobian, n_rows: int, iterations: int) -> Any:
    return svd_basis(
        jacobian,
        first_row=0,
        n_rows=n_rows,
        rank=6,
        oversampling=4,
        solver="randomized",
        iterations=iterations,
        orthogonalization="auto",
        seed=0,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_randomised_svd_makes_one_block_product_of_each_kind_per_iteration(
    shape: str, iterations: int, as_jacobian: AsJacobian
) -> None:
    n, p = SHAPES[shape]
    jacobian = as_jacobian(random_matrix((n, p)))
    randomised_svd(jacobian, n, iterations)

    # Without the block hooks it would be 10 calls of one column for each of these.
    counter = jacobian.counter
    assert (counter.jv_calls, counter.jtu_calls) == (iterations, iterations)
    assert (counter.jv_columns, counter.jtu_columns) == (10 * iterations, 10 * iterations)


@pytest.mark.parametrize("shape", SHAPES)
def test_single_products_are_the_dense_ones(shape: str, as_jacobian: AsJacobian) -> None:
    a = random_matrix(SHAPES[shape])
    rng = np.random.default_rng(1)
    mat = jacobian_matrix(as_jacobian(a))
    x, y = mat.createVecRight(), mat.createVecLeft()
    with destroying(x, y, mat):
        for _ in range(2):
            right, left = rng.standard_normal(a.shape[1]), rng.standard_normal(a.shape[0])
            x.array[:] = right
            mat.mult(x, y)
            np.testing.assert_allclose(y.array_r, a @ right, rtol=0, atol=100 * EPS * np.linalg.norm(a))
            y.array[:] = left
            mat.multTranspose(y, x)
            np.testing.assert_allclose(x.array_r, a.T @ left, rtol=0, atol=100 * EPS * np.linalg.norm(a))


@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_block_products_are_the_dense_ones(shape: str, columns: int, as_jacobian: AsJacobian) -> None:
    PETSc, _ = libraries()
    a = random_matrix(SHAPES[shape])
    jacobian = as_jacobian(a)
    mat = jacobian_matrix(jacobian)
    for transposed in (False, True):
        n_in = a.shape[0] if transposed else a.shape[1]
        block = np.random.default_rng(2).standard_normal((n_in, columns))
        panel = PETSc.Mat().createDense(block.shape, array=np.asfortranarray(block), comm=PETSc.COMM_SELF)
        panel.assemble()
        result = mat.transposeMatMult(panel) if transposed else mat.matMult(panel)
        expected = a.T @ block if transposed else a @ block
        np.testing.assert_allclose(
            local_panel(result).numpy(),
            expected,
            rtol=0,
            atol=100 * EPS * np.linalg.norm(a) * np.sqrt(columns),
        )
        panel.destroy()
        result.destroy()
    mat.destroy()
    assert (jacobian.counter.jv_calls, jacobian.counter.jtu_calls) == (1, 1)


def test_a_rank_without_rows_owns_one_row_of_zeros(as_jacobian: AsJacobian) -> None:
    assert [padded_rows(n) for n in (0, 1, 7)] == [1, 1, 7]
    mat = jacobian_matrix(as_jacobian(np.zeros((0, 4))))
    x, y = mat.createVecRight(), mat.createVecLeft()
    with destroying(x, y, mat):
        assert mat.getSize() == (1, 4)
        x.array[:] = 1.0
        y.array[:] = 5.0
        mat.mult(x, y)
        assert y.array_r.tolist() == [0.0]
        y.array[:] = 5.0
        mat.multTranspose(y, x)
        assert not x.array_r.any()


def test_fewer_parameters_than_ranks_are_refused(as_jacobian: AsJacobian) -> None:
    with pytest.raises(JobError, match="0 parameters may change, too few for 1 MPI ranks"):
        jacobian_matrix(as_jacobian(np.zeros((3, 0))))


class Failing:
    """A Jacobian whose products raise."""

    n_rows, n_parameters = 30, 12

    def __init__(self, error: Exception) -> None:
        self._error = error

    def jv(self, v: Any) -> Any:
        raise self._error

    jtu = jv


@pytest.mark.parametrize(
    "error", [AccuracyError("block 7 is NaN"), JobError("bad data"), ZeroDivisionError("in the residual")]
)
def test_error_inside_a_product_arrives_as_itself(error: Exception, comm_self: Any) -> None:
    jacobian = DistributedJacobian(comm_self, Failing(error), 4)

    with pytest.raises(type(error), match=str(error)):
        randomised_svd(jacobian, 30, 2)
