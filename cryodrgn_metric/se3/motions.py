"""Rigid motions: how they compose, and volumes that are translated or brought to their middle.

A motion (R, t) turns about the origin voxel n // 2, then translates:
(T_t R·V)(x) = V(R^T (x - t)). Translations are (x, y, z) in voxels of the volume's box unless a
name says otherwise.
"""

from __future__ import annotations

from math import pi
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["MOST_TRANSLATION", "composed", "energy_centroids", "inverted", "translated"]

MOST_TRANSLATION = 0.1
"""The largest |t| that --rigid se3 takes out, as a share of the box."""

_Array = TypeVar("_Array", Tensor, np.ndarray)


def composed(first: tuple[_Array, _Array], second: tuple[_Array, _Array]) -> tuple[_Array, _Array]:
    """The motion that does `second`, then `first`: (R1 R2, t1 + R1 t2).

    Arguments:
        first, second: Rotations (..., 3, 3) and translations (..., 3).

    Example:
        >>> there = torch.eye(3), torch.tensor([1.0, 2.0, 3.0])
        >>> composed(there, inverted(*there))[1].tolist()
        [0.0, 0.0, 0.0]
    """
    return first[0] @ second[0], first[1] + (first[0] @ second[1][..., None])[..., 0]


def inverted(rotations: _Array, translations: _Array) -> tuple[_Array, _Array]:
    """The motion back: (R^T, -R^T t)."""
    back = rotations.swapaxes(-1, -2)
    return back, -(back @ translations[..., None])[..., 0]


def energy_centroids(volumes: Tensor) -> Tensor:
    """Where the middle of V^2 lies, which moves as the volume moves.

    Not the centre of mass: the mean of a windowed volume is zero. No farther from the origin than
    `MOST_TRANSLATION`, so that a volume that is brought there stays within reach of its box.

    Arguments:
        volumes: (B, n, n, n), windowed.

    Returns:
        (B, 3) float64, x, y, z in voxels from the origin voxel.
    """
    box = volumes.shape[-1]
    energy = volumes.double().square()
    axis = torch.arange(box, dtype=torch.float64, device=volumes.device) - box // 2
    profiles = [energy.sum(dim=dims) for dims in ((1, 2), (1, 3), (2, 3))]  # along x, y, z
    total = energy.sum(dim=(1, 2, 3)).clamp(min=torch.finfo(torch.float64).tiny)
    centroids = torch.stack([profile @ axis for profile in profiles], dim=1) / total[:, None]
    length = centroids.norm(dim=1, keepdim=True).clamp(min=1e-12)
    result: Tensor = centroids * (MOST_TRANSLATION * box / length).clamp(max=1.0)
    return result


def translated(volumes: Tensor, translations_in_voxels: Tensor) -> Tensor:
    """T_t V by phases, without interpolation; what leaves the box comes back on the other side.

    Arguments:
        volumes: (B, n, n, n) [z, y, x].
        translations_in_voxels: (B, 3), x, y, z.

    Returns:
        New volumes of the same shape, dtype and device.

    Example:
        >>> volume = torch.zeros(1, 8, 8, 8)
        >>> volume[0, 4, 4, 4] = 1.0
        >>> moved = translated(volume, torch.tensor([[1.0, 0.0, -2.0]]))
        >>> bool(torch.isclose(moved[0, 2, 4, 5], torch.tensor(1.0)))
        True
    """
    box = volumes.shape[-1]
    options = {"dtype": volumes.dtype, "device": volumes.device}
    full, half = torch.fft.fftfreq(box, **options), torch.fft.rfftfreq(box, **options)
    x, y, z = translations_in_voxels.to(volumes).unbind(1)
    factors = [
        torch.polar(torch.ones_like(angle), angle)
        for frequencies, along in ((full, z), (full, y), (half, x))
        for angle in [-2 * pi * along[:, None] * frequencies]
    ]
    spectrum = torch.fft.rfftn(volumes, dim=(1, 2, 3))
    spectrum = torch.einsum("bzyx,bz,by,bx->bzyx", spectrum, *factors)
    moved: Tensor = torch.fft.irfftn(spectrum, volumes.shape[1:], dim=(1, 2, 3))
    return moved
