"""Delta between models: closed forms, the axioms of a pseudometric, what each is blind to."""

import numpy as np
import pytest
import torch
from open_closed import Enzyme, superposed_rmsd
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from cryodrgn_metric import ArgumentError, atom_distances

KINDS = ("rmsd", "drmsd")


@pytest.fixture(scope="module")
def models():
    """The enzyme's beads along its path, each turned and shifted at random. (9, 214, 3)"""
    enzyme, turns = Enzyme(), Rotation.random(9, random_state=0)
    shifts = np.random.default_rng(0).normal(0, 20, (9, 3))
    steps = range(0, 25, 3)
    return np.array(
        [
            turn.apply(enzyme.beads(step)) + shift
            for step, turn, shift in zip(steps, turns, shifts, strict=True)
        ]
    )


def distances(models, kind="rmsd"):
    return atom_distances(torch.from_numpy(models), kind).distances.numpy()


def test_rmsd_is_kabschs(models):
    expected = [[superposed_rmsd(one, other) for other in models] for one in models]
    np.testing.assert_allclose(distances(models), expected, atol=1e-6)


def test_drmsd_is_the_root_mean_square_over_pairs_of_beads(models):
    tables = np.array([pdist(model) for model in models])
    expected = np.sqrt(((tables[:, None] - tables) ** 2).mean(axis=-1))
    np.testing.assert_allclose(distances(models, "drmsd"), expected, atol=1e-6)


def test_drmsd_in_slices_is_the_same(models, monkeypatch):
    whole = distances(models, "drmsd")
    monkeypatch.setattr("cryodrgn_metric.distances.atoms._TABLES_AT_ONCE", 9 * 1000)
    np.testing.assert_allclose(distances(models, "drmsd"), whole, atol=1e-9)


def test_a_hinge_of_two_points_in_closed_form():
    """A bead at distance r from two others moves by its angle: only one distance changes."""
    angle = np.radians(40)
    still = np.array([[0, 0, 0], [3.0, 0, 0], [0, 4.0, 0]])
    bent = still.copy()
    bent[2] = 4 * np.array([np.sin(angle), np.cos(angle), 0])
    change = np.linalg.norm(bent[2] - bent[1]) - 5
    found = distances(np.array([still, bent]), "drmsd")[0, 1]
    assert found == pytest.approx(abs(change) / np.sqrt(3))


@pytest.mark.parametrize("kind", KINDS)
def test_axioms(models, kind):
    found = distances(models, kind)
    np.testing.assert_array_equal(found, found.T)
    assert (np.diag(found) == 0).all() and (found[~np.eye(9, dtype=bool)] > 0.5).all()
    sums = found[:, None, :] + found[None, :, :]  # d(i, k) + d(j, k) >= d(i, j)
    assert (sums.min(axis=2) >= found - 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_triangle_inequality_on_shapes_that_are_nothing_alike(generator, kind):
    """Random clouds, where the best rotations have nothing in common."""
    found = distances(generator.normal(size=(25, 5, 3)), kind)
    assert ((found[:, None] + found[None]).min(axis=2) >= found - 1e-9).all()


@pytest.mark.parametrize("kind", KINDS)
def test_blind_to_rotation_and_translation(models, kind):
    moved = Rotation.random(random_state=7).apply(models[3]) + [100, -50, 3]
    assert distances(np.array([models[3], moved]), kind)[0, 1] < 1e-5


def test_only_drmsd_is_blind_to_the_hand(models):
    mirror = np.array([models[0], models[0] * [1, 1, -1]])
    assert distances(mirror, "drmsd")[0, 1] < 1e-5
    assert distances(mirror, "rmsd")[0, 1] > 5


def test_drmsd_is_at_most_twice_rmsd(models):
    assert (distances(models, "drmsd") <= 2 * distances(models) + 1e-9).all()


def test_rotations_lay_one_model_on_the_other(models):
    found = atom_distances(torch.from_numpy(models))
    rotations = found.rotations.numpy()
    centred = models - models.mean(axis=1, keepdims=True)
    for i, j in ((0, 5), (7, 2)):
        left = centred[i] - centred[j] @ rotations[i, j].T
        rms = np.sqrt((left**2).sum(axis=1).mean())
        assert rms == pytest.approx(float(found.distances[i, j]), rel=1e-6)
    np.testing.assert_array_equal(rotations, rotations.transpose(1, 0, 3, 2))
    np.testing.assert_array_equal(rotations[4, 4], np.eye(3))
    assert (found.distances <= found.raw_distances + 1e-9).all()
    assert torch.isinf(found.second_peak_gaps).all()


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3), (4, 5, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ArgumentError, match=r"expected coordinates \(L, A, 3\)"):
        atom_distances(torch.zeros(shape))
