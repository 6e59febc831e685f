"""k-means in z', in the manner and the formats of cryoDRGN's own analysis."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import leaves_list, linkage
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from cryodrgn_metric.config import ClusterConfig
from cryodrgn_metric.errors import ArgumentError

__all__ = ["Clusters", "cluster_kmeans"]

MOST_FITTED = 100_000  # particles that k-means sees; the others are assigned


@dataclass(frozen=True)
class Clusters:
    r"""Clusters of z', each represented by a particle.

    Arguments:
        labels: The cluster of each particle, from 0, as in ``labels.pkl``. :math:`(N,)` int32
        centers: z' of the representatives; ``centers.txt`` holds their z. :math:`(K, d')` float32
        centers_ind: Rows of z of the representatives, each once. :math:`(K,)` int64.
            ``centers_ind.txt`` holds rows, too, not numbers in the original stack: cryoDRGN's
            notebooks index z with it.
    """

    labels: npt.NDArray[np.int32]
    centers: npt.NDArray[np.float32]
    centers_ind: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.centers_ind)


def cluster_kmeans(
    z: npt.ArrayLike, config: ClusterConfig = ClusterConfig(), seed: int = 0
) -> Clusters:
    r"""Divides z' into K clusters, in agglomerative order, with particles as centres.

    k-means minimises :math:`\sum_i \min_k \|z'_i - c_k\|^2`; as in
    ``cryodrgn.analysis.cluster_kmeans`` each centre is then moved to its nearest particle (of
    its own cluster, so that no particle stands for two), and the clusters are renumbered by the
    leaf order of an average-linkage tree of the centres: near numbers are similar structures.

    Arguments:
        z: Transformed latents, in units of Delta. :math:`(N, d')`
        config: The number of clusters; fewer where z' has fewer distinct points.
        seed: The seed of k-means and of the particles it is fitted on.

    Returns:
        Labels of all particles, and the representatives.

    Raises:
        ArgumentError: If z is not a finite, non-empty (N, d') array.

    References:
        | Lloyd's k-means, k-means++ (Arthur & Vassilvitskii, 2007), SODA '07
        | cryoDRGN (Zhong et al., 2021), doi:10.1038/s41592-020-01049-4

    Example:
        >>> found = cluster_kmeans([[0.0], [0.1], [9.0], [9.1]], ClusterConfig(count=2))
        >>> bool(found.labels[0] == found.labels[1] != found.labels[2] == found.labels[3])
        True
    """
    points = np.ascontiguousarray(z, dtype=np.float32)
    if points.ndim != 2 or len(points) == 0 or not np.isfinite(points).all():
        raise ArgumentError(f"z must be a finite array (N, d'); got shape {points.shape}.")
    labels, centers = _kmeans(points, config.count, seed)
    rows = np.array([_representative(points, labels, centers, k) for k in np.unique(labels)])
    rows = rows[_agglomerative_order(points[rows])]
    rank = np.zeros(len(centers), dtype=np.int32)
    rank[labels[rows]] = np.arange(len(rows), dtype=np.int32)
    return Clusters(rank[labels], points[rows], rows)


def _representative(
    points: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    centers: npt.NDArray[np.float32],
    label: int,
) -> int:
    members = np.flatnonzero(labels == label)
    squares = np.square(points[members] - centers[label], dtype=np.float64).sum(axis=1)
    return int(members[np.argmin(squares)])


def _kmeans(
    points: npt.NDArray[np.float32], count: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    n = len(points)
    fitted = points if n <= MOST_FITTED else points[rng.choice(n, MOST_FITTED, replace=False)]
    distinct = np.unique(fitted, axis=0)
    kmeans = KMeans(min(count, len(distinct)), n_init=1, max_iter=100, random_state=seed)
    with threadpool_limits(1):  # scikit-learn's threads add up in any order: not the same bits
        kmeans.fit(fitted)
    labels = np.asarray(kmeans.predict(points), dtype=np.int64)
    return labels, np.asarray(kmeans.cluster_centers_, dtype=np.float32)


def _agglomerative_order(centers: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    if len(centers) < 3:
        return np.argsort(centers[:, 0], kind="stable").astype(np.int64)
    tree = linkage(centers.astype(np.float64), method="average")
    return np.asarray(leaves_list(tree), dtype=np.int64)
