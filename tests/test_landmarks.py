"""Landmarks: distinct, in roles, the same test set for every sampling."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from cryodrgn_metric.config import LandmarkConfig
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.landmarks import Landmarks, choose_landmarks

SAMPLINGS = ["kmeans", "random", "farthest"]


def latents(count: int = 600, columns: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, columns))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_roles_divide_distinct_particles(sampling: str) -> None:
    marks = choose_landmarks(latents(), LandmarkConfig(150, sampling), seed=0)
    assert len(marks) == len(np.unique(marks.indices)) == 150
    assert (len(marks.test), len(marks.validation), len(marks.train)) == (30, 12, 108)
    everything = np.concatenate([marks.test, marks.validation, marks.train])
    assert np.array_equal(np.sort(everything), np.arange(150))


def test_every_sampling_has_the_same_test_set() -> None:
    z = latents()
    chosen = [choose_landmarks(z, LandmarkConfig(100, s), seed=5) for s in SAMPLINGS]
    tests = [marks.indices[marks.test] for marks in chosen]
    assert np.array_equal(tests[0], tests[1]) and np.array_equal(tests[0], tests[2])
    other = choose_landmarks(z, LandmarkConfig(100), seed=6)
    assert not np.array_equal(other.indices[other.test], tests[0])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_same_seed_same_landmarks(sampling: str) -> None:
    z, config = latents(), LandmarkConfig(100, sampling)
    first, second = (choose_landmarks(z, config, seed=1) for _ in range(2))
    assert np.array_equal(first.indices, second.indices)
    assert np.array_equal(first.is_validation, second.is_validation)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_duplicated_particles_and_one_column(sampling: str) -> None:
    z = np.repeat(latents(15, 1), 10, axis=0)
    marks = choose_landmarks(z, LandmarkConfig(90, sampling), seed=0)
    assert len(np.unique(marks.indices)) == 90


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_only_candidates_are_chosen(sampling: str) -> None:
    pool = np.arange(100, 300)
    marks = choose_landmarks(latents(), LandmarkConfig(60, sampling), 0, candidates=pool)
    assert np.isin(marks.indices, pool).all()


@pytest.mark.parametrize("count", [10, 17, 40])
def test_fewer_particles_than_landmarks(count: int, caplog: pytest.LogCaptureFixture) -> None:
    marks = choose_landmarks(latents(count), LandmarkConfig(500), seed=0)
    assert np.array_equal(np.sort(marks.indices), np.arange(count))
    assert min(len(marks.test), len(marks.validation), len(marks.train)) >= 1
    assert f"there are {count} candidates: all are used" in caplog.text


def test_farthest_covers_better_than_random() -> None:
    z = latents()
    radius = {}
    for sampling in ("farthest", "random"):
        marks = choose_landmarks(z, LandmarkConfig(100, sampling), seed=0)
        radius[sampling] = cdist(z, z[marks.indices]).min(axis=1).max()
    assert radius["farthest"] < radius["random"]


def test_unlike_arguments_are_refused() -> None:
    z, config = latents(50), LandmarkConfig(20)
    for bad, candidates in [
        (z[:, 0], None),
        (np.full_like(z, np.nan), None),
        (z, [0, 1]),
        (z, [0, 1, 50]),
        (z, [-1, 1, 2]),
    ]:
        with pytest.raises(ArgumentError):
            choose_landmarks(bad, config, 0, candidates)
    no = np.zeros(2, bool)
    for arguments in [
        (np.array([1, 1]), no, no),
        (np.array([1, 2]), ~no, ~no),
        (np.array([1, 2]), no, no[:1]),
    ]:
        with pytest.raises(ArgumentError):
            Landmarks(*arguments)


def test_candidates_may_be_a_mask() -> None:
    mask = np.zeros(300, dtype=bool)
    mask[100:160] = True
    found = choose_landmarks(latents(300), LandmarkConfig(50), seed=0, candidates=mask)
    assert set(found.indices) <= set(range(100, 160))


def test_some_of_the_landmarks_keep_their_roles_and_one_that_stops_training() -> None:
    marks = choose_landmarks(latents(100), LandmarkConfig(20), seed=0)
    kept = ~marks.is_validation
    some = marks.only(kept)
    assert np.array_equal(some.indices, marks.indices[kept])
    assert np.array_equal(some.is_test, marks.is_test[kept])
    assert some.is_validation.sum() == 1 and not (some.is_validation & some.is_test).any()
    assert len(some.train) == len(marks.train) - 1
    assert marks.is_validation.sum() == 1  # the original is as it was
