"""Delta over rigid motions: its laws on atoms that are moved, and two independent oracles."""

from functools import cache
from itertools import combinations

import numpy as np
import pytest
import torch
from gaussian_atoms import compact, hinged, overlap, render
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from cryodrgn_metric.distances.api import pairwise_distances, rigid_distances
from cryodrgn_metric.distances.rigid import RigidDistance
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.se3.motions import MOST_TRANSLATION, translated
from cryodrgn_metric.so3.conventions import edge_of, spherical_window, windowed

BOX, SIGMA = 24, 1.3
LMAX = 18  # enough for these molecules, and quick
ATOMS = compact(30, 6.0, np.random.default_rng(0))
FURTHEST = MOST_TRANSLATION * BOX


def angle_in_degrees(first, second):
    difference = Rotation.from_matrix(first) * Rotation.from_matrix(second).inv()
    return np.degrees(difference.magnitude())


def directions(count, seed):
    found = np.random.default_rng(seed).normal(size=(count, 3))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def rendered(*atoms):
    return np.stack([render(one, BOX, SIGMA) for one in atoms])


@cache
def known_motions():
    """Rotations, translations of 0 to 10 % of the box, and the distances of all volumes."""
    rotations = Rotation.random(6, random_state=7).as_matrix()
    translations = directions(6, 1) * np.linspace(0, FURTHEST, 6)[:, None]
    moved = [ATOMS @ r.T + t for r, t in zip(rotations, translations, strict=True)]
    volumes = rendered(ATOMS, *moved).astype(np.float32)
    return rotations, translations, volumes, rigid_distances(volumes, window=None, lmax=LMAX)


def test_a_moved_volume_is_at_distance_zero_and_its_motion_is_found():
    rotations, translations, volumes, found = known_motions()
    relative = found.distances[1:, 0] / np.linalg.norm(volumes[0])
    assert relative[:-1].max() < 1e-4
    assert relative[-1] < 1e-3  # at the very bound, where the last step is cut to it
    assert angle_in_degrees(found.rotations[1:, 0], rotations).max() < 0.01
    np.testing.assert_allclose(found.translations[1:, 0], translations, atol=1e-3)


def test_rotation_alone_misses_what_a_translation_adds():
    *_, volumes, found = known_motions()
    alone = pairwise_distances(volumes, window=None, lmax=LMAX).distances[2:, 0]
    assert (alone > 100 * found.distances[2:, 0]).all()
    assert alone[-1] > 0.5 * np.linalg.norm(volumes[0])


def test_the_way_back_is_the_inverse_motion():
    """translations[j, i] = -R^T t, with R = rotations[i, j] and t = translations[i, j]."""
    *_, found = known_motions()
    np.testing.assert_array_equal(found.distances, found.distances.T)
    back = found.rotations.transpose(1, 0, 3, 2)
    np.testing.assert_array_equal(found.rotations, back)
    expected = -np.einsum("ijba,ijb->ija", found.rotations, found.translations)
    np.testing.assert_allclose(found.translations.transpose(1, 0, 2), expected, atol=1e-6)
    assert (np.diagonal(found.translations) == 0).all()


@cache
def states():
    """A hinge in eight states, each moved at random: real differences, and real motions."""
    rotations = Rotation.random(8, random_state=3).as_matrix()
    moves = directions(8, 5) * np.linspace(0, 1, 8)[:, None] ** (1 / 3) * FURTHEST / 2
    angles = np.linspace(0, 1.4, 8)
    return [
        hinged(ATOMS, 10, angle) @ r.T + t
        for angle, r, t in zip(angles, rotations, moves, strict=True)
    ]


@cache
def state_volumes():
    window = spherical_window(BOX)
    return windowed(torch.from_numpy(rendered(*states())).float(), window, edge_of(window)).numpy()


@cache
def state_distances():
    return rigid_distances(state_volumes(), window=None, lmax=LMAX)


def test_windowed_by_default():
    found = rigid_distances(rendered(*states()[:3]).astype(np.float32), lmax=LMAX)
    expected = rigid_distances(state_volumes()[:3], window=None, lmax=LMAX)
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-5)


def test_never_above_rotation_alone():
    alone = pairwise_distances(state_volumes(), window=None, lmax=LMAX)
    assert (state_distances().distances <= alone.distances).all()
    np.testing.assert_array_equal(state_distances().raw_distances, alone.raw_distances)


def test_swapping_the_volumes_gives_the_same_distance():
    first, second = rendered(states()[1], states()[7])
    there, back = (rigid_distances(np.stack(v)) for v in ((first, second), (second, first)))
    assert there.distances[0, 1] == pytest.approx(back.distances[0, 1], rel=1e-6)
    assert angle_in_degrees(there.rotations[0, 1], back.rotations[1, 0]) < 0.01
    np.testing.assert_allclose(there.translations[0, 1], back.translations[1, 0], atol=1e-3)


def test_triangle_inequality_where_no_translation_is_at_its_bound():
    found = state_distances()
    assert np.linalg.norm(found.translations, axis=-1).max() < 0.999 * FURTHEST
    for i, j, k in combinations(range(8), 3):
        d = found.distances
        shorter = sorted((d[i, j], d[j, k], d[i, k]))
        assert shorter[2] <= (1 + 1e-3) * (shorter[0] + shorter[1])


def test_the_bound_on_translations_is_kept_and_breaks_the_triangle_inequality():
    """Two steps of 8 % of the box cost nothing each, one of 16 % does: no group, no pseudometric.

    The answer there is what a translation by all that is allowed leaves, in closed form.
    """
    step = np.array([0.08 * BOX, 0.0, 0.0])
    atoms = compact(20, 4.0, np.random.default_rng(2))
    volumes = rendered(atoms, atoms + step, atoms + 2 * step).astype(np.float32)
    found = rigid_distances(volumes, window=None, lmax=LMAX)
    norm = np.linalg.norm(volumes[0])
    assert found.distances[0, 1] < 3e-4 * norm and found.distances[1, 2] < 3e-4 * norm
    lengths = np.linalg.norm(found.translations, axis=-1)
    assert lengths.max() == pytest.approx(FURTHEST, rel=1e-5)
    # rotated as well, the least overlap lost is below that of a translation alone
    moved = atoms + step * (MOST_TRANSLATION / 0.08)
    assert 0.1 * norm < found.distances[0, 2] <= np.linalg.norm(volumes[2] - rendered(moved)[0])


def least_rigid_distance(first, second, starts):
    """min over R and t of ||V1 - T_t R V2|| in closed form, from many starts."""

    def negative(motion):
        turn = Rotation.from_rotvec(motion[:3]).as_matrix()
        return -overlap(first, second @ turn.T + motion[3:], SIGMA)

    best = np.argsort([negative(motion) for motion in starts])[:6]
    highest = -min(minimize(negative, starts[one], method="BFGS").fun for one in best)
    own = overlap(first, first, SIGMA) + overlap(second, second, SIGMA)
    return np.sqrt(max(own - 2 * highest, 0.0))


def test_never_above_the_closed_form():
    """From 300 random motions of the atoms themselves."""
    turns = Rotation.random(300, random_state=2).as_rotvec()
    moves = np.random.default_rng(8).uniform(-1.4, 1.4, (300, 3))
    chosen = [states()[i] for i in (0, 3, 7)]
    found = rigid_distances(rendered(*chosen), window=None, lmax=LMAX).distances
    for i, j in combinations(range(3), 2):
        starts = np.concatenate([turns, moves], axis=1)
        oracle = least_rigid_distance(chosen[i], chosen[j], starts)
        assert found[i, j] == pytest.approx(oracle, rel=2e-3)


def test_nothing_on_a_fine_grid_is_nearer():
    """Brute force on voxels: every motion near the one found, the atoms rendered anew."""
    first, second = states()[1], states()[6]
    volumes = rendered(first, second)
    found = rigid_distances(volumes, window=None, lmax=LMAX)
    best, move = found.rotations[0, 1], found.translations[0, 1]
    turns = np.radians([-2.0, 0.0, 2.0])
    steps = np.array([-0.3, 0.0, 0.3])
    nearest = np.inf
    for vector in np.stack(np.meshgrid(turns, turns, turns), -1).reshape(-1, 3):
        turned = second @ (Rotation.from_rotvec(vector).as_matrix() @ best).T
        for step in np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3):
            left = volumes[0] - render(turned + move + step, BOX, SIGMA)
            nearest = min(nearest, float(np.linalg.norm(left)))
    assert nearest == pytest.approx(found.distances[0, 1], rel=2e-4)


def test_windowing_before_or_after_moving():
    """d(wV, T wV) = 0: a motion of what is windowed. d(wV, w TV) > 0: the window stays behind.

    It cuts another part off the volume; and a mean that it takes away stays where it was, but
    not the level at its edge.
    """
    box, move = 16, np.array([0.8, 0.0, 0.0])
    window = spherical_window(box)
    costs, of_means = [], []
    for reach in (3.0, 6.5):  # within the window, and up to its edge
        atoms = compact(40, reach, np.random.default_rng(1))
        still, moved = torch.stack(
            [torch.from_numpy(render(one, box, SIGMA)) for one in (atoms, atoms + move)]
        ).float()
        before = windowed(still, window, edge_of(window))
        # on a larger grid nothing comes back from the other side
        padded = torch.nn.functional.pad(before, (2,) * 6)
        after = translated(padded[None], torch.from_numpy(move)[None])[0]
        wide = torch.stack([padded, after]).numpy()
        assert rigid_distances(wide, window=None, lmax=LMAX).distances[0, 1] < 3e-3 * float(
            before.norm()
        )
        for found, level_from in ((costs, edge_of(window)), (of_means, None)):
            pair = torch.stack([still, moved])
            pair = windowed(pair, window, level_from)
            cost = rigid_distances(pair.numpy(), window=None, lmax=LMAX).distances[0, 1]
            found.append(float(cost / before.norm()))
    assert costs[0] < 0.01 < costs[1] < 0.2
    assert of_means[0] > 5 * costs[0] and of_means[1] > costs[1]


def test_unit_norm_and_an_earlier_calibration():
    volumes = torch.from_numpy(rendered(*states()[:4])).float()
    prepared = windowed(volumes, spherical_window(BOX))
    scaled = prepared * torch.tensor([1.0, 2.0, 0.5, 3.0])[:, None, None, None]
    first = RigidDistance(BOX, unit_norm=True)
    first.calibrate(first.full_features(scaled))
    second = RigidDistance(BOX, unit_norm=True)
    second.recall(first.calibration)
    found = [d.pairwise(d.features(v)) for d, v in ((first, scaled), (second, prepared))]
    torch.testing.assert_close(found[0].distances, found[1].distances, rtol=1e-4, atol=1e-5)
    norms = second.norms(second.features(scaled)) / second.norms(second.features(prepared))
    torch.testing.assert_close(norms, torch.tensor([1.0, 2.0, 0.5, 3.0]), rtol=1e-4, atol=0)


def test_onto_agrees_with_pairwise():
    volumes = torch.from_numpy(rendered(*states()[:4])).float()
    distance = RigidDistance(BOX, lmax=LMAX)
    features = distance.features(windowed(volumes, spherical_window(BOX)))
    found = distance.onto(features[:, :, :1], features[:, :, 1:])
    everything = distance.pairwise(features)
    torch.testing.assert_close(found.distances, everything.distances[0, 1:], rtol=1e-4, atol=0)
    torch.testing.assert_close(
        found.translations, everything.translations[0, 1:], rtol=0, atol=5e-3
    )


def test_a_distance_over_rotations_is_the_same_beside_it():
    """What the second expansion needs has changed nothing of the first."""
    volumes = torch.from_numpy(rendered(*states()[:3])).float()
    prepared = windowed(volumes, spherical_window(BOX))
    alone, rigid = RotationDistance(BOX, lmax=LMAX), RigidDistance(BOX, lmax=LMAX)
    count = alone.features(prepared).shape[0]
    torch.testing.assert_close(
        rigid.features(prepared)[:count], alone.features(prepared), rtol=0, atol=0
    )
    assert alone.pairwise(alone.features(prepared)).translations is None
