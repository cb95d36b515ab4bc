"""Fourier neural operator: a function on an equispaced periodic grid to another one (Li et al. 2021)."""

# Legend: n functions, m grid points, w channels, k Fourier modes.

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lsr_hpc.models.linear import glorot_linear

__all__ = ["FNO", "SpectralConvolution"]


class SpectralConvolution(nn.Module):
    """Periodic convolution that acts on the lowest Fourier modes alone, each with a complex matrix.

    Args:
        channels: Channels w in and out.
        modes: Modes k = 0 ... modes - 1 that are kept.
    """

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        real, imaginary = torch.rand(2, channels, channels, modes) / channels
        self.weight = nn.Parameter(torch.complex(real, imaginary))

    def forward(self, v: Tensor) -> Tensor:
        """Map (n, w, m) to (n, w, m); m at least 2 (modes - 1)."""
        spectrum = torch.fft.rfft(v)[..., : self.modes]
        out: Tensor = torch.fft.irfft(torch.einsum("nik,iok->nok", spectrum, self.weight), v.shape[-1])
        return out


class FNO(nn.Module):
    """Lifting, spectral layers with a pointwise linear path beside each, projection.

    No coordinates are fed in, so that it commutes with shifts along the period.

    Args:
        channels: Channels w.
        modes: Fourier modes of every spectral layer.
        layers: Spectral layers; GELU between them.
        hidden: Width of the projection's hidden layer.
    """

    def __init__(self, channels: int, modes: int, layers: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self.lifting = glorot_linear(1, channels)
        self.spectral = nn.ModuleList(SpectralConvolution(channels, modes) for _ in range(layers))
        self.pointwise = nn.ModuleList(glorot_linear(channels, channels) for _ in range(layers))
        self.projection = nn.Sequential(glorot_linear(channels, hidden), nn.GELU(), glorot_linear(hidden, 1))

    def forward(self, u: Tensor) -> Tensor:
        """Map functions on the grid, (n, m), to functions on the grid, (n, m)."""
        v: Tensor = self.lifting(u.unsqueeze(-1))
        for i, (spectral, pointwise) in enumerate(zip(self.spectral, self.pointwise, strict=True)):
            v = spectral(v.mT).mT + pointwise(v)
            if i < len(self.spectral) - 1:
                v = functional.gelu(v)
        out: Tensor = self.projection(v).squeeze(-1)
        return out
