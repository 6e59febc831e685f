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
from cryodrgn_metric.landmarks import Landmarks, choose_landmarks, kmeans_sketch

COUNT = 1500
BUDGET = 60  # landmarks that train


def sheet() -> tuple[np.ndarray, np.ndarray]:
    """Uniform latents in a square; a fifth of it, on the right, is corrugated.

    Distances are those of the surface's points in space, in closed form. A rotation is the third
    column, which changes nothing.
    """
    z = np.random.default_rng(0).uniform(-1, 1, size=(COUNT, 3))
    height = np.where(z[:, 0] > 0.6, 0.7 * np.sin(5 * np.pi * (z[:, 0] - 0.6)), 0.0)
    points = np.column_stack([z[:, :2], height])
    return z, np.linalg.norm(points[:, None] - points[None], axis=-1)


def fit(z: np.ndarray, distances: np.ndarray, landmarks: Landmarks) -> DistanceEnsemble:
    net = DistanceNet(width=64, depth=2, max_epochs=60, progress=False)
    chosen = landmarks.indices
    return DistanceEnsemble(3, net).fit(
        z[chosen],
        distances[np.ix_(chosen, chosen)],
        train=landmarks.train,
        validation=landmarks.validation,
    )


def error(ensemble: DistanceEnsemble, z: np.ndarray, distances: np.ndarray) -> float:
    """Mean relative error of h_psi on pairs of the last 300 latents, which nobody chose."""
    rows = np.arange(COUNT - 300, COUNT)
    i, j = np.triu_indices(300, 1)
    truth = distances[np.ix_(rows, rows)][i, j]
    predicted = ensemble.predict_members(z[rows])[0][i, j]
    return float(np.mean(np.abs(predicted - truth) / np.maximum(truth, 0.1)))


@pytest.fixture(scope="module")
def grown() -> tuple[DistanceEnsemble, Landmarks, np.ndarray, np.ndarray]:
    """The sheet's landmarks, after three rounds; and the net that they train."""
    z, distances = sheet()
    pool = np.arange(COUNT - 300)
    drawn = first_landmarks(z, LandmarkConfig(100, "active"), 0, pool)
    landmarks = drawn.only(drawn.is_test | drawn.is_validation | (np.arange(len(drawn)) < 60))
    ensemble = fit(z, distances, landmarks)
    while len(landmarks.train) < BUDGET:
        wanted = min(len(landmarks.train) // 2, BUDGET - len(landmarks.train))
        landmarks = more_landmarks(ensemble, z, landmarks, pool, wanted, seed=0)
        ensemble = fit(z, distances, landmarks)
    return ensemble, landmarks, z, distances


def test_more_landmarks_where_the_truth_changes_fast_and_a_lower_error(grown) -> None:
    ensemble, active, z, distances = grown
    kept = active.indices[active.is_test | active.is_validation]
    rest = np.setdiff1d(np.arange(COUNT - 300), kept)
    sketch = rest[kmeans_sketch(z[rest], BUDGET, np.random.default_rng(0))]
    even = Landmarks(
        np.concatenate([kept, sketch]),
        np.arange(len(active)) < len(active.test),
        active.is_validation,
    )

    def corrugated(landmarks: Landmarks) -> float:
        return float((z[landmarks.indices[landmarks.train], 0] > 0.6).mean())

    print(
        corrugated(active),
        corrugated(even),
        error(ensemble, z, distances),
        error(fit(z, distances, even), z, distances),
    )
    assert corrugated(even) == pytest.approx(0.2, abs=0.06)
    assert corrugated(active) > 1.3 * corrugated(even)
    assert error(ensemble, z, distances) < 0.9 * error(fit(z, distances, even), z, distances)


def test_disagreement_is_larger_where_the_truth_changes_fast(grown) -> None:
    ensemble, landmarks, z, _ = grown
    found = disagreement(ensemble, z[-300:], z[landmarks.indices[landmarks.train]])
    assert found.shape == (300,) and (found >= 0).all()
    rough = z[-300:, 0] > 0.6
    assert np.median(found[rough]) > 1.2 * np.median(found[~rough])


def test_new_landmarks_train_are_distinct_and_candidates(grown) -> None:
    _, landmarks, _, _ = grown
    assert len(np.unique(landmarks.indices)) == len(landmarks)
    assert landmarks.indices.max() < COUNT - 300
    assert len(landmarks.train) == BUDGET
    first = first_landmarks(
        np.zeros((COUNT, 3)) + np.arange(COUNT)[:, None], LandmarkConfig(100), 0
    )
    assert np.array_equal(first.is_test, np.arange(len(first)) < 20)


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
