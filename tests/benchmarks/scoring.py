"""||V1 - R·V2|| for any R, by a route of its own: no expansion, no interpolation, float64.

Every rotation, whoever found it, is scored here, so nobody is judged by his own arithmetic.
"""

import finufft
import numpy as np
from scipy.spatial.transform import Rotation


def distance(first, second, rotation):
    """The voxel L2 norm of V1 - R·V2 within the Fourier ball |k| <= n/2 - 1.

    F_{R·V}(k) = F_V(R^T k), summed over the integer k of the ball; `rotation` acts on (x, y, z).
    """
    box = first.shape[0]
    frequencies = _ball(box)
    # k @ R is R^T k for every row k
    difference = _transform(first, frequencies) - _transform(second, frequencies @ rotation)
    return np.linalg.norm(difference) / box**1.5


def angle_between(first, second):
    """Degrees by which two rotation matrices differ."""
    return np.degrees(Rotation.from_matrix(first @ np.transpose(second)).magnitude())


def _ball(box):
    axis = np.arange(box, dtype=float) - box // 2
    x, y, z = np.meshgrid(axis, axis, axis)
    frequencies = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)
    return frequencies[np.linalg.norm(frequencies, axis=1) <= box / 2 - 1]


def _transform(volume, frequencies):
    """sum over voxels x of V(x) exp(-2 pi i k·x / n), x from the origin voxel, for every k."""
    x, y, z = 2 * np.pi / volume.shape[0] * frequencies.T
    modes = volume.astype(complex)
    # The array's axes are z, y, x; modeord 0 puts its origin at voxel n // 2.
    return finufft.nufft3d2(*map(np.ascontiguousarray, (z, y, x)), modes, eps=1e-12, isign=-1)
