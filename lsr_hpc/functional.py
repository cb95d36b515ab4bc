"""A float64 functional copy of a user's network: outputs as a function of the flat parameter vector.

The user's module is copied, never modified; everything that decides accuracy runs in float64.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lsr_hpc.autodiff import push_forward
from lsr_hpc.errors import JobError
from lsr_hpc.params import ParameterLayout
from lsr_hpc.precision import module_in_precision
from lsr_hpc.problem import Field

__all__ = ["FunctionalModel", "TangentModel"]

# Modules whose training mode mixes rows of a batch or draws random numbers.
_BATCH_DEPENDENT = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class FunctionalModel:
    """Network as a function of its flat parameters, in float64.

    Args:
        model: The trained network; copied.
        device: Where the copy lives.

    Attributes:
        layout: Order of the flat parameter vector.
        theta0: The trained state, shape (P,), float64, on ``device``.
        device: Where the copy lives.

    Raises:
        JobError: If a dropout or batch-norm layer is in training mode.
    """

    def __init__(self, model: nn.Module, device: torch.device | str = "cpu") -> None:
        for name, module in model.named_modules():
            if isinstance(module, _BATCH_DEPENDENT) and module.training:
                raise JobError(
                    f"layer {name!r} ({type(module).__name__}) is in training mode, so the residual is not "
                    "a fixed function of the parameters: call model.eval() first"
                )
        self.device = torch.device(device)
        self.layout = ParameterLayout.of(model)
        # In evaluation mode, like the predictor: the two must be one function.
        self._module = module_in_precision(copy.deepcopy(model), torch.float64).to(self.device).eval()
        for parameter in self._module.parameters():
            parameter.requires_grad_(False)
        self._own = dict(self._module.named_parameters(remove_duplicate=False))
        self.theta0 = self.layout.read(self._module)
        self._theta0_tensors = self.layout.unflatten(self.theta0)

    def at(self, theta: Tensor) -> FunctionalModel:
        """The same network at another state; the two share everything but the state.

        Args:
            theta: Shape (P,); its numbers are taken over as float64.

        Returns:
            The network whose ``theta0`` is ``theta``.
        """
        moved = copy.copy(self)
        moved.theta0 = theta.detach().to(self.device, torch.float64).clone()
        moved._theta0_tensors = self.layout.unflatten(moved.theta0)
        return moved

    def in_precision(self, dtype: torch.dtype) -> FunctionalModel:
        """The same network in another precision, for work that does not decide accuracy.

        Args:
            dtype: ``torch.float32`` or ``torch.float64``.

        Returns:
            This model for float64, a converted copy otherwise.
        """
        if dtype == torch.float64:
            return self
        # A layer with two names keeps what torch has bound to it in an earlier call.
        for name, parameter in self._own.items():
            layer, _, leaf = name.rpartition(".")
            self._module.get_submodule(layer)._parameters[leaf] = parameter
        converted = copy.copy(self)
        converted._module = module_in_precision(copy.deepcopy(self._module), dtype)
        converted._own = dict(converted._module.named_parameters(remove_duplicate=False))
        converted.theta0 = self.theta0.to(dtype)
        converted._theta0_tensors = self.layout.unflatten(converted.theta0)
        return converted

    def field_of_tensors(self, tensors: dict[str, Tensor]) -> Field:
        """Bind named parameters; what is not named keeps its value.

        Args:
            tensors: Real tensors of the layout by name (tangents and batches of ``torch.func`` allowed).

        Returns:
            The network as a function of its inputs.
        """

        def field(*inputs: Tensor) -> Tensor:
            output: Tensor = functional_call(self._module, self.layout.parameters_of(tensors), inputs)
            if not isinstance(output, Tensor):
                raise JobError(
                    f"the network returns a {type(output).__name__}: wrap it in a module that returns one "
                    "tensor"
                )
            if output.is_complex():
                raise JobError(
                    f"the network returns {output.dtype}: let it return real numbers, such as real and "
                    "imaginary parts by torch.view_as_real"
                )
            return output

        return field

    def field(self, theta: Tensor | None = None) -> Field:
        """Bind a flat parameter vector.

        Args:
            theta: Shape (P,); None binds theta0.

        Returns:
            The network as a function of its inputs.
        """
        return self.field_of_tensors(self._theta0_tensors if theta is None else self.layout.unflatten(theta))

    def refined_field(self, delta: Tensor) -> Field:
        """The refined linear predictor ``u(x; theta0) + [du/dtheta](x) delta``.

        Args:
            delta: Parameter correction, shape (P,).

        Returns:
            A function of the inputs; differentiable in them.
        """
        return TangentModel(self, delta).field()

    def layer_of(self, parameter: str) -> str:
        """Words for the layer that a parameter belongs to.

        Args:
            parameter: Name of the parameter.

        Returns:
            Such as ``"layer 'branch.0', a Linear"``, or ``"of the network itself"``.
        """
        layer = parameter.rpartition(".")[0]
        kind = type(self._module.get_submodule(layer)).__name__
        return f"layer {layer!r}, a {kind}" if layer else f"of the network itself, a {kind}"

    @property
    def theta0_tensors(self) -> dict[str, Tensor]:
        """The trained state as named tensors (views of ``theta0``)."""
        return self._theta0_tensors


class TangentModel(FunctionalModel):
    """The refined predictor as a function of the correction: affine, ``delta -> u(theta0) + G delta``.

    Args:
        model: The network at theta0.
        delta: Correction to start from, shape (P,); it takes the part of ``theta0``.
    """

    def __init__(self, model: FunctionalModel, delta: Tensor) -> None:
        self.__dict__.update(model.__dict__)
        self._network = model
        self.theta0 = delta
        self._theta0_tensors = self.layout.unflatten(delta)

    def field_of_tensors(self, tensors: dict[str, Tensor]) -> Field:
        """Bind named corrections.

        Args:
            tensors: Corrections by name of the parameter (tangents and batches of ``torch.func`` allowed).

        Returns:
            The refined predictor as a function of its inputs; differentiable in them.
        """
        network = self._network

        def field(*inputs: Tensor) -> Tensor:
            value, correction = push_forward(
                lambda at: network.field_of_tensors(at)(*inputs), network.theta0_tensors, tensors
            )
            return value + correction

        return field
