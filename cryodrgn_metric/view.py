"""The flat view of z': what cryoDRGN's tools plot as UMAP1 and UMAP2."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.reference_spaces import principal_components, umap_of

__all__ = ["umap_view", "view_of"]

MOST_FOR_UMAP = 50_000
NEIGHBORS = 10  # that place a particle which UMAP did not see
# They may be up to twice as far as the nearest are, and are 1 % farther on the average; exact ones
# take 10 times as long where d' = 10: 1,200 s for a million particles, not 110 s (one core).
SLACK = 1.0


def view_of(z_metric: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Two coordinates for every particle: z' itself, or its first two principal components.

    Arguments:
        z_metric: Transformed latents. :math:`(N, d')`

    Returns:
        z' if d' = 2, (z', 0) if d' = 1, else the principal components. :math:`(N, 2)`

    Raises:
        ArgumentError: If z_metric is not a finite (N, d') array.

    Example:
        >>> view_of([[1.0], [3.0]]).tolist()
        [[1.0, 0.0], [3.0, 0.0]]
    """
    points = _checked(z_metric)
    if points.shape[1] == 1:
        return np.column_stack([points, np.zeros(len(points))]).astype(np.float32)
    if points.shape[1] == 2:
        return points.astype(np.float32)
    components: npt.NDArray[np.float32] = principal_components(points)[0][:, :2].astype(np.float32)
    return components


def umap_view(
    z_metric: npt.ArrayLike, seed: int, most: int = MOST_FOR_UMAP
) -> npt.NDArray[np.float32]:
    r"""Two coordinates for every particle, by UMAP.

    Of more than ``most`` particles, a random ``most`` are embedded; each of the others lies at
    the mean of 10 near embedded neighbours in z', weighted by inverse distance:
    :math:`y = \sum_i y_i / d_i \big/ \sum_i 1 / d_i`, or :math:`y_i` where :math:`d_i = 0`.

    Arguments:
        z_metric: Transformed latents. :math:`(N, d')`
        seed: Of UMAP, and of the particles it sees.
        most: Particles that UMAP sees at most.

    Returns:
        The UMAP. :math:`(N, 2)`

    Raises:
        ArgumentError: If z_metric is not a finite (N, d') array.

    References:
        | UMAP (McInnes et al., 2018), arXiv:1802.03426
        | A two-dimensional interpolation function for irregularly-spaced data (Shepard, 1968),
          doi:10.1145/800186.810616

    Example:
        >>> umap_view(np.random.default_rng(0).normal(size=(99, 3)), 0).shape  # doctest: +SKIP
        (99, 2)
    """
    points = _checked(z_metric)
    count = len(points)
    if count <= most:
        return umap_of(points, 2, seed).astype(np.float32)
    seen = np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
    placed = umap_of(points[seen], 2, seed)
    unseen = np.setdiff1d(np.arange(count), seen)
    view = np.empty((count, 2), np.float32)
    view[seen] = placed
    view[unseen] = _interpolated(points[unseen], points[seen], placed)
    return view


def _checked(z_metric: npt.ArrayLike) -> npt.NDArray[np.float64]:
    points = np.asarray(z_metric, dtype=np.float64)
    if points.ndim != 2 or 0 in points.shape or not np.isfinite(points).all():
        raise ArgumentError(f"z_metric must be a finite array (N, d'); got shape {points.shape}.")
    return points


def _interpolated(
    points: npt.NDArray[np.float64],
    known: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """The values of known points at other points, (n, c), weighted by inverse distance."""
    count = range(1, min(NEIGHBORS, len(known)) + 1)
    distances, rows = cKDTree(known).query(points, count, eps=SLACK)
    nearest = distances[:, :1]
    # relative to the nearest, which has weight 1 also at distance 0, where the others have 0
    positive = np.where(distances > 0, distances, 1)
    weights = np.where(distances > nearest, nearest / positive, 1)
    weights /= weights.sum(axis=1, keepdims=True)
    means: npt.NDArray[np.float64] = np.einsum("nk,nkc->nc", weights, values[rows])
    return means
