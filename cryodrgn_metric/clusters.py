"""Clusters of z': k-means as cryoDRGN does it, HDBSCAN, and what the report says of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial import cKDTree
from sklearn.cluster import HDBSCAN, KMeans
from threadpoolctl import threadpool_limits

from cryodrgn_metric.artifacts import remove_files, save_pickle
from cryodrgn_metric.config import ClusterConfig
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.metric_folder import MetricFolder

__all__ = [
    "ClusterSummary",
    "Clusters",
    "cluster_hdbscan",
    "cluster_kmeans",
    "describe_clusters",
    "write_members",
]

MOST_FITTED = 100_000  # particles that k-means sees; the others are assigned
MOST_LINKED = 20_000  # particles that HDBSCAN sees, whose time grows with their square
LEAST_SHARE = 0.01  # of the particles that HDBSCAN sees, in a cluster
FEWEST_MEMBERS = 10
NO_CLUSTER = -1


IntArray = npt.NDArray[np.int64]


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
    points = _checked(z)
    labels, centers = _kmeans(points, config.count, seed)
    rows = np.array([_representative(points, labels, centers, k) for k in np.unique(labels)])
    rows = rows[_agglomerative_order(points[rows])]
    rank = np.zeros(len(centers), dtype=np.int32)
    rank[labels[rows]] = np.arange(len(rows), dtype=np.int32)
    return Clusters(rank[labels], points[rows], rows)


def cluster_hdbscan(
    z: npt.ArrayLike, seed: int = 0, min_cluster_size: int | None = None
) -> npt.NDArray[np.int32]:
    r"""Finds clusters as regions of high density in z', however many there are.

    HDBSCAN is fitted on at most 20,000 particles, drawn at random; every other particle takes
    the label, or the absence of one, of the nearest of these. Where z' is one continuum, most
    particles have none.

    Arguments:
        z: Transformed latents, in units of Delta. :math:`(N, d')`
        seed: The seed of the sample.
        min_cluster_size: The least number of fitted particles that are a cluster; default: 1 %
            of them, and at least 10.

    Returns:
        Labels from 0, the largest cluster first; -1 where the density is too low. :math:`(N,)`

    Raises:
        ArgumentError: If z is not a finite, non-empty (N, d') array.

    References:
        HDBSCAN (Campello, Moulavi & Sander, 2013), doi:10.1007/978-3-642-37456-2_14

    Example:
        >>> z = np.concatenate([np.linspace(0, 1, 60), np.linspace(9, 10, 40)])[:, None]
        >>> labels = cluster_hdbscan(z)
        >>> np.bincount(labels).tolist()
        [60, 40]
    """
    points = _checked(z)
    total = len(points)
    fitted = np.arange(total)
    if total > MOST_LINKED:
        fitted = np.sort(np.random.default_rng(seed).choice(total, MOST_LINKED, replace=False))
    size = min_cluster_size or max(FEWEST_MEMBERS, round(LEAST_SHARE * len(fitted)))
    if size > len(fitted):
        return np.full(total, NO_CLUSTER, dtype=np.int32)
    with threadpool_limits(1):
        # allow_single_cluster would take two blobs 7 deviations apart, in four dimensions, for one
        model = HDBSCAN(min_cluster_size=size, copy=True)
        found = model.fit_predict(points[fitted].astype(np.float64))
    labels = found[cKDTree(points[fitted]).query(points)[1]] if len(fitted) < total else found
    return _largest_first(labels)


def _largest_first(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    counts = np.bincount(labels[labels >= 0]) if (labels >= 0).any() else np.zeros(0, int)
    rank = np.empty(len(counts) + 1, dtype=np.int32)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts), dtype=np.int32)
    rank[-1] = NO_CLUSTER  # where the label -1 points to
    return rank[labels]


@dataclass(frozen=True)
class ClusterSummary:
    """What the report says of one cluster.

    Arguments:
        label: From 0, as in labels.pkl.
        particles: How many.
        share: Of all particles.
        spread: Root mean square distance of its particles from their mean, in Delta.
        medoid: Its representative, by its number in the original stack.
        medoid_row: The same, by its row of z.
    """

    label: int
    particles: int
    share: float
    spread: float
    medoid: int
    medoid_row: int


def describe_clusters(
    z: npt.ArrayLike, clusters: Clusters, particle_indices: npt.ArrayLike
) -> list[ClusterSummary]:
    r"""Says how large and how tight every cluster is, and which particle stands for it.

    Arguments:
        z: Transformed latents, in units of Delta. :math:`(N, d')`
        clusters: As from :func:`cluster_kmeans`.
        particle_indices: Numbers in the original stack. :math:`(N,)`

    Returns:
        One summary a cluster, in the order of their labels.

    Example:
        >>> z = np.array([[0.0], [2.0], [9.0], [11.0]])
        >>> found = describe_clusters(z, cluster_kmeans(z, ClusterConfig(count=2)), [7, 8, 5, 6])
        >>> [(one.particles, one.spread) for one in found]
        [(2, 1.0), (2, 1.0)]
    """
    points, numbers = np.asarray(z, dtype=np.float64), np.asarray(particle_indices)
    summaries = []
    for label, row in enumerate(clusters.centers_ind):
        members = points[clusters.labels == label]
        squares = np.square(members - members.mean(axis=0)).sum(axis=1)
        summaries.append(
            ClusterSummary(
                label=label,
                particles=len(members),
                share=len(members) / len(points),
                spread=float(np.sqrt(squares.mean())),
                medoid=int(numbers[row]),
                medoid_row=int(row),
            )
        )
    return summaries


def write_members(
    folder: MetricFolder, count: int, clusters: Clusters, particle_indices: IntArray
) -> list[Path]:
    """Writes which particles each cluster holds, ready for cryoDRGN's tools.

    ind_cluster<label>.pkl is what `cryodrgn filter` saves: a sorted array of numbers in the
    original stack (of a tilt series: of particles, not of images), which `--ind` of
    `cryodrgn train_vae`, `cryodrgn_utils write_star`, `filter_star`, `write_cs` take.

    Arguments:
        folder: The output folder of the run.
        count: The number of clusters that was asked for, which names the folder.
        clusters: As from :func:`cluster_kmeans`.
        particle_indices: Numbers in the original stack. (N,)

    Returns:
        The files, in the order of the labels; those of an earlier run with more are removed.
    """
    paths = []
    for label in range(len(clusters)):
        members = np.sort(particle_indices[clusters.labels == label])
        paths.append(folder.cluster_members(count, label))
        save_pickle(paths[-1], members.astype(np.int64))
    earlier = folder.kmeans(count).glob("ind_cluster*.pkl")
    remove_files(
        path
        for path in earlier
        if re.fullmatch(r"ind_cluster\d+\.pkl", path.name) and path not in paths
    )
    return paths


def _checked(z: npt.ArrayLike) -> npt.NDArray[np.float32]:
    points = np.ascontiguousarray(z, dtype=np.float32)
    if points.ndim != 2 or len(points) == 0 or not np.isfinite(points).all():
        raise ArgumentError(f"z must be a finite array (N, d'); got shape {points.shape}.")
    return points


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
