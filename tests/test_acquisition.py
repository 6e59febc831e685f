"""Where new landmarks go: distinct, in their roles, and where the truth changes fast."""

import numpy as np
import pytest

from cryodrgn_metric.acquisition import (
    disagreement,
    first_landmarks,
    more_landmarks,
    training_sizes,
)
from cryodrgn_metric.config import LandmarkConfig
from cryodrgn_metric.distance_ensemble import DistanceEnsemble
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.landmarks import Landmarks, choose_landmarks
from cryodrgn_metric.sketches import kmeans_sketch

COUNT = 900
SCORED = np.arange(200)  # latents that nobody may choose
POOL = np.arange(200, COUNT)
SIZES = (20, 30, 45)  # landmarks that train, by round


def sheet() -> tuple[np.ndarray, np.ndarray]:
    """Uniform latents in a square, the heights of a flat sheet with a steep peak in one corner.

    Distances are those of the sheet's points in space, in closed form.
    """
    z = np.random.default_rng(0).uniform(-1, 1, size=(COUNT, 2))
    height = 2 * np.exp(-((z - 0.7) ** 2).sum(axis=1) / (2 * 0.12**2))
    points = np.column_stack([z, height])
    return z, np.linalg.norm(points[:, None] - points[None], axis=-1)


def on_the_peak(z: np.ndarray) -> np.ndarray:
    return np.linalg.norm(z - 0.7, axis=1) < 0.35


def fit(z: np.ndarray, distances: np.ndarray, landmarks: Landmarks) -> DistanceEnsemble:
    net = DistanceNet(width=32, depth=2, max_epochs=60, progress=False)
    chosen = landmarks.indices
    return DistanceEnsemble(3, net).fit(
        z[chosen],
        distances[np.ix_(chosen, chosen)],
        train=landmarks.train,
        validation=landmarks.validation,
    )


def worst_tenth(ensemble: DistanceEnsemble, z: np.ndarray, distances: np.ndarray) -> float:
    """The relative error of h_psi that a tenth of the scored pairs exceeds."""
    i, j = np.triu_indices(len(SCORED), 1)
    truth = distances[i, j]
    predicted = ensemble.predict_members(z[SCORED])[0][i, j]
    return float(np.quantile(np.abs(predicted - truth) / truth, 0.9))


def sketched(z: np.ndarray, validation: np.ndarray, count: int) -> Landmarks:
    """A k-means sketch that trains, behind given validation landmarks; nobody tests."""
    rest = np.setdiff1d(POOL, validation)
    sketch = rest[kmeans_sketch(z[rest], count, np.random.default_rng(0))]
    indices = np.concatenate([validation, sketch])
    is_validation = np.arange(len(indices)) < len(validation)
    return Landmarks(indices, np.zeros(len(indices), dtype=bool), is_validation)


@pytest.fixture(scope="module")
def grown() -> tuple[DistanceEnsemble, Landmarks, np.ndarray, np.ndarray]:
    """The sheet's landmarks after three rounds, and the nets that they train."""
    z, distances = sheet()
    validation = np.random.default_rng([0, 7]).permutation(POOL)[:10]
    landmarks = sketched(z, validation, SIZES[0])
    ensemble = fit(z, distances, landmarks)
    for size in SIZES[1:]:
        wanted = size - len(landmarks.train)
        landmarks = more_landmarks(ensemble, z, landmarks, POOL, wanted, seed=0)
        ensemble = fit(z, distances, landmarks)
    return ensemble, landmarks, z, distances


def test_more_landmarks_where_the_truth_changes_fast_and_a_lower_error(grown) -> None:
    ensemble, active, z, distances = grown
    even = sketched(z, active.indices[active.validation], SIZES[-1])

    def share(landmarks: Landmarks) -> float:
        return float(on_the_peak(z[landmarks.indices[landmarks.train]]).mean())

    assert len(even) == len(active)
    assert share(active) > 1.5 * share(even)
    of_even = fit(z, distances, even)
    assert worst_tenth(ensemble, z, distances) < 0.8 * worst_tenth(of_even, z, distances)


def test_disagreement_is_larger_where_the_truth_changes_fast(grown) -> None:
    ensemble, landmarks, z, _ = grown
    found = disagreement(ensemble, z[SCORED], z[landmarks.indices[landmarks.train]])
    assert found.shape == SCORED.shape and (found >= 0).all()
    steep = on_the_peak(z[SCORED])
    # still, though they have been given more landmarks
    assert np.median(found[steep]) > 1.2 * np.median(found[~steep])


def test_new_landmarks_train_are_distinct_and_candidates(grown) -> None:
    _, landmarks, _, _ = grown
    assert len(np.unique(landmarks.indices)) == len(landmarks) == SIZES[-1] + 10
    assert np.isin(landmarks.indices, POOL).all()
    assert len(landmarks.train) == SIZES[-1] and not len(landmarks.test)


def test_the_same_seed_gives_the_same_landmarks(grown) -> None:
    ensemble, landmarks, z, _ = grown
    found = [more_landmarks(ensemble, z, landmarks, np.arange(COUNT), 20, seed) for seed in (3, 3)]
    assert np.array_equal(found[0].indices, found[1].indices)
    assert np.array_equal(found[0].indices[: len(landmarks)], landmarks.indices)


def test_candidates_that_run_out_are_all_taken(grown) -> None:
    ensemble, landmarks, z, _ = grown
    pool = np.concatenate([landmarks.indices, np.arange(COUNT - 5, COUNT)])
    found = more_landmarks(ensemble, z, landmarks, pool, 20, seed=0)
    assert sorted(found.indices[len(landmarks) :]) == list(range(COUNT - 5, COUNT))
    again = more_landmarks(ensemble, z, found, pool, 20, seed=0)
    assert len(again) == len(found)


@pytest.mark.parametrize("count", [10, 60, 500])
def test_the_test_set_is_that_of_every_sampling(count: int) -> None:
    z = np.random.default_rng(1).normal(size=(900, 4))
    active = first_landmarks(z, LandmarkConfig(count, "active"), seed=5)
    kmeans = choose_landmarks(z, LandmarkConfig(count), seed=5)
    assert np.array_equal(active.indices[active.test], kmeans.indices[kmeans.test])
    assert len(active.validation) == len(kmeans.validation)
    assert len(active.train) == training_sizes(len(kmeans.train))[0]


def test_rounds_grow_by_half_and_end_with_what_was_asked() -> None:
    for most in (1, 2, 5, 18, 360, 7201):
        sizes = training_sizes(most)
        assert sizes[-1] == most and sizes == sorted(set(sizes)) and len(sizes) <= 5
        ratios = np.divide(sizes[1:], sizes[:-1])
        assert most < 100 or ratios == pytest.approx(1.5, abs=0.02)
    pairs = np.square(training_sizes(3600)).sum() / 3600**2
    assert pairs < 1.9  # every round's pairs together, of those of the last
