"""The conventions everything else relies on, in one place (docs/conventions.md says why).

- A volume is a float array [z, y, x] with an even box n and its origin at voxel n // 2.
- Rotations are active: (R·V)(x) = V(R^T x) with x = (x, y, z), R a 3x3 matrix of determinant +1.
- Euler angles are ZYZ in radians: R = Rz(alpha) Ry(beta) Rz(gamma).
- `rotations[i, j]` is the R with V_i ≈ R·V_j, so `rotations[j, i]` is its transpose.
- Before volumes are compared, V <- w (V - c) with a soft spherical window w and
  c = sum(w V) / sum(w): the mean is untrained, and only a sphere can be turned without loss.
- Real spherical harmonics are orthonormal, without the Condon-Shortley phase, and the orders of
  one degree are stored as m = -l .. l (sine, then m = 0, then cosine).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "WINDOW_EDGE",
    "WINDOW_RADIUS",
    "edge_of",
    "mirrored",
    "mirrored_vectors",
    "radial_distances",
    "spherical_window",
    "windowed",
]

WINDOW_RADIUS = 0.85
"""Where the window starts to fall, as a fraction of the half box (cryoDRGN's image window)."""

WINDOW_EDGE = 0.99
"""Where the window reaches zero, as a fraction of the half box."""


def radial_distances(box: int) -> Tensor:
    """Distance of every voxel from the origin voxel n // 2, in voxels: (n, n, n) float64."""
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    return (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()


def spherical_window(box: int, radius: float = WINDOW_RADIUS) -> Tensor:
    """Soft spherical window: 1 inside `radius` · n/2, a cosine to 0 at 0.99 n/2.

    Arguments:
        box: The box n, in voxels.
        radius: Where the fall-off starts, as a fraction of the half box.

    Returns:
        The window, (n, n, n) float64.

    Example:
        >>> w = spherical_window(16)
        >>> float(w[8, 8, 8]), float(w[0, 0, 0])
        (1.0, 0.0)
    """
    half = box / 2
    fall = (radial_distances(box) / half - radius) / (WINDOW_EDGE - radius)
    return 0.5 * (1 + torch.cos(torch.pi * fall.clamp(0, 1)))


def windowed(volumes: Tensor, window: Tensor, level_from: Tensor | None = None) -> Tensor:
    """Window the volumes after their (untrained) mean under the window is removed.

    V <- w (V - c), c = sum(w V) / sum(w), so adding a constant to V changes nothing.

    Arguments:
        volumes: (..., n, n, n), density.
        window: (n, n, n), as from `spherical_window`, or times a mask.
        level_from: Weights of another mean that is c instead, (n, n, n): `edge_of` the window.

    Returns:
        New volumes of the same shape and dtype.
    """
    weights = window.to(volumes)
    of_mean = weights if level_from is None else level_from.to(volumes)
    mean = (volumes * of_mean).sum(dim=(-3, -2, -1), keepdim=True) / of_mean.sum()
    return weights * (volumes - mean)


def edge_of(window: Tensor) -> Tensor:
    """Where a window falls, as weights of a mean: w (1 - w), or w where it falls nowhere.

    A volume whose level at the edge is zero can lie elsewhere in the same window and be moved
    back: nothing steps where the window ends. With the mean of all of it removed, a molecule of
    half the window's radius, moved by 10 % of the box, is off by 14 % of |V|; like this by 0.4 %.

    Arguments:
        window: (n, n, n).
    """
    edge = window * (1 - window)
    return edge if float(edge.sum()) >= 1 else window


def mirrored(rotations: np.ndarray) -> np.ndarray:
    """The same rotations for volumes flipped along z (--flip): M R M with M = diag(1, 1, -1).

    Arguments:
        rotations: (..., 3, 3).

    Returns:
        A new array of the same shape and dtype.
    """
    sign = np.array([1, 1, -1], dtype=rotations.dtype)
    flipped: np.ndarray = rotations * sign[:, None] * sign
    return flipped


def mirrored_vectors(vectors: np.ndarray) -> np.ndarray:
    """The same vectors for volumes flipped along z (--flip): M t with M = diag(1, 1, -1).

    Arguments:
        vectors: (..., 3), x, y, z.

    Returns:
        A new array of the same shape and dtype.
    """
    flipped: np.ndarray = vectors * np.array([1, 1, -1], dtype=vectors.dtype)
    return flipped
