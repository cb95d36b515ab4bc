"""The refined predictor ``u(x; theta0) + [du/dtheta](x) delta`` as a torch module that can be stored.

It needs torch and safetensors only: no MPI, no PETSc. Evaluation costs one Jacobian-vector product, two to
three forward passes; derivatives with respect to x go through it by ``torch.autograd`` or ``torch.func``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lsr_hpc.autodiff import push_forward
from lsr_hpc.errors import JobError
from lsr_hpc.explaining import in_one_line
from lsr_hpc.models import ARCHITECTURES
from lsr_hpc.params import ParameterLayout
from lsr_hpc.precision import in_precision, module_in_precision
from lsr_hpc.problem import ModelSpec
from lsr_hpc.publish import publish_directory
from lsr_hpc.store import read_manifest, read_tensors, write_manifest, write_tensors

__all__ = ["RefinedPredictor", "load_predictors", "read_predictor_manifest", "save_predictors"]

_SCHEMA = 1
_MANIFEST = "predictor.json"
_THETA0 = "theta0.safetensors"
_KEYS: dict[str, type | tuple[type, ...]] = {
    "architecture": (str, type(None)),
    "arguments": dict,
    "trainable": list,
    "n_instances": int,
    "files": dict,
}
_IF_MISSING = "restore it, or refine again"


class RefinedPredictor(nn.Module):
    """The trained network plus its linear correction.

    Args:
        network: The trained network; copied, converted to float64 and put in evaluation mode.
        delta: Parameter correction, shape (P,), in ``named_parameters`` order of the trainable parameters; of
            complex ones real and imaginary parts in turn.
        spec: How to rebuild the architecture on load; None for a module of your own.

    Raises:
        JobError: If ``delta`` does not fit the network.
    """

    delta: Tensor

    def __init__(self, network: nn.Module, delta: Tensor, spec: ModelSpec | None = None) -> None:
        super().__init__()
        self.layout = ParameterLayout.of(network)
        if delta.shape != (self.layout.size,):
            raise JobError(
                f"delta has shape {tuple(delta.shape)}, the network has {self.layout.size} trainable numbers"
            )
        self.network = module_in_precision(copy.deepcopy(network), torch.float64).eval()
        self.spec = spec
        self.register_buffer("delta", delta.detach().clone().double())
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Evaluate the refined field.

        Args:
            *inputs: Inputs of the network, each (n, ...).

        Returns:
            Refined outputs, (n, C), in the dtype of the predictor (float64 unless converted).
        """
        delta = self.delta
        inputs = tuple(x.to(delta.dtype) if x.is_floating_point() else x for x in inputs)
        value, correction = push_forward(
            lambda tensors: self.network_at(tensors, inputs), self.theta0(), self.layout.unflatten(delta)
        )
        refined: Tensor = value + correction
        return refined

    def theta0(self) -> dict[str, Tensor]:
        """The trained state as the real tensors of the layout."""
        return self.layout.reals_of(dict(self.network.named_parameters()))

    def network_at(self, tensors: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Tensor:
        """The network with other parameters.

        Args:
            tensors: Real tensors of the layout by name (tangents of ``torch.func`` allowed).
            inputs: Its inputs.

        Returns:
            Its outputs.
        """
        value: Tensor = functional_call(self.network, self.layout.parameters_of(tensors), inputs)
        return value

    def float(self) -> Self:
        """Single precision, complex parameters too."""
        return module_in_precision(self, torch.float32)

    def double(self) -> Self:
        """Double precision, complex parameters too."""
        return module_in_precision(self, torch.float64)

    def predict(self, *inputs: Tensor, batch_size: int = 65536) -> Tensor:
        """Evaluate many points in batches, without gradients.

        Args:
            *inputs: Inputs of the network, each (n, ...).
            batch_size: Points evaluated at once.

        Returns:
            Refined outputs, (n, C).
        """
        with torch.no_grad():
            return torch.cat([
                self(*(x[lo : lo + batch_size] for x in inputs))
                for lo in range(0, max(1, inputs[0].shape[0]), batch_size)
            ])

    def save(self, directory: str | Path) -> None:
        """Store the predictor as safetensors and JSON.

        Args:
            directory: Directory to create; an earlier predictor there is kept as ``NAME.previous``.

        Raises:
            JobError: If something else is there, or in the way.
        """
        save_predictors(Path(directory), [self])

    @classmethod
    def load(
        cls, directory: str | Path, instance: int = 0, model: nn.Module | None = None
    ) -> RefinedPredictor:
        """Load one stored predictor.

        Args:
            directory: Directory written by :meth:`save` (``RUN/predictor``).
            instance: Which instance of a family.
            model: A module of the stored architecture, needed for an architecture of your own.

        Returns:
            The predictor.

        Raises:
            JobError: If the files are missing, damaged, or do not fit the architecture.
        """
        path = Path(directory)
        manifest = read_predictor_manifest(path)
        if not 0 <= instance < manifest["n_instances"]:
            raise JobError(
                f"instance {instance} does not exist: {path} holds instances 0 to "
                f"{manifest['n_instances'] - 1}, name one of those"
            )
        return _load_instance(path, manifest, instance, model)


def save_predictors(directory: Path, predictors: Sequence[RefinedPredictor]) -> None:
    """Store the predictors of a family; tensors that all instances share are stored once.

    Args:
        directory: Directory to create; an earlier predictor there is kept as ``NAME.previous``.
        predictors: One predictor per instance, all of one architecture.

    Raises:
        JobError: If something else is there, or in the way.
    """
    first = predictors[0]
    states = [_lossless_float32(p.network.state_dict()) for p in predictors]
    shared = {n: t for n, t in states[0].items() if all(n in s and torch.equal(t, s[n]) for s in states[1:])}
    with publish_directory(directory, _MANIFEST) as target:
        digests = {_THETA0: write_tensors(target / _THETA0, shared)}
        for i, (predictor, state) in enumerate(zip(predictors, states, strict=True)):
            name = _instance_file(i)
            own = {f"state.{n}": t for n, t in state.items() if n not in shared}
            digests[name] = write_tensors(target / name, {"delta": predictor.delta, **own})
        spec = first.spec
        write_manifest(
            target / _MANIFEST,
            {
                "schema": _SCHEMA,
                "kind": "lsr_hpc refined predictor",
                "architecture": None if spec is None else spec.architecture,
                "arguments": {} if spec is None else spec.arguments,
                "trainable": list(first.layout.names),
                "params": first.layout.size,
                "n_instances": len(predictors),
                "files": digests,
            },
        )


def load_predictors(
    directory: Path, model_of: Callable[[int], nn.Module] | None = None
) -> list[RefinedPredictor]:
    """Load every instance of a stored family.

    Args:
        directory: Directory written by :func:`save_predictors`.
        model_of: For an architecture of your own: ``model_of(i)`` is a module of that of instance i.

    Returns:
        The predictors in order.

    Raises:
        JobError: If a file is missing or damaged.
    """
    manifest = read_predictor_manifest(directory)
    return [
        _load_instance(directory, manifest, i, None if model_of is None else model_of(i))
        for i in range(manifest["n_instances"])
    ]


def _instance_file(instance: int) -> str:
    return f"instance-{instance:05d}.safetensors"


def read_predictor_manifest(directory: Path) -> dict[str, Any]:
    """Read ``predictor.json`` and check that it is one this version understands.

    Args:
        directory: Directory written by :func:`save_predictors`.

    Returns:
        Its content.

    Raises:
        JobError: If it is missing, damaged, of another schema, or incomplete.
    """
    path = directory / _MANIFEST
    manifest = read_manifest(path)
    if manifest.get("schema") != _SCHEMA:
        raise JobError(
            f"{directory} has predictor schema {manifest.get('schema')}, this version reads {_SCHEMA}: "
            "use the lsr_hpc version that wrote it"
        )
    for key, kind in _KEYS.items():
        if key not in manifest or not isinstance(manifest[key], kind):
            raise JobError(
                f"{path} has no usable {key!r}: it was not written by `lsr-hpc refine`; make it again"
            )
    n, files = manifest["n_instances"], manifest["files"]
    if not 1 <= n == len(files) - 1 or set(files) != {_THETA0, *map(_instance_file, range(n))}:
        raise JobError(f"{path} names {n} instances, but digests of other files: refine again")
    return manifest


def _load_instance(
    directory: Path, manifest: dict[str, Any], instance: int, model: nn.Module | None
) -> RefinedPredictor:
    spec = None
    if model is None:
        if manifest["architecture"] is None:
            raise JobError(
                f"the predictor in {directory} belongs to a network of your own: pass it as "
                "RefinedPredictor.load(directory, model=your_module)"
            )
        if manifest["architecture"] not in ARCHITECTURES:
            raise JobError(
                f"the predictor in {directory} has architecture {manifest['architecture']!r}, this version "
                f"has {', '.join(ARCHITECTURES)}: use the lsr_hpc version that wrote it"
            )
        spec = ModelSpec(architecture=manifest["architecture"], arguments=manifest["arguments"])
        try:
            model = ARCHITECTURES[spec.architecture](**spec.arguments)
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise JobError(
                f"{directory / _MANIFEST} has arguments that its architecture {spec.architecture!r} refuses "
                f"({type(error).__name__}: {error}): use the lsr_hpc version that wrote it"
            ) from error
    model = module_in_precision(copy.deepcopy(model), torch.float64)
    name = _instance_file(instance)
    state = read_tensors(directory / _THETA0, manifest["files"][_THETA0], _IF_MISSING)
    own = read_tensors(directory / name, manifest["files"][name], _IF_MISSING)
    if "delta" not in own:
        raise JobError(f"{directory / name} holds no correction: refine again")
    delta = own.pop("delta")
    state |= {n.removeprefix("state."): t for n, t in own.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise JobError(
            f"the predictor in {directory} does not fit the given network ({in_one_line(error)}): restore "
            "the network that was refined"
        ) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in manifest["trainable"])
    return RefinedPredictor(model, delta, spec)


def _lossless_float32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Store float64 copies of float32 weights as float32 again where not a bit is lost."""
    stored = {}
    for name, tensor in state.items():
        single = in_precision(tensor, torch.float32)
        is_lossless = single.dtype != tensor.dtype and torch.equal(single.to(tensor.dtype), tensor)
        stored[name] = single if is_lossless else tensor
    return stored
