"""The solvent around a molecule: its level, and how much it varies."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from cryodrgn_metric.so3.conventions import WINDOW_RADIUS, radial_distances

__all__ = ["sd_below", "solvent_level"]

_SD_OF_MEDIAN = 1.4826  # of a normal distribution, over the median of what lies on one side
_CLIPPED_FROM = 3.0  # standard deviations above the level
_CLIPPINGS = 5


def solvent_level(volume: Tensor) -> Tensor:
    """The median density within the sphere, the molecule clipped away.

    What lies 3 standard deviations above the level is left out, and the level taken again.

    Arguments:
        volume: (n, n, n).

    Returns:
        One number; NaN if the volume holds NaN.
    """
    voxels = volume.flatten()[_sphere(volume.shape[-1]).to(volume.device)]
    level = voxels.median()
    for _ in range(_CLIPPINGS):
        limit = level + _CLIPPED_FROM * sd_below(voxels, level)
        voxels = voxels[~(voxels > limit)]
        level = voxels.median()
    return level


def sd_below(voxels: Tensor, level: Tensor) -> Tensor:
    """The solvent's standard deviation by what lies below its level, where no molecule is.

    Arguments:
        voxels: Densities, any number of them.
        level: As from `solvent_level`.
    """
    below = level - voxels[voxels < level]
    return _SD_OF_MEDIAN * below.median() if len(below) else torch.zeros_like(level)


@lru_cache(maxsize=4)
def _sphere(box: int) -> Tensor:
    """Where the level is read, whatever the mask: a mask may hold no solvent. (n^3,) bool"""
    return (radial_distances(box) < WINDOW_RADIUS * box / 2).flatten()
