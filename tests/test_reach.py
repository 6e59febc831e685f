"""Reach: one percent where landmarks represent the particles, planted clusters beyond."""

import time

import numpy as np
import pytest

from cryodrgn_metric.config import LandmarkConfig
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.landmarks import choose_landmarks
from cryodrgn_metric.reach import landmark_reach


def latents(count=20_000, columns=4, seed=0):
    return np.random.default_rng(seed).normal(size=(count, columns))


def test_about_one_percent_is_outside_where_landmarks_come_like_particles():
    z = latents()
    shares = []
    for seed in range(12):
        rows = np.random.default_rng(seed).choice(len(z), 360, replace=False)
        shares.append(landmark_reach(z, rows).is_outside.mean())
    # the 99th percentile of 360 gaps is that of 4 of them: it varies twofold
    assert 0.005 < np.mean(shares) < 0.02
    assert max(shares) < 0.04


@pytest.mark.parametrize("sampling", ["kmeans", "random", "farthest"])
def test_at_most_about_one_percent_is_outside_of_the_landmarks_we_choose(sampling):
    z = latents()
    landmarks = choose_landmarks(z, LandmarkConfig(count=300, sampling=sampling), seed=0)
    found = landmark_reach(z, landmarks.indices[landmarks.train])
    assert found.is_outside.mean() < 0.03


def test_a_far_cluster_without_landmarks_is_outside_and_no_landmark_is():
    z = np.concatenate([latents(5000), latents(200) * 0.2 + [12, 0, 0, 0]])
    rows = np.random.default_rng(1).choice(5000, 300, replace=False)
    found = landmark_reach(z, rows)
    assert found.is_outside[5000:].all()
    assert found.is_outside[:5000].mean() < 0.03
    assert not found.is_outside[rows].any()
    assert not found.distances[rows].any()
    with_landmark = landmark_reach(z, np.append(rows, np.arange(5000, 5020)))
    assert with_landmark.is_outside[5000:].mean() < 0.03


def test_distances_are_those_of_a_search_of_all_landmarks_in_standard_deviations():
    z = latents(300) * [1, 100, 0.01, 0] + [5, 0, 0, 3]
    found = landmark_reach(z, np.arange(40))
    scaled = z[:, :3] / z[:, :3].std(axis=0)
    expected = np.linalg.norm(scaled[:, None] - scaled[None, :40], axis=-1).min(axis=1)
    np.testing.assert_allclose(found.distances, expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(found.is_outside, expected > found.limit)
    assert (found.distances.dtype, found.distances.shape) == (np.float32, (300,))


def test_units_and_order_of_rows_do_not_matter():
    z = latents(1000)
    rows = np.random.default_rng(0).permutation(1000)[:50]
    once, again = landmark_reach(z, rows), landmark_reach(64 * z, rows[::-1])
    assert np.array_equal(once.is_outside, again.is_outside)
    assert once.limit == pytest.approx(again.limit)


def test_a_million_latents_take_seconds():
    z = latents(1_000_000, 8).astype(np.float32)
    start = time.process_time()
    found = landmark_reach(z, np.arange(360))
    assert time.process_time() - start < 15
    assert 0.002 < found.is_outside.mean() < 0.04


def test_unlike_arguments_are_refused():
    z = latents(20)
    for bad in (z[:, 0], z * np.nan):
        with pytest.raises(ArgumentError):
            landmark_reach(bad, [0, 1])
    for rows in ([3], [3, 3], [0, 20], [-1, 3]):
        with pytest.raises(ArgumentError):
            landmark_reach(z, rows)
