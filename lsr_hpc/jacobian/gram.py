"""The Gram matrix J J^T of all rows, from the factors of linear layers where J has them.

    (J J^T)[r c, q e] = sum_{s,t} (left[r,c,s] . left[q,e,t]) (right[r,s] . right[q,t])   of one weight matrix

Cost: N^2 S^2 (in + out) flops of a layer against 2 N^2 in out by way of J, with S positions a point, and the
factors of every rank sent to all once. Any other representation multiplies J by J^T times the identity.

An eigenvalue of J J^T is a squared singular value: those of J below 1e-8 of the largest are rounding here.
"""

# Legend: N rows, r and q points of two tiles, C and E residual components, S and T positions.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lsr_hpc.jacobian.explicit import ExplicitJacobian
from lsr_hpc.jacobian.factored import FactoredJacobian
from lsr_hpc.jacobian.factors import OuterProducts, TileFactors
from lsr_hpc.jacobian.operator import DistributedJacobian, JacobianOperator
from lsr_hpc.jacobian.retreat import RetreatingJacobian
from lsr_hpc.rows import even_tiles

__all__ = ["gram_rows"]

# Columns of the identity at once, where J J^T is made by products.
_COLUMNS = 128
# Products of left factors at once (32 MiB).
_NUMBERS = 2**22


def gram_rows(jacobian: DistributedJacobian) -> tuple[Tensor, str]:
    """This rank's rows of J J^T.

    Args:
        jacobian: J.

    Returns:
        Shape (N_local, N), float64, on the device of the rows; and in words how it was made.

    Collective: the factors or rows of every rank to all, one rank after the other; or products of N columns.
    """
    local = jacobian.local
    if isinstance(local, RetreatingJacobian):
        local = local.operator
    mine = _pieces_of(local)
    if not all(jacobian.comm.allgather(mine is not None)):
        return _by_products(jacobian), "products with J and J^T"
    assert mine is not None
    columns = []
    for root in range(jacobian.comm.size):
        # By way of the host: a tensor of another rank's GPU cannot be unpacked here.
        sent = [piece.to("cpu") for piece in mine] if jacobian.comm.rank == root else None
        theirs = [piece.to(jacobian.device) for piece in jacobian.comm.bcast(sent, root=root)]
        if not theirs:
            continue
        rows = [torch.cat([_product(a, b) for b in theirs], dim=1) for a in mine]
        n_theirs = sum(piece.n_rows for piece in theirs)
        nothing = torch.zeros(0, n_theirs, dtype=torch.float64, device=jacobian.device)
        columns.append(torch.cat(rows) if rows else nothing)
    way = "the factors of linear layers" if isinstance(local, FactoredJacobian) else "the rows of J"
    return torch.cat(columns, dim=1), way


@dataclass(frozen=True)
class _Piece:
    """Some rows of J: ``factors`` and ``on_shared @ shared``, or a matrix.

    Attributes:
        factors: Products with weights, and columns held as they are; None for a matrix.
        shared: Derivative of the outputs of shared layers by the parameters, (width, P), or None.
        matrix: The rows themselves, (n, P); None for factors.
    """

    factors: TileFactors | None
    shared: Tensor | None
    matrix: Tensor | None

    @property
    def n_rows(self) -> int:
        if self.matrix is not None:
            return len(self.matrix)
        assert self.factors is not None
        return self.factors.n_rows

    def to(self, device: torch.device | str) -> _Piece:
        return _Piece(
            None if self.factors is None else self.factors.to(device=device),
            None if self.shared is None else self.shared.to(device),
            None if self.matrix is None else self.matrix.to(device),
        )


def _pieces_of(local: JacobianOperator) -> list[_Piece] | None:
    """What this rank sends of its rows; None where J J^T has to be made by products."""
    if isinstance(local, ExplicitJacobian):
        return [_Piece(None, None, local.matrix)] if local.n_rows else []
    if not isinstance(local, FactoredJacobian):
        return None
    pieces = [_Piece(factors, shared, None) for factors, shared in local.tiles()]
    # A weight that is used plainly and transposed, or once by a layer and once otherwise, has mixed terms.
    ways: dict[tuple[int, int], set[str]] = {}
    for piece in pieces:
        assert piece.factors is not None
        for number, product in enumerate(piece.factors.outer_products):
            ways.setdefault(_key(product.columns), set()).add(f"outer {tuple(product.left.shape[3:])}")
            if any(p.columns == product.columns for p in piece.factors.outer_products[:number]):
                return None
        for where, _ in piece.factors.dense:
            ways.setdefault(_key(where), set()).add("dense")
    return pieces if all(len(found) == 1 for found in ways.values()) else None


def _key(columns: slice) -> tuple[int, int]:
    return columns.start, columns.stop


def _product(a: _Piece, b: _Piece) -> Tensor:
    """Rows of one piece times those of another, (n_a, n_b)."""
    if a.matrix is not None and b.matrix is not None:
        return a.matrix @ b.matrix.T
    assert a.factors is not None
    assert b.factors is not None
    gram = _of_factors(a.factors, b.factors)
    # A = A_own + S_a H_a, so three more terms, with as many columns as the shared layers have outputs.
    if b.shared is not None and b.factors.on_shared is not None:
        gram += a.factors.jv(b.shared, None).T @ b.factors.on_shared.T
    if a.shared is not None and a.factors.on_shared is not None:
        gram += a.factors.on_shared @ b.factors.jv(a.shared, None)
        if b.shared is not None and b.factors.on_shared is not None:
            gram += a.factors.on_shared @ (a.shared @ b.shared.T) @ b.factors.on_shared.T
    return gram


def _of_factors(a: TileFactors, b: TileFactors) -> Tensor:
    gram = torch.zeros(a.n_rows, b.n_rows, dtype=torch.float64, device=_device(a))
    columns_of_b = {_key(where): matrix for where, matrix in b.dense}
    for where, matrix in a.dense:
        other = columns_of_b.get(_key(where))
        if other is not None:
            gram.addmm_(matrix, other.T)
    products_of_b = {_key(p.columns): p for p in b.outer_products}
    for product in a.outer_products:
        other_product = products_of_b.get(_key(product.columns))
        if other_product is not None:
            gram += _of_outer_products(product, other_product)
    return gram


def _of_outer_products(a: OuterProducts, b: OuterProducts) -> Tensor:
    r, c, s, _ = a.left.shape
    q, e, t, _ = b.left.shape
    gram = a.left.new_empty(r * c, q * e)
    for rows in even_tiles(r, max(1, _NUMBERS // (c * s * q * e * t))):
        left, right = a.left[rows], a.right[rows]
        lefts = (left.flatten(0, 2) @ b.left.flatten(0, 2).T).view(-1, c, s, q, e, t)
        rights = (right.flatten(0, 1) @ b.right.flatten(0, 1).T).view(-1, 1, s, q, 1, t)
        gram[rows.start * c : rows.stop * c] = (lefts * rights).sum(dim=(2, 5)).view(-1, q * e)
    return gram


def _device(factors: TileFactors) -> torch.device:
    tensors: Iterable[Tensor] = (p.left for p in factors.outer_products)
    return next(iter([*tensors, *(matrix for _, matrix in factors.dense)])).device


def _by_products(jacobian: DistributedJacobian) -> Tensor:
    """J (J^T I), some columns of the identity at once."""
    counts: Sequence[int] = jacobian.comm.allgather(jacobian.local.n_rows)
    first, n = sum(counts[: jacobian.comm.rank]), sum(counts)
    gram = torch.empty(jacobian.local.n_rows, n, dtype=torch.float64, device=jacobian.device)
    for lo in range(0, n, _COLUMNS):
        unit = np.zeros((min(_COLUMNS, n - lo), jacobian.local.n_rows))
        for row in range(max(lo, first), min(lo + len(unit), first + jacobian.local.n_rows)):
            unit[row - lo, row - first] = 1.0
        gram[:, lo : lo + len(unit)] = jacobian.push(jacobian.pull(torch.from_numpy(unit))).T
    return gram
