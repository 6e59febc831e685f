"""The demo's truth: closed-form overlaps against a grid, and the laws of a distance."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryodrgn_metric.demo import molecule, truth

CONFORMATIONS = [(0, 0), (25, 1), (70, 0), (40, 1)]


@pytest.fixture
def turn():
    return Rotation.from_rotvec([0.3, -0.8, 0.5]).as_matrix()


def rendered_distance(a, b, box=40):
    """L2 distance of two densities put on a grid, a box wide enough that nothing is cut off."""
    return np.linalg.norm(molecule.density(a, box) - molecule.density(b, box))


def test_overlaps_equal_a_grid(turn):
    a, b = molecule.atoms(0, 0), molecule.atoms(60, 0)
    overlap, _ = truth._overlap(a, b, turn)
    on_grid = np.sum(molecule.density(a, 40) * molecule.density(b @ turn.T, 40))
    assert overlap == pytest.approx(on_grid, rel=1e-6)


def test_gradient_equals_finite_differences(turn):
    a, b = molecule.atoms(0, 1), molecule.atoms(50, 0)
    vector, step = np.array([0.4, 0.2, -0.7]), 1e-5

    def overlap(shift):
        return truth._overlap(a, b, truth._turn(vector + shift) @ turn)[0]

    torque = truth._overlap(a, b, truth._turn(vector) @ turn)[1]
    found = truth._left_jacobian(vector).T @ torque
    expected = [(overlap(e) - overlap(-e)) / (2 * step) for e in step * np.eye(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_distance_is_the_least_found_on_a_grid_of_rotations():
    """Rotate the atoms, render, take the L2 norm; no rotation does better than the truth's."""
    a, b = molecule.atoms(10, 0), molecule.atoms(40, 0)
    found = truth.conformation(10, 0, 40, 0)
    assert rendered_distance(a, b @ found.rotation.T) == pytest.approx(found.distance, rel=1e-5)
    others = Rotation.random(150, rng=np.random.default_rng(1)).as_matrix()
    near = Rotation.from_rotvec(0.1 * np.eye(3)).as_matrix() @ found.rotation
    every = [rendered_distance(a, b @ other.T) for other in [*others, *near]]
    assert min(every) > found.distance


@pytest.mark.parametrize("pair", [((62, 0), (4, 1)), ((75, 0), (0, 1))])
def test_no_basin_is_missed_far_apart(pair):
    """Here the best rotation is no superposition of common atoms."""
    (motion_a, state_a), (motion_b, state_b) = pair
    a, b = molecule.atoms(motion_a, state_a), molecule.atoms(motion_b, state_b)
    starts = list(Rotation.random(40, rng=np.random.default_rng(2)).as_matrix())
    brute = truth.superpose(a, b, starts, truth._dc_share(len(a) - len(b)))
    assert truth.conformation(*pair[0], *pair[1]).distance <= brute.distance * (1 + 1e-6)


@pytest.mark.parametrize(("motion", "state"), CONFORMATIONS)
def test_zero_from_itself(motion, state):
    assert truth.conformation(motion, state, motion, state).distance == pytest.approx(0, abs=1e-3)


def test_blind_to_a_turn(turn):
    a, b = molecule.atoms(5, 1), molecule.atoms(45, 1)
    expected = truth.conformation(5, 1, 45, 1)
    found = truth.superpose(a, b @ turn.T, [expected.rotation @ turn.T])
    assert found.distance == pytest.approx(expected.distance, rel=1e-5)


def test_symmetric():
    there, back = truth.conformation(0, 1, 30, 0), truth.conformation(30, 0, 0, 1)
    assert there.distance == pytest.approx(back.distance, rel=1e-5)


def test_kabsch_finds_the_turn(turn):
    points = molecule.atoms(33, 1)
    np.testing.assert_allclose(truth.kabsch(points @ turn.T, points), turn, atol=1e-12)


def test_dc_share_is_what_windowing_takes():
    """The part alone: with and without its mean taken off inside the window."""
    with_part, without = (molecule.density(molecule.atoms(20, state)) for state in (1, 0))
    box, difference = molecule.BOX, with_part - without
    grid = np.arange(box) - box // 2
    radius = np.sqrt(sum(np.square(m) for m in np.meshgrid(grid, grid, grid))) / (box / 2)
    ramp = np.clip((radius - 0.85) / 0.14, 0, 1)
    window = (1 + np.cos(np.pi * ramp)) / 2
    seen = window * (difference - (window * difference).sum() / window.sum())
    taken = np.square(difference).sum() - np.square(seen).sum()
    assert taken == pytest.approx(truth._dc_share(len(molecule.PART)), rel=0.05)


# -- the table that ships


@pytest.fixture(scope="module")
def table():
    return truth.load_truth()["distances"].astype(float)


def test_table_is_the_computation(table):
    for motion_a, state_a, motion_b, state_b in [(3, 0, 20, 1), (50, 1, 79, 1)]:
        rows = motion_a + 80 * state_a, motion_b + 80 * state_b
        found = truth.conformation(motion_a, state_a, motion_b, state_b).distance
        assert table[rows] == pytest.approx(found, rel=1e-5)


def test_table_is_a_metric(table):
    assert table.shape == (160, 160)
    np.testing.assert_array_equal(np.diag(table), 0)
    np.testing.assert_array_equal(table, table.T)
    assert table[np.triu_indices(160, 1)].min() > 0
    detour = (table[:, :, None] + table[None, :, :]).min(axis=1)
    assert np.max(table - detour) <= 1e-3 * table.max()


def test_true_distances_look_up_particles(table):
    facts = truth.load_truth()
    i, j = np.array([0, 1, 2]), np.array([3, 4, 2])
    row = facts["motion"].astype(int) + 80 * facts["state"].astype(int)
    np.testing.assert_allclose(truth.true_distances(i, j), table[row[i], row[j]])
    assert truth.true_distances(i[:, None], j[None, :]).shape == (3, 3)
