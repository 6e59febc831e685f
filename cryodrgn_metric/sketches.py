"""Sketches of a latent space: a few particles that stand for all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from cryodrgn_metric.errors import ArgumentError

__all__ = ["farthest_sketch", "kmeans_sketch", "largest_cluster_sketch", "nearest_unused"]

IntArray = npt.NDArray[np.int64]

MOST_FITTED = 100_000  # particles that k-means sees


def kmeans_sketch(z: npt.NDArray[np.float64], count: int, rng: np.random.Generator) -> IntArray:
    r"""Finds the particles nearest to k-means centres.

    Arguments:
        z: Latents. :math:`(M, d)`
        count: K, the number of centres; fewer than M.
        rng: Draws the particles that are looked at, at most 100,000, and seeds k-means.

    Returns:
        K distinct rows of z; at random where there are fewer than K distinct latents.

    Example:
        >>> z = np.repeat([[0.0], [5.0]], 10, axis=0)
        >>> sorted(z[kmeans_sketch(z, 2, np.random.default_rng(0)), 0].tolist())
        [0.0, 5.0]
    """
    fitted = z if len(z) <= MOST_FITTED else z[rng.choice(len(z), MOST_FITTED, replace=False)]
    kmeans = KMeans(count, n_init=1, max_iter=30, random_state=int(rng.integers(2**31)))
    distinct = len(np.unique(fitted, axis=0))
    if distinct < count:  # k-means would return equal centres and warn
        return rng.choice(len(z), count, replace=False)
    with threadpool_limits(1):  # scikit-learn's threads add up in any order: not the same bits
        centers = kmeans.fit(fitted).cluster_centers_
    return nearest_unused(z, centers)


def farthest_sketch(
    z: npt.NDArray[np.float64], start: npt.NDArray[np.float64], count: int
) -> IntArray:
    r"""Takes the farthest particle from all that are taken, again and again.

    Arguments:
        z: Latents. :math:`(M, d)`
        start: Latents that are taken already. :math:`(K, d)`
        count: How many are wanted, at most M.

    Returns:
        Distinct rows of z, in the order in which they were taken.

    Example:
        >>> z = np.array([[0.0], [1.0], [2.0], [9.0]])
        >>> farthest_sketch(z, np.array([[0.0]]), 2)
        array([3, 2])
    """
    distances, _ = cKDTree(start).query(z)
    chosen = np.empty(count, dtype=np.int64)
    for step in range(count):
        chosen[step] = np.argmax(distances)
        distances = np.minimum(distances, np.linalg.norm(z - z[chosen[step]], axis=1))
        distances[chosen[step]] = -1.0  # never again, even among duplicates
    return chosen


def largest_cluster_sketch(
    z: npt.NDArray[np.float64],
    start: npt.NDArray[np.float64],
    count: int,
    weights: npt.NDArray[np.float64],
) -> IntArray:
    r"""Takes the farthest particle of the largest cluster, again and again.

    .. math::
        S_k = \sum_{i:\, k(i) = k} w_i^2\, |z_i - z_k|^2, \qquad
        k(i) = \arg\min_k |z_i - z_k|

    Every particle belongs to the nearest that is taken. Largest is the cluster with the largest
    sum S of squared weighted distances; of it, the particle with the largest weighted distance is
    taken. A farthest-first sketch looks at one particle at a time and so ends among outliers;
    a sum says how much is to be learnt.

    Arguments:
        z: Latents. :math:`(M, d)`
        start: Latents that are taken already. :math:`(K, d)`
        count: How many are wanted, at most M.
        weights: By which the distance of each particle is multiplied, not negative. :math:`(M,)`

    Returns:
        Distinct rows of z, in the order in which they were taken.

    References:
        | A framework and benchmark for deep batch active learning for regression (Holzmüller et
          al., 2023), arXiv:2203.09410 (LCMD)

    Example:
        >>> z = np.array([[1.0], [1.1], [1.2], [-1.3]])
        >>> largest_cluster_sketch(z, np.array([[0.9], [-0.1]]), 2, np.array([9.0, 9, 9, 1]))
        array([2, 3])
    """
    distances, nearest = cKDTree(start).query(z)
    sums = np.zeros(len(start) + count)
    left = np.ones(len(z), dtype=bool)
    chosen = np.empty(count, dtype=np.int64)
    for step in range(count):
        weighted = weights * distances
        np.copyto(sums, np.bincount(nearest, weighted**2, minlength=len(sums)))
        # of particles all of whose neighbours coincide with what is taken, any: never one twice
        inside = left & (nearest == np.argmax(sums)) if sums.any() else left
        chosen[step] = np.argmax(np.where(inside, weighted, -1.0))
        left[chosen[step]] = False
        from_new = np.linalg.norm(z - z[chosen[step]], axis=1)
        nearest = np.where(from_new < distances, len(start) + step, nearest)
        distances = np.minimum(distances, from_new)
    return chosen


def nearest_unused(points: npt.ArrayLike, queries: npt.ArrayLike) -> IntArray:
    r"""Finds for each query the nearest point that no earlier query took.

    Arguments:
        points: Where to look. :math:`(M, d)`
        queries: What to look for, at most :math:`M`. :math:`(K, d)`

    Returns:
        :math:`K` distinct rows of ``points``.

    Raises:
        ArgumentError: If there are more queries than points.

    Example:
        >>> nearest_unused([[0.0], [1.0], [5.0]], [[0.1], [0.2]])
        array([0, 1])
    """
    points, queries = np.asarray(points, float), np.asarray(queries, float)
    if len(queries) > len(points):
        raise ArgumentError(
            f"expected at most {len(points)} queries, one a point; got {len(queries)}."
        )
    tree = cKDTree(points)
    used: set[int] = set()
    return np.array([_take(tree, query, used) for query in queries], dtype=np.int64)


def _take(tree: cKDTree, query: npt.NDArray[np.float64], used: set[int]) -> int:
    wanted = 1
    while True:
        _, found = tree.query(query, k=min(wanted, tree.n))
        for row in np.atleast_1d(found):
            if int(row) not in used:
                used.add(int(row))
                return int(row)
        wanted *= 4
