"""Shares of rotation in closed form, and pose drift where it is known how much z knows."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryodrgn_metric import hidden_rotation
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.hidden_rotation import (
    pose_drift,
    rotation_share,
    striking_pairs,
    unambiguous,
)

COUNT = 200
NOISE_IN_RADIANS = 0.3  # along each axis


def latents(columns: int = 2) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (COUNT, columns))


def full_turn(z: np.ndarray) -> Rotation:
    """A turn by up to 180 degrees either way about an oblique axis, from an oblique start."""
    start = Rotation.from_rotvec([0.4, -1.0, 2.0])
    return start * Rotation.from_rotvec(np.pi * z[:, :1] * [0.6, 0.0, 0.8])


def noise(count: int = COUNT) -> Rotation:
    vectors = np.random.default_rng(1).normal(size=(count, 3))
    return Rotation.from_rotvec(NOISE_IN_RADIANS * vectors)


ALL = np.ones(COUNT, dtype=bool)


# -- how well z predicts the pose


def test_a_pose_that_z_encodes_is_predicted_through_full_turns():
    found = pose_drift(latents(), full_turn(latents()).as_matrix(), ALL)
    assert found.score > 0.98
    assert abs(found.shuffled_score) < 0.1
    assert found.landmarks == COUNT
    # uniform in 180 degrees either way
    assert found.rms_angle_in_degrees == pytest.approx(180 / np.sqrt(3), rel=0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_costs_its_share_of_the_variance(seed):
    turns = (full_turn(latents()) * noise()).as_matrix()
    found = pose_drift(latents(), turns, ALL, seed)
    expected = 1 - 3 * NOISE_IN_RADIANS**2 / np.radians(found.rms_angle_in_degrees) ** 2
    assert expected == pytest.approx(0.92, abs=0.02)
    assert found.score == pytest.approx(expected, abs=0.03)
    # and what 160 noisy landmarks leave to be learned
    noise_in_degrees = np.degrees(np.sqrt(3) * NOISE_IN_RADIANS)
    assert found.rms_error_in_degrees == pytest.approx(noise_in_degrees, rel=0.12)


@pytest.mark.parametrize("kind", ["everywhere", "about one rotation"])
def test_a_pose_that_z_does_not_know_scores_about_zero_and_is_not_clamped(kind):
    turns = Rotation.random(COUNT, random_state=5) if kind == "everywhere" else noise()
    found = pose_drift(latents(), turns.as_matrix(), ALL)
    assert -0.1 < found.score < 0.1
    assert found.score < 0  # worse than the mean, and said so
    if kind == "about one rotation":
        expected = np.degrees(np.sqrt(3) * NOISE_IN_RADIANS)
        assert found.rms_angle_in_degrees == pytest.approx(expected, rel=0.1)


def test_the_frame_does_not_matter():
    turns = full_turn(latents()) * noise()
    frame = Rotation.from_rotvec([2.0, 1.0, -0.5])
    once = pose_drift(latents(), turns.as_matrix(), ALL)
    again = pose_drift(3 * latents() - 7, (frame * turns).as_matrix(), ALL)
    assert again.score == pytest.approx(once.score, abs=1e-3)
    assert again.rms_angle_in_degrees == pytest.approx(once.rms_angle_in_degrees, abs=1e-3)


def test_only_unambiguous_landmarks_count():
    turns = full_turn(latents()).as_matrix()
    clear = np.arange(COUNT) % 4 > 0
    turns[~clear] = Rotation.random(int((~clear).sum()), random_state=0).as_matrix()
    found = pose_drift(latents(), turns, clear)
    assert found.landmarks == int(clear.sum())
    assert found.score > 0.98


def test_of_many_landmarks_some_are_enough(monkeypatch):
    monkeypatch.setattr(hidden_rotation, "MOST_LANDMARKS", 120)
    turns = full_turn(latents()).as_matrix()
    found = pose_drift(latents(), turns, ALL)
    assert found.landmarks == len(found.errors_in_degrees) == 120
    assert found.score > 0.98


def test_without_rotation_or_landmarks_the_reason_is_given():
    small = Rotation.from_rotvec(np.radians(0.3) * latents(3)).as_matrix()
    for turns, angle in [(small, 0.3), (np.tile(np.eye(3), (COUNT, 1, 1)), 0.0)]:
        found = pose_drift(latents(), turns, ALL)
        assert found.score is found.shuffled_score is None
        assert "less than 1 degree" in found.reason
        assert found.rms_angle_in_degrees == pytest.approx(angle, rel=0.1, abs=1e-3)
    found = pose_drift(latents(), small, np.arange(COUNT) < 29)
    assert (found.score, found.landmarks) == (None, 29)
    assert "29" in found.reason and "30" in found.reason


def test_same_seed_same_bits():
    z, turns = latents()[:60], noise(60).as_matrix()
    first = pose_drift(z, turns, ALL[:60], seed=4)
    assert pose_drift(z, turns, ALL[:60], seed=4) == first
    assert pose_drift(z, turns, ALL[:60], seed=5) != first


# -- shares and pairs


def test_share_of_rotation():
    delta = np.array([[0, 3, 0], [3, 0, 4], [0, 4, 0.0]])
    raw = np.array([[0, 5, 0], [5, 0, 5], [0, 5, 0.0]])
    assert rotation_share(raw, delta) == pytest.approx(1 - 25 / 50)
    assert rotation_share(raw, raw) == 0
    assert rotation_share(raw, 0 * raw) == 1
    assert np.isnan(rotation_share(0 * raw, 0 * raw))


def test_a_second_peak_is_judged_by_what_it_costs():
    # RMS norm 10: gaps of 0.4, 0.6, none, and of two volumes that are the same
    gaps, delta = [0.04, 0.06, np.inf, 0.0, 0.1], [10.0, 10.0, 10.0, 0.0, 0.0]
    assert unambiguous(gaps, delta, 10.0).tolist() == [False, True, True, False, True]


def test_striking_pairs_are_the_ones_that_were_planted():
    rng = np.random.default_rng(0)
    motion = rng.normal(size=(60, 2))
    z = motion.copy()
    z[0], z[1] = motion[0] + [9, 0], motion[0] - [9, 0]  # far apart in z,
    motion[1] = motion[0]  # but the same
    z[3] = z[2]  # the same in z,
    motion[3] = motion[2] + [0, 20]  # but far apart
    distances = np.linalg.norm(motion[:, None] - motion[None], axis=-1)
    far, near = striking_pairs(z, distances)
    assert far[0].tolist() == [0, 1]
    assert near[0].tolist() == [2, 3]
    assert far.shape == near.shape == (10, 2)
    for pairs in (far, near):
        assert len(np.unique(pairs)) == 20  # different stories


def test_few_landmarks_and_no_disagreement_give_fewer_pairs():
    z = np.random.default_rng(0).normal(size=(5, 2))
    other = np.random.default_rng(1).normal(size=(5, 2))
    distances = np.linalg.norm(other[:, None] - other[None], axis=-1)
    far, near = striking_pairs(z, distances)
    assert 1 <= len(far) <= 2 and 1 <= len(near) <= 2
    own = np.linalg.norm(z[:, None] - z[None], axis=-1)
    far, near = striking_pairs(z, own)
    assert far.shape == near.shape == (0, 2)


def test_unlike_arguments_are_refused():
    turns = noise().as_matrix()
    for z, rotations, chosen in [
        (latents()[1:], turns, ALL),
        (latents(), turns[:, :2], ALL),
        (latents(), turns, ALL[1:]),
        (latents()[:, 0], turns, ALL),
    ]:
        with pytest.raises(ArgumentError):
            pose_drift(z, rotations, chosen)
    with pytest.raises(ArgumentError):
        rotation_share(np.zeros((3, 3)), np.zeros((2, 2)))
    with pytest.raises(ArgumentError):
        rotation_share(np.zeros(3), np.zeros(3))
    with pytest.raises(ArgumentError):
        striking_pairs(latents(), np.zeros((3, 3)))
