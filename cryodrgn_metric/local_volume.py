"""The volume that embedded points fill around each of them: neighbours, scales, local PCA."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = [
    "FEWEST_NEIGHBORS",
    "count_at_scale",
    "even_share",
    "last_shares",
    "misplaced_shares",
    "neighbor_scale",
    "neighbors_of",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FEWEST_NEIGHBORS = 10  # that a patch is made of: fewer, and chance decides how wide it is
EVEN_PATCHES = 200  # drawn at random, for `even_share`
TOO_FAR = 2.0  # times the radius of a patch
MANY = 0.25  # of the neighbours of a point


def neighbors_of(distances: FloatArray, count: int) -> IntArray:
    """Each point and its nearest ones, (n, count + 1), itself first."""
    order = np.argsort(distances - np.eye(len(distances)), axis=1, kind="stable")
    return order[:, : count + 1]


def neighbor_scale(distances: FloatArray, count: int) -> float:
    """The median distance of a point's nearest `count`, over all points."""
    return float(np.median(np.sort(distances, axis=1)[:, 1 : count + 1]))


def count_at_scale(distances: FloatArray, scale: float) -> int:
    """How many neighbours reach a scale: the most whose median distance doesn't exceed it.

    At least 10 and at most half of the points, whatever the scale.

    Arguments:
        distances: Symmetric. (n, n)
        scale: In their units.

    Example:
        >>> points = np.arange(100.0)[:, None]
        >>> count_at_scale(np.abs(points - points.T), 5.0)
        19
    """
    nearest = np.sort(distances, axis=1)[:, 1:]
    low, high = min(FEWEST_NEIGHBORS, len(distances) - 1), len(distances) // 2
    while low < high:
        middle = (low + high + 1) // 2
        if np.median(nearest[:, :middle]) <= scale:
            low = middle
        else:
            high = middle - 1
    return low


def last_shares(points: FloatArray, patches: IntArray) -> FloatArray:
    r"""The variance of each patch along its last principal component, relative to the total.

    Arguments:
        points: :math:`(n, d)`
        patches: Rows of the points of each patch, as from `neighbors_of`. :math:`(n, k)`

    Returns:
        From 0 to :math:`1 / d`; 0 for a patch whose points are all in one place. :math:`(n,)`

    Example:
        >>> points = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
        >>> last_shares(points, np.array([[0, 1, 2]])).tolist()
        [0.0]
    """
    spread = points[patches]
    spread = spread - spread.mean(axis=1, keepdims=True)
    variances = np.linalg.eigvalsh(spread.swapaxes(1, 2) @ spread)
    total = variances.sum(axis=1)
    return np.asarray(np.maximum(variances[:, 0], 0) / np.where(total > 0, total, 1))


@lru_cache(maxsize=1024)
def even_share(count: int, dimension: int) -> float:
    """What `last_shares` finds, by the median, in patches that fill all dimensions evenly.

    Arguments:
        count: The points of a patch, drawn at random within a ball.
        dimension: Of the ball.

    Example:
        >>> even_share(10, 1), round(even_share(1000, 2), 1)
        (1.0, 0.5)
    """
    rng = np.random.default_rng(0)
    points = rng.normal(size=(EVEN_PATCHES, count, dimension))
    points /= np.linalg.norm(points, axis=2, keepdims=True)
    points *= rng.uniform(size=(EVEN_PATCHES, count, 1)) ** (1 / dimension)
    patches = np.arange(EVEN_PATCHES * count).reshape(EVEN_PATCHES, count)
    return float(np.median(last_shares(points.reshape(-1, dimension), patches)))


def misplaced_shares(points: FloatArray, distances: FloatArray, count: int) -> tuple[float, float]:
    """How many points an embedding lays on strangers, and how many it tears from neighbours.

    A point lies on strangers if a quarter of its nearest are far by the true distance, as where
    the embedding folds; it is torn off if a quarter of its true neighbours are far from it there.
    Far is more than twice as far as the last of as many neighbours.

    Arguments:
        points: (n, d)
        distances: The true ones. (n, n)
        count: Of neighbours.

    Returns:
        Two shares of all points.
    """
    squares = (points**2).sum(axis=1)
    shown = np.sqrt(np.maximum(squares[:, None] + squares - 2 * (points @ points.T), 0))
    np.fill_diagonal(shown, 0)
    strangers = _far_share(distances, neighbors_of(shown, count))
    torn_off = _far_share(shown, neighbors_of(distances, count))
    return float((strangers >= MANY).mean()), float((torn_off >= MANY).mean())


def _far_share(distances: FloatArray, patches: IntArray) -> FloatArray:
    """The share of each patch that is far from its first point."""
    radius = np.sort(distances, axis=1)[:, patches.shape[1] - 1]
    apart = np.take_along_axis(distances, patches[:, 1:], axis=1)
    return np.asarray((apart > TOO_FAR * radius[:, None]).mean(axis=1))
