"""k-means in z': found clusters, cryoDRGN's formats, order, edge cases."""

import numpy as np
import pytest

from cryodrgn_metric.clusters import cluster_kmeans
from cryodrgn_metric.config import ClusterConfig
from cryodrgn_metric.errors import ArgumentError


def blobs(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(4, size=count)
    centers = np.array([[0, 0], [10, 0], [0, 10], [30, 30]])
    return centers[truth] + 0.1 * rng.normal(size=(count, 2)), truth


def test_separate_blobs_are_found() -> None:
    z, truth = blobs()
    found = cluster_kmeans(z, ClusterConfig(count=4))
    pairs = {(int(a), int(b)) for a, b in zip(truth, found.labels, strict=True)}
    assert len(pairs) == len(found) == 4


def test_formats_are_those_of_cryodrgn() -> None:
    z, _ = blobs()
    found = cluster_kmeans(z, ClusterConfig(count=4))
    assert (found.labels.dtype, found.labels.shape) == (np.int32, (200,))
    assert (found.centers.dtype, found.centers.shape) == (np.float32, (4, 2))
    assert (found.centers_ind.dtype, found.centers_ind.shape) == (np.int64, (4,))
    assert np.array_equal(found.centers, z.astype(np.float32)[found.centers_ind])
    assert np.array_equal(found.labels[found.centers_ind], np.arange(4))


def test_far_cluster_comes_at_an_end() -> None:
    z, truth = blobs()
    found = cluster_kmeans(z, ClusterConfig(count=4))
    assert found.labels[truth == 3][0] in (0, 3)


def test_same_seed_same_clusters() -> None:
    z = np.random.default_rng(1).normal(size=(300, 2))
    first, second = (cluster_kmeans(z, ClusterConfig(count=9), seed=2) for _ in range(2))
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.centers_ind, second.centers_ind)


@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_more_clusters_than_distinct_points(distinct: int) -> None:
    z = np.repeat(np.arange(distinct, dtype=float)[:, None], 5, axis=0)
    found = cluster_kmeans(z, ClusterConfig(count=20))
    assert len(found) == distinct
    assert len(np.unique(found.centers_ind)) == distinct
    assert np.array_equal(np.unique(found.labels), np.arange(distinct))


def test_input_is_untouched_and_bad_input_refused() -> None:
    z, _ = blobs()
    kept = z.copy()
    cluster_kmeans(z)
    assert np.array_equal(z, kept)
    for bad in (z[:, 0], z[:0], np.full_like(z, np.nan)):
        with pytest.raises(ArgumentError):
            cluster_kmeans(bad)
