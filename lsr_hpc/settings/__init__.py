"""Settings of every section of a job: the same frozen dataclasses for the Python API and for job files."""

from lsr_hpc.settings.checks import parse_bytes
from lsr_hpc.settings.iterate import IterateSettings
from lsr_hpc.settings.refine import (
    ComputeSettings,
    HeldOutSettings,
    RefineSettings,
    SolverSettings,
    SubspaceSettings,
)
from lsr_hpc.settings.run import RunSettings
from lsr_hpc.settings.training import TrainingSettings
from lsr_hpc.settings.transfer import TransferSettings

__all__ = [
    "ComputeSettings",
    "HeldOutSettings",
    "IterateSettings",
    "RefineSettings",
    "RunSettings",
    "SolverSettings",
    "SubspaceSettings",
    "TrainingSettings",
    "TransferSettings",
    "parse_bytes",
]
