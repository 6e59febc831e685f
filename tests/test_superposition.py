"""Superposition: scipy's own, and no reflections."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryodrgn_metric.superposition import optimal_rotations, superposed


@pytest.fixture
def sets(generator):
    """Eight pairs of point sets, the second a noisy turned copy of the first, elsewhere."""
    fixed = generator.normal(size=(8, 20, 3))
    turns = Rotation.random(8, random_state=1).as_matrix()
    moving = np.einsum("bij,bai->baj", turns, fixed) + 0.3 * generator.normal(size=fixed.shape)
    return fixed, moving + generator.normal(size=(8, 1, 3))


def test_rotations_are_scipys(sets):
    fixed, moving = sets
    found = optimal_rotations(torch.from_numpy(fixed), torch.from_numpy(moving)).numpy()
    for one, other, turn in zip(fixed, moving, found, strict=True):
        theirs, _ = Rotation.align_vectors(one - one.mean(0), other - other.mean(0))
        np.testing.assert_allclose(turn, theirs.as_matrix(), atol=1e-10)


def test_a_mirror_image_is_turned_not_reflected(generator):
    fixed = generator.normal(size=(1, 12, 3))
    turn = optimal_rotations(torch.from_numpy(fixed), torch.from_numpy(-fixed))[0].numpy()
    assert np.linalg.det(turn) == pytest.approx(1)
    theirs, _ = Rotation.align_vectors(fixed[0] - fixed[0].mean(0), fixed[0].mean(0) - fixed[0])
    np.testing.assert_allclose(turn, theirs.as_matrix(), atol=1e-10)


def test_superposed_lies_on_the_fixed_set(sets):
    fixed, moving = map(torch.from_numpy, sets)
    laid = superposed(moving, fixed)
    raw, left = ((one - fixed).square().mean() for one in (moving, laid))
    assert left < 0.2 * raw
    exact = superposed(
        fixed @ torch.from_numpy(Rotation.random(random_state=2).as_matrix()), fixed
    )
    torch.testing.assert_close(exact, fixed)
