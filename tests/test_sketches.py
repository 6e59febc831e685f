"""Sketches of a latent space; that they serve as landmarks is tested in test_landmarks.py."""

import numpy as np
import pytest

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.sketches import farthest_sketch, largest_cluster_sketch, nearest_unused


def test_nearest_unused_takes_the_next_nearest() -> None:
    points = [[0.0], [1.0], [2.0], [9.0]]
    assert nearest_unused(points, [[0.0], [0.1], [0.2], [0.3]]).tolist() == [0, 1, 2, 3]
    with pytest.raises(ArgumentError):
        nearest_unused(points, np.zeros((5, 1)))


def test_largest_clusters_get_their_farthest_particle() -> None:
    rng = np.random.default_rng(0)
    z, start, weights = rng.normal(size=(60, 2)), rng.normal(size=(4, 2)), rng.uniform(size=60)
    taken = list(start)
    for row in largest_cluster_sketch(z, start, 20, weights):
        apart = np.linalg.norm(z[:, None] - np.array(taken), axis=-1)
        missing = (weights * apart.min(axis=1)) ** 2
        cluster = apart.argmin(axis=1)
        largest = np.argmax([missing[cluster == place].sum() for place in range(len(taken))])
        assert row == np.argmax(np.where(cluster == largest, missing, -1))
        taken.append(z[row])


def test_a_crowd_outweighs_an_outlier() -> None:
    crowd = np.random.default_rng(0).normal(1, 0.1, size=(100, 1))
    z = np.concatenate([crowd, [[-3.0]]])
    start = np.array([[0.0], [-0.5]])
    assert farthest_sketch(z, start, 1) == [100]
    assert largest_cluster_sketch(z, start, 1, np.ones(101)) != [100]


@pytest.mark.parametrize("weights", [np.ones(6), np.zeros(6)])
def test_duplicates_are_taken_once_each(weights: np.ndarray) -> None:
    z = np.repeat([[0.0], [1.0]], 3, axis=0)
    assert sorted(farthest_sketch(z, z[:1], 6)) == list(range(6))
    assert sorted(largest_cluster_sketch(z, z[:1], 6, weights)) == list(range(6))
