"""Networks of the shipped problems, in plain torch.

:data:`ARCHITECTURES` maps the names that stored predictors use to their classes, so that a predictor is
rebuilt from its JSON description without unpickling or importing anything else.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lsr_hpc.models.classifier import Classifier
from lsr_hpc.models.deeponet import BoundDeepONet, DeepONet
from lsr_hpc.models.fno import FNO
from lsr_hpc.models.mlp import MLP
from lsr_hpc.models.modified_mlp import ModifiedMLP
from lsr_hpc.models.multionet import MultiONet

__all__ = [
    "ARCHITECTURES",
    "FNO",
    "MLP",
    "BoundDeepONet",
    "Classifier",
    "DeepONet",
    "ModifiedMLP",
    "MultiONet",
]

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "classifier": Classifier,
    "mlp": MLP,
    "modified_mlp": ModifiedMLP,
    "deeponet": DeepONet,
    "bound_deeponet": BoundDeepONet,
    "multionet": MultiONet,
    "fno": FNO,
}
