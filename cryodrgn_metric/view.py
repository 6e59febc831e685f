"""The flat view of z': what cryoDRGN's tools plot as UMAP1 and UMAP2."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.fidelity import principal_components, umap_of

__all__ = ["view_of"]

MOST_FOR_UMAP = 50_000
NEIGHBORS = 10  # that place a particle which UMAP did not see
# They may be up to twice as far as the nearest are, and are 1 % farther on the average; exact ones
# take 10 times as long where d' = 10: 1,200 s for a million particles, not 110 s (one core).
SLACK = 1.0


def view_of(
    z_metric: npt.ArrayLike, seed: int, skip_umap: bool = False, most: int = MOST_FOR_UMAP
) -> npt.NDArray[np.float32]:
    r"""Two coordinates for every particle: z' itself where it has two, else a UMAP of it.

    Of more than ``most`` particles, a random ``most`` are embedded; each of the others lies at
    the mean of 10 near embedded neighbours in z', weighted by inverse distance:
    :math:`y = \sum_i y_i / d_i \big/ \sum_i 1 / d_i`, or :math:`y_i` where :math:`d_i = 0`.

    Arguments:
        z_metric: Transformed latents. :math:`(N, d')`
        seed: Of UMAP, and of the particles it sees.
        skip_umap: The first two principal components instead of UMAP.
        most: Particles that UMAP sees at most.

    Returns:
        z' if d' = 2, (z', 0) if d' = 1, else the UMAP or the principal components.
        :math:`(N, 2)`

    Raises:
        ArgumentError: If z_metric is not a finite (N, d') array.

    References:
        | UMAP (McInnes et al., 2018), arXiv:1802.03426
        | A two-dimensional interpolation function for irregularly-spaced data (Shepard, 1968),
          doi:10.1145/800186.810616

    Example:
        >>> view_of([[1.0], [3.0]], seed=0).tolist()
        [[1.0, 0.0], [3.0, 0.0]]
    """
    points = np.asarray(z_metric, dtype=np.float64)
    if points.ndim != 2 or 0 in points.shape or not np.isfinite(points).all():
        raise ArgumentError(f"z_metric must be a finite array (N, d'); got shape {points.shape}.")
    if points.shape[1] == 1:
        return np.column_stack([points, np.zeros(len(points))]).astype(np.float32)
    if points.shape[1] == 2:
        return points.astype(np.float32)
    if skip_umap:
        return principal_components(points)[0][:, :2].astype(np.float32)
    return _umap(points, seed, most).astype(np.float32)


def _umap(points: npt.NDArray[np.float64], seed: int, most: int) -> npt.NDArray[np.float64]:
    count = len(points)
    if count <= most:
        return umap_of(points, 2, seed)
    seen = np.sort(np.random.default_rng(seed).choice(count, most, replace=False))
    placed = umap_of(points[seen], 2, seed)
    unseen = np.setdiff1d(np.arange(count), seen)
    view = np.empty((count, 2))
    view[seen] = placed
    view[unseen] = _interpolated(points[unseen], points[seen], placed)
    return view


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
