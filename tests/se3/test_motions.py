"""Rigid motions of volumes against atoms that are moved, and their group."""

import numpy as np
import pytest
import torch
from gaussian_atoms import compact, render
from scipy.spatial.transform import Rotation

from cryodrgn_metric.se3.motions import (
    MOST_TRANSLATION,
    composed,
    energy_centroids,
    inverted,
    translated,
)

BOX, SIGMA = 24, 1.3
ATOMS = compact(30, 6.0, np.random.default_rng(3))


def volumes_of(*atoms):
    return torch.from_numpy(np.stack([render(one, BOX, SIGMA) for one in atoms]))


def test_a_motion_and_its_inverse_cancel_in_either_order(generator):
    rotations = Rotation.random(20, random_state=0).as_matrix()
    motion = rotations, generator.normal(size=(20, 3))
    for both in ((motion, inverted(*motion)), (inverted(*motion), motion)):
        turns, moves = composed(*both)
        np.testing.assert_allclose(turns, np.broadcast_to(np.eye(3), turns.shape), atol=1e-12)
        np.testing.assert_allclose(moves, 0, atol=1e-12)


def test_composed_is_one_after_the_other_on_points(generator):
    first, second = (
        (Rotation.random(random_state=seed).as_matrix(), generator.normal(size=3))
        for seed in (1, 2)
    )
    turn, move = composed(first, second)
    point = generator.normal(size=3)
    expected = first[0] @ (second[0] @ point + second[1]) + first[1]
    np.testing.assert_allclose(turn @ point + move, expected, atol=1e-12)


def test_translated_moves_as_the_atoms_do(generator):
    moves = generator.uniform(-2, 2, (3, 3))
    still = volumes_of(ATOMS, ATOMS, ATOMS)
    moved = translated(still, torch.from_numpy(moves))
    expected = volumes_of(*(ATOMS + move for move in moves))
    # sigma 1.3 leaves 2e-4 of a Gaussian's amplitude at the Nyquist frequency
    assert float((moved - expected).norm() / expected.norm()) < 3e-4


def test_whole_voxels_are_a_roll():
    volume = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 8, 8, 8)))
    moved = translated(volume, torch.tensor([[1.0, 2.0, -3.0]]))
    torch.testing.assert_close(moved, volume.roll((-3, 2, 1), (1, 2, 3)))


def test_the_middle_moves_with_the_volume():
    rotation = Rotation.random(random_state=5).as_matrix()
    move = np.array([1.5, -0.7, 0.4])
    there = energy_centroids(volumes_of(ATOMS, ATOMS @ rotation.T + move)).numpy()
    np.testing.assert_allclose(there[1], rotation @ there[0] + move, atol=1e-6)


@pytest.mark.parametrize("axis", range(3))
def test_the_middle_stays_within_reach_of_the_box(axis):
    move = np.zeros(3)
    move[axis] = 6.0
    (middle,) = energy_centroids(volumes_of(ATOMS * 0.3 + move)).numpy()
    assert np.linalg.norm(middle) == pytest.approx(MOST_TRANSLATION * BOX)
    assert middle[axis] > 0.95 * MOST_TRANSLATION * BOX
