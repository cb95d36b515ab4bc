"""Rows of J as sums of outer products, and the block products with them.

    J[r, c]        = sum_s left[r, c, s] (outer) right[r, s]             (the columns of one weight matrix)
    (J V)[b, r, c] = sum_s left[r, c, s] . (V_b right[r, s])
    (J^T U)_b      = sum_{r, c, s} u[b, r, c] left[r, c, s] (outer) right[r, s]

Cost per column: 2 * S * out * in flops per row, as one forward pass, nearly all of it in matrix products. In
between, ``rows * S * out`` numbers per column are written and read; in small steps they stay in the cache.
"""

# Legend: b columns, r rows (points), C residual components, S positions; V_b a column's part for the weight.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lsr_hpc.jacobian.recording import Recording
from lsr_hpc.params import ParameterLayout
from lsr_hpc.rows import even_tiles

__all__ = ["OuterProducts", "TileFactors"]

# Intermediate numbers of one step (4 MiB), and its fewest columns, for which rows are cut: on layers of
# width 50 to 256, smaller and narrower steps lose up to a third of the rate. A GPU gets larger steps, since
# each costs launches.
_STEP_NUMBERS = 2**19
_STEP_COLUMNS = 16
_GPU_FACTOR = 64
# A matrix of few rows, or of few columns for its rows, is taken apart into these, each a product over all b.
_FEW_ROWS = 4
_ROWS_PER_COLUMN = 4


@dataclass(frozen=True)
class OuterProducts:
    """J's columns of one weight matrix (out x in) for the rows of a tile.

    Attributes:
        columns: The weight's place in the flat parameter vector.
        left: Shape (r, C, S, out), contiguous.
        right: Shape (r, S, in), contiguous.
    """

    columns: slice
    left: Tensor
    right: Tensor

    @property
    def flops_per_column(self) -> int:
        """Flops of one product and one column."""
        r, _, s, n_out = self.left.shape
        return 2 * r * s * n_out * self.right.shape[-1]

    def add_jv(self, v: Tensor, out: Tensor) -> None:
        """Add ``J V`` to ``out``.

        Args:
            v: Shape (b, P).
            out: Shape (b, r, C).
        """
        w = self._weights(v)
        if self._has_few_rows or self._has_few_columns:
            for coefficients, vectors, part in self._vectors(w):
                t = (part @ vectors.mT).view(len(v), *coefficients.shape[:1], -1, coefficients.shape[2])
                for s in range(coefficients.shape[2]):
                    out.addcmul_(t[..., s], coefficients[..., s])
            return
        for rows, columns, left, right, scratch in self._steps(len(v)):
            # t[b, r, (s, out)] = V_b right[r, s]
            torch.bmm(right.expand(len(scratch), *right.shape), w[columns].mT, out=scratch)
            t = scratch.view(len(scratch), len(left), -1)
            out[columns, rows] += torch.bmm(t.transpose(0, 1), left.mT).transpose(0, 1)

    def add_jtu(self, u: Tensor, out: Tensor) -> None:
        """Add ``J^T U`` to ``out``.

        Args:
            u: Shape (b, r, C).
            out: Shape (b, P).
        """
        w = self._weights(out)
        if self._has_few_rows or self._has_few_columns:
            for coefficients, vectors, part in self._vectors(w):
                t = u.unsqueeze(-1) * coefficients
                if self._has_few_rows:  # the other factor is the same for all components
                    t = t.sum(dim=2)
                part += t.flatten(1) @ vectors
            return
        for rows, columns, left, right, scratch in self._steps(len(u)):
            # t[b, r, (s, out)] = sum_c u[b, r, c] left[r, c, s]
            t, cotangents = scratch.view(len(scratch), len(left), -1), u[columns, rows]
            torch.mul(cotangents[..., :1], left[:, 0], out=t)
            for c in range(1, left.shape[1]):
                t.addcmul_(cotangents[..., c : c + 1], left[:, c])
            w[columns].baddbmm_(scratch.mT, right.expand(len(scratch), *right.shape))

    def _weights(self, panel: Tensor) -> Tensor:
        """The weight's part of a panel of parameter vectors, shape (b, out, in), a view."""
        return panel[:, self.columns].view(-1, self.left.shape[-1], self.right.shape[-1])

    @property
    def _has_few_rows(self) -> bool:
        return self.left.shape[-1] <= _FEW_ROWS

    @property
    def _has_few_columns(self) -> bool:
        return _ROWS_PER_COLUMN * self.left.shape[1] * self.right.shape[-1] <= self.left.shape[-1]

    def _vectors(self, w: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Take the weight apart into its rows, or into its columns.

        Args:
            w: Shape (b, out, in).

        Yields:
            For each row or column of the weight: its factor's coefficients, (r, C, S) or (r, 1, S); the other
            factor's vectors, one a line; and the row or column of ``w`` itself, (b, in) or (b, out).
        """
        if self._has_few_rows:
            for o in range(self.left.shape[-1]):
                yield self.left[..., o], self.right.flatten(0, 1), w[:, o]
        else:
            for i in range(self.right.shape[-1]):
                yield self.right[:, None, :, i], self.left.flatten(0, 2), w[..., i]

    def _steps(self, b: int) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
        """Cut rows and columns so that the intermediate numbers stay near the core.

        Yields:
            Rows, columns, left as (r, C, S * out), right as (r * S, in), and room of shape (b, r * S, out).
        """
        n_rows, _, s, n_out = self.left.shape
        numbers = _STEP_NUMBERS * (_GPU_FACTOR if self.left.is_cuda else 1)
        rows_per_step = max(1, numbers // (_STEP_COLUMNS * s * n_out))
        columns_per_step = max(1, numbers // (min(rows_per_step, n_rows) * s * n_out))
        room = self.left.new_empty(min(b, columns_per_step) * min(rows_per_step, n_rows) * s * n_out)
        for rows in even_tiles(n_rows, rows_per_step):
            left, right = self.left[rows].flatten(2), self.right[rows].flatten(0, 1)
            for columns in even_tiles(b, columns_per_step):
                shape = (columns.stop - columns.start, len(right), n_out)
                yield rows, columns, left, right, room[: shape[0] * shape[1] * shape[2]].view(shape)


@dataclass(frozen=True)
class TileFactors:
    """The rows of J of one tile of points.

    Attributes:
        outer_products: One entry a weight matrix, or two where it is also used transposed.
        dense: Columns of J held as they are: a range of the flat vector and a matrix (r * C, width).
        on_shared: Derivative by the outputs of shared layers, (r * C, width), or None without any.
        n_rows: Rows of J, r * C.
    """

    outer_products: tuple[OuterProducts, ...]
    dense: tuple[tuple[slice, Tensor], ...]
    on_shared: Tensor | None
    n_rows: int

    @classmethod
    def of(cls, recording: Recording, layout: ParameterLayout, scale: float, n_rows: int) -> TileFactors:
        """Arrange a recording for products.

        Args:
            recording: Products and gradients of a tile.
            layout: Order of the parameters.
            scale: Factor on all rows.
            n_rows: Rows of J.

        Returns:
            The factors.
        """
        ranges = layout.ranges
        groups: dict[tuple[str, bool], list[_Term]] = {}
        dense = {name: scale * matrix for name, matrix in recording.explicit.items()}
        shared = []
        for product, a, d in zip(recording.products, recording.inputs, recording.gradients, strict=True):
            d = scale * d
            if a is None:
                shared.append(d.flatten(2))
                continue
            groups.setdefault((product.weight, product.transposed), []).append(_Term(a, d))
            if product.bias is not None:
                of_bias = d.sum(dim=2)
                dense[product.bias] = dense[product.bias] + of_bias if product.bias in dense else of_bias
        outer = []
        for (weight, transposed), terms in groups.items():
            terms = _merged(terms)
            a, d = torch.cat([t.a for t in terms], 1), torch.cat([t.d for t in terms], 2)
            if transposed:
                left, right = _swapped(a, d)
            else:
                left, right = d.contiguous(), a.contiguous()
                _share_memory(dense, left)
            outer.append(OuterProducts(ranges[weight], left, right))
        return cls(
            tuple(outer),
            tuple((ranges[name], matrix.flatten(0, 1)) for name, matrix in dense.items()),
            torch.cat(shared, 2).flatten(0, 1) if shared else None,
            n_rows,
        )

    def to(
        self, *, dtype: torch.dtype = torch.float64, device: torch.device | str | None = None
    ) -> TileFactors:
        """The same factors in another precision, or elsewhere.

        Args:
            dtype: ``torch.float64`` or ``torch.float32``.
            device: Where to; None leaves them where they are.

        Returns:
            These factors; copies of what had to be converted or moved.
        """
        return TileFactors(
            tuple(
                replace(p, left=p.left.to(device, dtype), right=p.right.to(device, dtype))
                for p in self.outer_products
            ),
            tuple((columns, matrix.to(device, dtype)) for columns, matrix in self.dense),
            None if self.on_shared is None else self.on_shared.to(device, dtype),
            self.n_rows,
        )

    @property
    def numbers(self) -> int:
        """Numbers stored, those in shared memory once."""
        tensors = [t for p in self.outer_products for t in (p.left, p.right)] + [m for _, m in self.dense]
        tensors += [] if self.on_shared is None else [self.on_shared]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values()) // 8

    @property
    def flops_per_column(self) -> int:
        """Flops of one product and one column, the shared layers' own derivative left out."""
        dense = sum(m.numel() for _, m in self.dense)
        shared = 0 if self.on_shared is None else self.on_shared.numel()
        return sum(p.flops_per_column for p in self.outer_products) + 2 * (dense + shared)

    def jv(self, v: Tensor, v_shared: Tensor | None) -> Tensor:
        """``J V``.

        Args:
            v: Shape (b, P).
            v_shared: Tangents of the outputs of shared layers, (b, width), where there are any.

        Returns:
            Shape (b, r * C).
        """
        out = v.new_zeros(len(v), self.n_rows)
        for columns, matrix in self.dense:
            out.addmm_(v[:, columns], matrix.mT)
        if self.on_shared is not None and v_shared is not None:
            out.addmm_(v_shared, self.on_shared.mT)
        for product in self.outer_products:
            product.add_jv(v, out.view(len(v), len(product.left), -1))
        return out

    def add_jtu(self, u: Tensor, out: Tensor, out_shared: Tensor | None) -> None:
        """Add ``J^T U`` to ``out``.

        Args:
            u: Shape (b, r * C), contiguous.
            out: Shape (b, P).
            out_shared: Receives the cotangents of the outputs of shared layers, (b, width).
        """
        for columns, matrix in self.dense:
            out[:, columns].addmm_(u, matrix)
        if self.on_shared is not None and out_shared is not None:
            out_shared.addmm_(u, self.on_shared)
        for product in self.outer_products:
            product.add_jtu(u.view(len(u), len(product.left), -1), out)


@dataclass
class _Term:
    """Gradients ``d`` (n, C, S, ..) of products with inputs ``a`` (n, S, ..)."""

    a: Tensor
    d: Tensor


def _merged(terms: list[_Term]) -> list[_Term]:
    """Sum gradients of equal inputs, then inputs of equal gradients; both are exact."""
    # So several evaluations of the network at a point cost one, and so do the terms of a Laplacian.
    by_input: list[_Term] = []
    for term in terms:
        same = next((t for t in by_input if torch.equal(t.a, term.a)), None)
        if same is None:
            by_input.append(term)
        else:
            same.d = same.d + term.d
    by_gradient: list[_Term] = []
    for term in by_input:
        same = next((t for t in by_gradient if torch.equal(t.d, term.d)), None)
        if same is None:
            by_gradient.append(term)
        else:
            same.a = same.a + term.a
    return by_gradient


def _swapped(a: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right factors of ``a W``: inputs on the left, gradients (of every component) on the right."""
    left = a.unsqueeze(1).expand(*d.shape[:3], a.shape[-1]).flatten(0, 1).unsqueeze(1)
    return left.contiguous(), d.flatten(0, 1).contiguous()


def _share_memory(dense: dict[str, Tensor], left: Tensor) -> None:
    """Where the gradient of a bias is one position of ``left``, keep it there only."""
    for name, matrix in dense.items():
        for s in range(left.shape[2]):
            if torch.equal(matrix, left[:, :, s]):
                dense[name] = left[:, :, s]
