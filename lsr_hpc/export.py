"""The refined predictor for programs without lsr_hpc: as a graph of plain operations, and as ONNX.

Forward mode writes the number of points into the graph, so the correction is taken by two reverse passes:

    J^T u is linear in u, and the transpose of u -> J^T u applied to delta is J delta.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lsr_hpc.autodiff import pull_back
from lsr_hpc.errors import EnvironmentProblem, JobError
from lsr_hpc.predictor import RefinedPredictor
from lsr_hpc.publish import publish_file

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["export_onnx", "exported"]

# Relative difference from the predictor above which an exported one is refused.
_LARGEST_DIFFERENCE = 1e-6


def exported(predictor: RefinedPredictor, *inputs: Tensor) -> ExportedProgram:
    """The predictor as a program of ``torch.export`` that takes any number of points.

    Args:
        predictor: The predictor.
        *inputs: An example of its inputs, each (n, ...) with n > 1; their dtypes are those of the program.

    Returns:
        The program; ``torch.export.save`` stores it.

    Raises:
        JobError: If the network cannot be traced, or is not the same function of any other number of points.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    twice = tuple(torch.cat([x, x]) for x in inputs)
    try:
        graph = make_fx(_ByReverseMode(predictor), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
            *inputs
        )
        any_number = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
        program = torch.export.export(graph, inputs, dynamic_shapes=any_number)
        values = program.module()(*twice)
    except Exception as error:
        raise JobError(
            f"the network cannot be exported for any number of points: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    _require_equal(values, predictor(*twice).detach(), "the exported program")
    return program


def export_onnx(predictor: RefinedPredictor, path: str | Path, *inputs: Tensor) -> float:
    """Store the predictor as ONNX, and compare it under onnxruntime.

    Args:
        predictor: The predictor; ``predictor.float()`` for a single-precision one.
        path: File to write.
        *inputs: An example of its inputs, as for :func:`exported`.

    Returns:
        Largest difference from the predictor over its largest value, at the example's points.

    Raises:
        JobError: If it cannot be exported, or differs by more than 1e-6.
        EnvironmentProblem: If onnx, onnxscript or onnxruntime are missing.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(f"{error}: install lsr-hpc[onnx]") from error
    program = exported(predictor, *inputs)
    # Torch tells at length of operations that it does not need here.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    converted = torch.onnx.export(program, (), dynamo=True, verbose=False)
    if converted is None:
        raise JobError("torch.onnx made nothing of the exported program")
    with publish_file(Path(path)) as temporary:
        converted.save(str(temporary))
        try:
            session = onnxruntime.InferenceSession(str(temporary))
            named = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
            (values,) = session.run(None, named)
        except Exception as error:
            raise JobError(
                f"onnxruntime does not run it ({' '.join(str(error).split())[:200]}): try predictor.float(), "
                "since some operations have single-precision kernels only"
            ) from error
        return _require_equal(torch.from_numpy(values), predictor(*inputs).detach(), "the ONNX model")


class _ByReverseMode(nn.Module):
    """The same function as the predictor, in operations that know no forward mode."""

    def __init__(self, predictor: RefinedPredictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, *inputs: Tensor) -> Tensor:
        predictor = self.predictor
        delta = predictor.delta
        inputs = tuple(x.to(delta.dtype) if x.is_floating_point() else x for x in inputs)
        value, transposed = pull_back(lambda at: predictor.network_at(at, inputs), predictor.theta0())
        again: Any = torch.func.vjp(transposed, torch.zeros_like(value))[1]
        refined: Tensor = value + again(predictor.layout.unflatten(delta))[0]
        return refined


def _require_equal(values: Tensor, expected: Tensor, what: str) -> float:
    difference = float((values - expected).abs().max() / expected.abs().max().clamp_min(sys.float_info.min))
    if not difference <= _LARGEST_DIFFERENCE:
        raise JobError(f"{what} differs from the predictor by {difference:.1e} of its largest value")
    return difference
