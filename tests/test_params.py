"""The flat parameter vector: its order, shapes and round trips, also for blocks of vectors."""

from __future__ import annotations

import hashlib
import struct

import pytest
import torch
from torch import Tensor, nn

from lsr_hpc.params import ParameterLayout, digest


class Odd(nn.Module):
    """Parameters of rank 0 to 3, a frozen one, a tied one, an empty one, a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.tensor(2.5))
        self.vector = nn.Parameter(torch.arange(3.0))
        self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
        self.cube = nn.Parameter(torch.arange(24.0).reshape(2, 3, 4))
        self.tied = self.vector
        self.empty = nn.Parameter(torch.zeros(0, 5))
        self.register_buffer("buffer", torch.ones(2))


SHAPES = {"scalar": (), "vector": (3,), "cube": (2, 3, 4), "empty": (0, 5)}


def test_layout_lists_trainable_parameters_once_in_their_own_order() -> None:
    layout = ParameterLayout.of(Odd())

    assert dict(zip(layout.names, layout.shapes, strict=True)) == SHAPES
    assert layout.names == tuple(SHAPES)
    assert layout.size == 1 + 3 + 24


def test_flat_vector_is_row_major_in_the_order_of_named_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    layout = ParameterLayout.of(model)

    expected = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    assert torch.equal(layout.read(model), expected)


@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3)])
def test_unflatten_and_flatten_are_inverse_for_blocks(batch: tuple[int, ...]) -> None:
    layout = ParameterLayout.of(Odd())
    flat = torch.randn(*batch, layout.size, dtype=torch.float64)
    tensors = layout.unflatten(flat)

    assert {name: tuple(t.shape) for name, t in tensors.items()} == {n: batch + s for n, s in SHAPES.items()}
    assert torch.equal(layout.flatten(tensors), flat)


def test_ranges_cut_the_flat_vector_into_the_parameters() -> None:
    layout = ParameterLayout.of(Odd())
    flat = torch.randn(layout.size)
    tensors = layout.unflatten(flat)

    assert list(layout.ranges) == list(layout.names)
    assert all(torch.equal(flat[r], tensors[name].reshape(-1)) for name, r in layout.ranges.items())


def test_each_vector_of_a_block_is_unflattened_as_if_alone() -> None:
    layout = ParameterLayout.of(Odd())
    flat = torch.randn(4, layout.size)
    block = layout.unflatten(flat)

    for i in range(4):
        for name, tensor in layout.unflatten(flat[i]).items():
            assert torch.equal(block[name][i], tensor)


def test_a_layout_that_starts_with_a_scalar_flattens_blocks() -> None:
    # The batch is read off the first parameter.
    layout = ParameterLayout(("a", "b"), ((), (2,)))
    tensors = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([[2.0, 3.0], [5.0, 6.0]])}

    assert layout.flatten(tensors).tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def test_reading_copies_and_detaches() -> None:
    model = Odd()
    flat = ParameterLayout.of(model).read(model)
    flat.zero_()

    assert not flat.requires_grad
    assert float(model.scalar.detach()) == 2.5


def test_owner_of_every_coordinate_is_named() -> None:
    layout = ParameterLayout.of(Odd())

    assert [layout.owner(i) for i in range(28)] == ["scalar"] + ["vector"] * 3 + ["cube"] * 24
    with pytest.raises(IndexError, match="outside"):
        layout.owner(28)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_digest_does_not_depend_on_a_wider_type(dtype: torch.dtype) -> None:
    flat = torch.randn(50).to(dtype)

    assert digest(flat) == digest(flat.double())


def test_digest_is_sha256_of_little_endian_float64() -> None:
    flat = torch.tensor([1.0, -2.5, 1e-300], dtype=torch.float64)

    assert digest(flat) == hashlib.sha256(struct.pack("<3d", 1.0, -2.5, 1e-300)).hexdigest()


def test_digest_notices_the_last_bit() -> None:
    flat = torch.randn(50, dtype=torch.float64)
    changed = flat.clone()
    changed[31] = torch.nextafter(changed[31], torch.tensor(9.0, dtype=torch.float64))

    assert digest(changed) != digest(flat)


def test_digest_takes_views_and_tensors_with_gradients() -> None:
    flat: Tensor = torch.randn(20, 2, dtype=torch.float64)

    assert digest(flat[:, 0].requires_grad_()) == digest(flat[:, 0].detach().contiguous())
