"""The response modes of a source: directions V, and the channels of G V at all points, computed by all ranks.

They are a :class:`~lsr_hpc.snapshot.Snapshot`, cut along parameters and channel values, so that they can be
kept and read on any number of ranks. Nothing in them depends on the data of a condition but the choice of V.
"""

# Legend: k directions V, l <= k of them turned to singular directions of J V; E channel values per point.

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lsr_hpc.channels import ChannelSegment, NoChannels, find_channels, survey_channels
from lsr_hpc.comm import agree, on_first
from lsr_hpc.errors import JobError
from lsr_hpc.functional import FunctionalModel
from lsr_hpc.jacobian.probe import probe_block
from lsr_hpc.least_squares.reduced import reduce_rows
from lsr_hpc.oneshot import make_basis, start_residual
from lsr_hpc.phases import Phases
from lsr_hpc.prepare import PreparedProblem
from lsr_hpc.problem import Problem, ResidualBlock
from lsr_hpc.response import channel_modes, room_for_modes
from lsr_hpc.rows import FitAndHeld, Segment
from lsr_hpc.settings import RefineSettings
from lsr_hpc.snapshot import Cut, Snapshot
from lsr_hpc.solve import singular_cut

__all__ = ["compute_modes", "digest_of_modes", "no_channels"]

Array = NDArray[np.float64]

# Points of each block at which the digest looks at what the residual takes of the network.
_SURVEYED = 16


def compute_modes(prepared: PreparedProblem, phases: Phases) -> Snapshot:
    """Directions from the Jacobian of the source, and the channels that they cause.

    Args:
        prepared: The source.
        phases: Clock.

    Returns:
        Arrays ``directions`` (l, P), and for ``fit`` and ``held`` rows ``.start`` (values,) and ``.modes``
        (l, values), blocks in order, E values per point; values ``widths`` (E by block), ``singular_values``
        (of J V, those of the l directions), ``basis`` and ``jacobian`` (how they were made).

    Raises:
        JobError: If the residual cannot be used, has no channels, or the modes do not fit into the memory.

    Collective: all ranks; as for a refinement, and a block product of k columns with the channels.
    """
    comm, settings = prepared.comm, prepared.settings
    with phases("prepare"):
        r0 = agree(comm, lambda: start_residual(prepared))
        segments = agree(comm, lambda: _channels(prepared))
        widths = _agreed_widths(prepared, segments)
        _require_room(prepared, segments)
    with phases("basis"):
        basis = make_basis(prepared, r0)
    with phases("jacobian"):
        av = basis.image or FitAndHeld(
            prepared.jacobian.jv(basis.v_local), prepared.held_jacobian.jv(basis.v_local)
        )
    with phases("solve"):
        # Singular directions, largest first: the leading ones are the space of a smaller rank.
        reduced = reduce_rows(comm, av.fit, r0.fit, prepared.fit_rows.n_rows)
        rotation, singular_values = on_first(
            comm, lambda: reduced.singular_directions(singular_cut(settings.solver))
        )
        del av
    with phases("modes"):
        start, modes = (t.cpu().numpy() for t in channel_modes(prepared, segments, basis.v_local, rotation))
    n_fit = sum(s.segment.n_points * s.width for s in segments[: len(prepared.fit.segments)])
    lo, _ = prepared.jacobian.my_parameters
    arrays = {
        "directions": Cut(
            np.ascontiguousarray(rotation.T @ basis.v_local), lo, prepared.jacobian.local.n_parameters
        )
    }
    for name, there in (("fit", slice(None, n_fit)), ("held", slice(n_fit, None))):
        n_values = comm.allgather(len(start[there]))
        first, n_global = sum(n_values[: comm.rank]), sum(n_values)
        arrays[f"{name}.start"] = Cut(start[there], first, n_global)
        arrays[f"{name}.modes"] = Cut(modes[:, there], first, n_global)
    return Snapshot(
        arrays,
        {
            "widths": dict(widths),
            "singular_values": singular_values[: rotation.shape[1]].tolist(),
            "basis": basis.detail,
            "jacobian": prepared.representation.name,
        },
    )


def no_channels(block: str, reason: object) -> JobError:
    """The error of a residual that modes cannot serve.

    Args:
        block: Name of its block.
        reason: Why.

    Returns:
        The error.
    """
    return JobError(
        f"residual block {block!r} cannot be transferred: {reason}; write it with torch.func.jvp "
        "(lsr_hpc.derivatives) at its own points"
    )


def _channels(prepared: PreparedProblem) -> list[ChannelSegment]:
    found = []
    for segment in (*prepared.fit.segments, *prepared.held.segments):
        try:
            found.append(find_channels(segment, prepared.model, of_linear_rows=True))
        except NoChannels as reason:
            raise no_channels(segment.block.name, reason) from reason
    return found


def _agreed_widths(prepared: PreparedProblem, segments: list[ChannelSegment]) -> dict[str, int]:
    """E by block; a rank without points of a block does not know it."""
    own = {(s.segment.block.name, s.width) for s in segments}
    found = sorted(set(chain.from_iterable(prepared.comm.allgather(own))))
    widths = dict(found)
    if len(widths) < len(found):
        twice = next(name for name, width in found if widths[name] != width)
        raise JobError(
            f"residual block {twice!r} takes different derivatives of the network at different points: make "
            "two blocks of it",
            on_every_rank=True,
        )
    return widths


def _require_room(prepared: PreparedProblem, segments: list[ChannelSegment]) -> None:
    comm, rank = prepared.comm, prepared.settings.subspace.rank
    n_values = max(comm.allgather(sum(s.segment.n_points * s.width for s in segments)))
    needed, room = 8 * (rank + 1) * n_values, min(comm.allgather(room_for_modes(prepared)))
    if needed > room:
        raise JobError(
            f"compute.memory_per_rank = {prepared.settings.compute.memory_per_rank!r} leaves "
            f"{max(room, 0) / 2**20:.0f} MiB for response modes of {needed / 2**20:.0f} MiB per rank: raise "
            f"it, start more ranks, or lower subspace.rank = {rank}",
            on_every_rank=True,
        )


def digest_of_modes(source: Problem, settings: RefineSettings) -> str:
    """Digest of all that the modes of a source follow from; not collective.

    Args:
        source: The source.
        settings: The job's settings.

    Returns:
        SHA-256 over the network, its weights, points and data of the source, what the residual takes of the
        network, and the settings that choose directions and held-out rows.

    Raises:
        JobError: If the residual has no channels.
    """
    content = hashlib.sha256()
    words = {
        "network": str(source.model),
        "subspace": asdict(settings.subspace),
        "held_out": asdict(settings.held_out),
        "cut": singular_cut(settings.solver),
    }
    content.update(json.dumps(words, sort_keys=True).encode())
    _add(content.update, source.model.state_dict())
    model = FunctionalModel(source.model)
    for block in (*source.blocks, *source.validation):
        content.update(json.dumps([block.name, block.weight, block.hold_out]).encode())
        tensors = block.take(np.arange(block.n_points))
        _add(content.update, {str(i): tensor for i, tensor in enumerate(tensors)})
        _add_survey(content.update, block, tensors, model)
    return content.hexdigest()


def _add_survey(
    add: Callable[[bytes], None], block: ResidualBlock, tensors: Iterable[Tensor], model: FunctionalModel
) -> None:
    some = tuple(t[:_SURVEYED] for t in tensors)
    try:
        found = survey_channels(Segment(block, probe_block(block, model), some, 1.0), model)
    except NoChannels as reason:
        raise no_channels(block.name, reason) from reason
    add(json.dumps([found.derivatives, [list(place.shape) for place in found.places]]).encode())
    _add(add, {str(i): place for i, place in enumerate(found.places)})


def _add(add: Callable[[bytes], None], tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous().numpy()
        add(f"{name} {values.dtype} {values.shape} ".encode())
        add(values.tobytes())
