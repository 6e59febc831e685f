"""Sliced optimal transport: its laws, POT as oracle, closed forms, and what L2 cannot tell."""

from functools import cache

import numpy as np
import ot
import pytest
import torch
from gaussian_atoms import compact, hinged, render
from moving_parts import bound_ligand, turning_domain
from scipy.spatial.transform import Rotation
from scipy.special import roots_legendre
from triangles import violations

import cryodrgn_metric as cm
from cryodrgn_metric.distances.transport import TransportDistance
from cryodrgn_metric.errors import ArgumentError, VolumeError
from cryodrgn_metric.so3.half_sphere import HalfSphere

BOX, SIGMA = 32, 1.3
CONTOUR = 0.1  # of atoms of height 1
FLOOR = 0.02
"""Voxels: what is left between a density on the grid and the same one turned, of Rg 5.6."""


def angle_in_degrees(first, second):
    return np.degrees(
        (Rotation.from_matrix(first) * Rotation.from_matrix(second).inv()).magnitude()
    )


@cache
def molecule():
    return compact(40, 9.0, np.random.default_rng(0))


def turned(atoms, seed):
    return atoms @ Rotation.random(random_state=seed).as_matrix().T


def distances_of(*states, box=BOX, **options):
    volumes = np.stack([render(atoms, box, SIGMA) for atoms in states])
    return cm.transport_distances(volumes, **{"contour": CONTOUR} | options)


@cache
def ensemble():
    """A hinge in 12 states, each turned at random, with a turned near-copy of each."""
    generator = np.random.default_rng(4)
    states = [hinged(molecule(), 14, angle) for angle in np.linspace(0, 1.5, 12)]
    copies = [state + generator.normal(size=state.shape) * 0.05 for state in states]
    return distances_of(*(turned(atoms, i) for i, atoms in enumerate([*states, *copies])))


# -- laws


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_volume_and_its_rotations_are_one(dtype):
    turns = Rotation.random(8, random_state=3).as_matrix()
    states = [molecule(), *(molecule() @ turn.T for turn in turns)]
    volumes = np.stack([render(state, BOX, SIGMA) for state in states]).astype(dtype)
    found = cm.transport_distances(volumes, contour=CONTOUR)
    assert (np.diag(found.distances) == 0).all()
    assert found.distances.max() < FLOOR
    assert found.raw_distances[0, 1:].min() > 0.5
    # V_i = turn_i · V_0
    for turn, rotation in zip(turns, found.rotations[1:, 0], strict=True):
        assert angle_in_degrees(rotation, turn) < 1


def test_symmetry_transposes_and_raw_bound():
    found = ensemble()
    np.testing.assert_array_equal(found.distances, found.distances.T)
    np.testing.assert_array_equal(found.rotations, found.rotations.transpose(1, 0, 3, 2))
    assert (found.distances <= found.raw_distances).all()


def test_triangle_inequality():
    d = ensemble().distances
    assert violations(d) == 0
    assert np.median(d[:12, :12]) > 10 * FLOOR


def test_a_translation_is_removed():
    atoms, shift = 0.8 * molecule(), np.array([1.3, -0.7, 2.1])  # within the window
    found = distances_of(atoms, atoms + shift, turned(atoms + shift, 2))
    assert found.distances.max() < FLOOR
    assert found.raw_distances[0, 1] < FLOOR


def test_neither_a_constant_nor_contrast_matters():
    """The contour is measured from the solvent's level, in its standard deviations."""
    states = molecule(), hinged(molecule(), 14, 0.7)
    noise = 0.02 * np.random.default_rng(1).normal(size=(2, BOX, BOX, BOX))
    volumes = np.stack([render(atoms, BOX, SIGMA) for atoms in states]) + noise
    expected = cm.transport_distances(volumes).distances[0, 1]
    drifted = np.stack([volumes[0] + 5.0, volumes[1] - 3.0])
    stronger = cm.transport_distances(4.0 * volumes).distances[0, 1]
    given = cm.transport_distances(4.0 * volumes, contour=4 * CONTOUR).distances[0, 1]
    assert cm.transport_distances(drifted).distances[0, 1] == pytest.approx(expected, rel=1e-9)
    assert stronger == pytest.approx(expected, rel=1e-9)
    assert given == pytest.approx(
        cm.transport_distances(volumes, contour=CONTOUR).distances[0, 1], rel=1e-9
    )


def test_the_contour_is_found_in_the_solvent():
    noise = np.random.default_rng(2).normal(size=(3, BOX, BOX, BOX))
    volumes = torch.from_numpy(2.0 + 0.05 * noise + render(molecule(), BOX, SIGMA))
    distance = TransportDistance(BOX, dtype=torch.float64)
    prepared = distance.prepare(volumes, torch.ones(BOX, BOX, BOX))
    distance.calibrate(distance.full_features(prepared))
    assert distance.contour == pytest.approx(3 * 0.05, rel=0.1)
    again = TransportDistance(BOX, dtype=torch.float64)
    again.recall(distance.calibration)
    torch.testing.assert_close(again.features(prepared), distance.features(prepared))


def test_distances_are_in_angstroms():
    states = molecule(), hinged(molecule(), 14, 0.7)
    in_voxels = distances_of(*states).distances
    np.testing.assert_allclose(
        distances_of(*states, apix_in_angstroms=2.5).distances, 2.5 * in_voxels, rtol=1e-6
    )
    coarse = np.stack([render(atoms / 2, BOX // 2, SIGMA / 2) for atoms in states])
    found = cm.transport_distances(coarse, contour=CONTOUR, apix_in_angstroms=2.0).distances
    assert found[0, 1] == pytest.approx(in_voxels[0, 1], rel=0.05)


# -- oracles


def cloud(volume, contour=CONTOUR):
    """Voxels above the contour as points (n, 3) x, y, z about their centroid, and their mass."""
    mass = (volume - contour).clip(0)
    points = np.argwhere(mass > 0)[:, ::-1] - volume.shape[0] // 2
    weights = mass[mass > 0] / mass.sum()
    return points - weights @ points, weights


@cache
def pair_of_volumes():
    """Some 700 voxels each, all of them where the window is 1."""
    states = 0.5 * turning_domain(0), 0.5 * turning_domain(120)
    return np.stack([render(atoms, 20, 1.0) for atoms in states])


def test_pot_agrees_in_every_direction():
    """Its one-dimensional distances at the same directions, weighted as the quadrature does."""
    volumes = pair_of_volumes()
    (first, a), (second, b) = map(cloud, volumes)
    sphere = HalfSphere.make(8, 24)
    of_rings = roots_legendre(2 * sphere.n_theta)[1][: sphere.n_theta]
    weights = np.repeat(of_rings, sphere.n_phi) / of_rings.sum() / sphere.n_phi
    directions = sphere.directions.T
    squared = np.array(
        [ot.wasserstein_1d(first @ line, second @ line, a, b, p=2) for line in directions.T]
    )
    expected = np.sqrt(3 * weights @ squared)
    found = cm.transport_distances(volumes, contour=CONTOUR, lmax=16).raw_distances[0, 1]
    assert found == pytest.approx(expected, rel=0.02)
    sliced = ot.sliced_wasserstein_distance(first, second, a, b, projections=directions)
    assert np.sqrt(3) * sliced == pytest.approx(expected, rel=0.05)  # every direction counts 1


def test_never_above_the_exact_distance():
    """Sliced transport bounds it from below, at any rotation."""
    found = cm.transport_distances(pair_of_volumes(), contour=CONTOUR)
    (first, a), (second, b) = map(cloud, pair_of_volumes())

    def exact(rotation):
        return np.sqrt(ot.emd2(a, b, ot.dist(first, second @ rotation.T)))

    still, aligned = exact(np.eye(3)), exact(found.rotations[0, 1])
    assert 0.5 * still < found.raw_distances[0, 1] <= still
    assert 0.5 * aligned < found.distances[0, 1] <= aligned < still


def gaussian(covariance, seed=None):
    """exp(-x^T C^-1 x / 2), turned at random."""
    turn = np.eye(3) if seed is None else Rotation.random(random_state=seed).as_matrix()
    inverse = np.linalg.inv(turn @ np.diag(covariance) @ turn.T)
    axis = np.arange(BOX) - BOX // 2
    x = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")[::-1], axis=-1)
    return np.exp(-0.5 * np.einsum("zyxi,ij,zyxj->zyx", x, inverse, x))


def test_two_balls_in_closed_form():
    """A scaling is its own optimal map: W2 = sqrt(3) |sigma1 - sigma2|, and Delta is all of it."""
    volumes = np.stack([gaussian([6.25] * 3), gaussian([2.25] * 3)])
    found = cm.transport_distances(volumes, contour=1e-4).distances[0, 1]
    assert found == pytest.approx(np.sqrt(3) * (2.5 - 1.5), rel=0.02)


def test_two_gaussians_in_closed_form():
    """q(theta, p) = sqrt(theta^T C theta) times a normal quantile, the long axes aligned."""
    first, second = np.array([8.0, 4.0, 2.0]), np.array([3.0, 3.0, 6.0])
    found = cm.transport_distances(
        np.stack([gaussian(first, 1), gaussian(second, 2)]), contour=1e-4
    )
    theta = np.random.default_rng(0).normal(size=(200_000, 3))
    theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    a, b = (np.sqrt(theta**2 @ np.sort(axes)) for axes in (first, second))
    sliced = np.sqrt(3 * np.mean((a - b) ** 2))
    bures = np.linalg.norm(np.sqrt(np.sort(first)) - np.sqrt(np.sort(second)))
    assert found.distances[0, 1] == pytest.approx(sliced, rel=0.03)
    assert sliced < bures


# -- what L2 cannot tell


def carried_and_overlap(states):
    """Transport's and L2's distances from the first state."""
    volumes = np.stack([render(atoms, BOX, SIGMA) for atoms in states])
    carried = cm.transport_distances(volumes, contour=CONTOUR).distances[0]
    return carried, cm.pairwise_distances(volumes).distances[0]


def test_a_turning_domain_keeps_growing_where_l2_saturates():
    carried, overlap = carried_and_overlap([turning_domain(a) for a in range(0, 181, 30)])
    assert (np.diff(carried) > 0).all()
    assert carried[6] > 1.7 * carried[3] > 1.7 * 3 * carried[1]  # 180, 90 and 30 degrees
    assert overlap[6] < 1.1 * overlap[3] < 1.1 * 2.2 * overlap[1]


def test_where_a_ligand_binds_is_told_as_l2_cannot():
    """Nearby and far from its first site: to L2 it is gone from there, in both cases."""
    carried, overlap = carried_and_overlap([bound_ligand(far) for far in (0, 6, 12)])
    assert overlap[2] == pytest.approx(overlap[1], rel=0.01)
    assert carried[2] > 1.6 * carried[1] > 10 * FLOOR


# -- what is refused


def test_a_volume_below_the_contour_is_named():
    volumes = np.stack([render(molecule(), BOX, SIGMA), 0.01 * render(molecule(), BOX, SIGMA)])
    with pytest.raises(VolumeError, match=r"volumes\[1\] has no density above the contour, 0.1"):
        cm.transport_distances(volumes, contour=CONTOUR)
    with pytest.raises(VolumeError, match=r"No density is above the contour, 1e\+03"):
        cm.transport_distances(volumes, contour=1e3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"contour": -0.1}, "contour must be"),
        ({"quantiles": 47}, "quantiles must be even"),
        ({"apix_in_angstroms": 0.0}, "apix_in_angstroms must be"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ArgumentError, match=words):
        distances_of(molecule(), **options)


def test_features_ask_for_a_contour():
    with pytest.raises(ArgumentError, match="call calibrate"):
        TransportDistance(BOX).features(torch.zeros(1, BOX, BOX, BOX))


def test_tensors_in_tensors_out():
    volumes = torch.from_numpy(render(molecule(), BOX, SIGMA))[None]
    found = cm.transport_distances(volumes, contour=CONTOUR)
    assert found.distances.dtype == torch.float64 and found.distances.tolist() == [[0.0]]
