"""Reach: which particles lie where landmarks taught h_psi, and which lie beyond."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from cryodrgn_metric.errors import ArgumentError

__all__ = ["Reach", "landmark_reach"]

FARTHEST = 0.99  # quantile of the landmarks' own gaps


@dataclass(frozen=True)
class Reach:
    r"""How far each particle is from what was measured, in standard deviations of z.

    Arguments:
        distances: To the nearest training landmark. :math:`(N,)` float32
        limit: The distance from which on a particle counts as outside.
        is_outside: Whether it does. :math:`(N,)`
    """

    distances: npt.NDArray[np.float32]
    limit: float
    is_outside: npt.NDArray[np.bool_]


def landmark_reach(latents: npt.ArrayLike, training_rows: npt.ArrayLike) -> Reach:
    r"""Finds particles whose z' is extrapolated: no training landmark is near.

    Every column of z is divided by its standard deviation, as h_psi does. The limit is the 99th
    percentile of the distances of training landmarks to their nearest fellow: a particle is
    outside if it is farther from all of them than 99 % of them are from each other. If particles
    come like landmarks, that happens to 1 % of them; landmarks that are spread evenly (k-means)
    leave fewer outside; many more outside means regions that no landmark covers.

    Arguments:
        latents: Of all particles. :math:`(N, d)`
        training_rows: Rows of z of the landmarks that trained h_psi, at least 2. :math:`(T,)`

    Returns:
        The distance of each particle, and whether it is outside; no training landmark is.

    Raises:
        ArgumentError: If latents are not a finite (N, d) array, or rows are out of range or
            fewer than 2.

    Example:
        >>> z = np.append(np.linspace(0, 1, 101), 5.0)[:, None]
        >>> np.flatnonzero(landmark_reach(z, np.arange(0, 101, 10)).is_outside)
        array([101])
    """
    z = np.asarray(latents, dtype=np.float64)
    rows = np.unique(np.asarray(training_rows, dtype=np.int64))
    if z.ndim != 2 or not np.isfinite(z).all():
        raise ArgumentError(f"expected finite latents (N, d); got shape {z.shape}.")
    if len(rows) < 2 or rows[0] < 0 or rows[-1] >= len(z):
        raise ArgumentError(f"expected at least 2 training rows in 0..{len(z) - 1}; got {rows}.")
    spread = z.std(axis=0)
    scaled = z / np.where(spread > 0, spread, 1)
    tree = cKDTree(scaled[rows])
    gaps = tree.query(scaled[rows], k=2)[0][:, 1]  # the nearest of all is itself
    limit = float(np.quantile(gaps, FARTHEST))
    distances = tree.query(scaled)[0]
    return Reach(distances.astype(np.float32), limit, np.asarray(distances > limit))
