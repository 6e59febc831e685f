"""Delta's laws, with R·V always from rotated atom coordinates, and an independent oracle."""

from functools import cache

import numpy as np
import pytest
import torch
from gaussian_atoms import compact, hinged, least_distance, render
from scipy.spatial.transform import Rotation

import cryodrgn_metric as cm
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.errors import ArgumentError, VolumeError
from cryodrgn_metric.so3.conventions import spherical_window, windowed
from cryodrgn_metric.so3.search import RotationSearch

BOX, SIGMA = 32, 1.3
DTYPES = (np.float32, np.float64)


def angle_in_degrees(first, second):
    return np.degrees(
        (Rotation.from_matrix(first) * Rotation.from_matrix(second).inv()).magnitude()
    )


@cache
def molecule(seed=0):
    return compact(40, 9.0, np.random.default_rng(seed))


def turned(atoms, seed):
    return atoms @ Rotation.random(random_state=seed).as_matrix().T


@cache
def ensemble():
    """A hinge in 12 states, each turned at random, with a rotated near-copy of each."""
    generator = np.random.default_rng(4)
    states = [hinged(molecule(), 14, angle) for angle in np.linspace(0, 1.5, 12)]
    copies = [state + generator.normal(size=state.shape) * 0.05 for state in states]
    return np.stack([render(turned(a, i), BOX, SIGMA) for i, a in enumerate([*states, *copies])])


@cache
def ensemble_distances():
    return cm.pairwise_distances(ensemble())


@pytest.mark.parametrize("dtype", DTYPES)
def test_distance_to_itself_is_zero(dtype):
    volume = render(molecule(), BOX, SIGMA).astype(dtype)
    found = cm.align(volume, volume)
    assert found.distance == 0
    assert angle_in_degrees(found.rotation, np.eye(3)) < 0.01


def sharp_map(rotation):
    """Atoms of sigma 0.7 cut at the Nyquist shell (9 % left there), within 0.8 of the window.

    They are summed in Fourier space on a grid of twice the box, so that the tails of the
    periodic images, which don't turn, stay far from the window.
    """
    atoms = np.random.default_rng(8).normal(size=(150, 3))
    atoms *= (0.8 * 0.85 * 32) / np.linalg.norm(atoms, axis=1).max()
    k, half = np.fft.fftfreq(128), np.fft.rfftfreq(128)
    turned_atoms = atoms @ rotation.T
    z, y, x = (
        np.exp(-2j * np.pi * np.outer(axis, turned_atoms[:, i]))
        for i, axis in ((2, k), (1, k), (0, half))
    )
    spectrum = np.einsum("za,ya,xa->zyx", z, y, x, optimize=True)
    squared = k[:, None, None] ** 2 + k[:, None] ** 2 + half**2
    spectrum *= np.where(squared < 0.25, np.exp(-2 * (np.pi * 0.7) ** 2 * squared), 0.0)
    return np.fft.fftshift(np.fft.irfftn(spectrum, (128, 128, 128), (0, 1, 2)))[
        32:96, 32:96, 32:96
    ]


def smooth_map(rotation):
    atoms = compact(60, 18.0, np.random.default_rng(9))
    return render(atoms @ rotation.T, 64, 1.6)


@cache
def fifty_rotated(make):
    rotations = Rotation.random(50, random_state=11).as_matrix()
    return rotations, np.stack([make(np.eye(3)), *(make(rotation) for rotation in rotations)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [smooth_map, sharp_map])
def test_fifty_rotations_at_64_are_recovered(make, dtype):
    rotations, volumes = fifty_rotated(make)
    prepared = windowed(torch.from_numpy(volumes).to(dtype), spherical_window(64))
    distance = RotationDistance(64, dtype=dtype)  # at the full band limit, as `align`
    features = distance.features(prepared)
    found = distance.onto(features[:, :, :1], features[:, :, 1:])
    norm = float(features[:, :, 0].norm())
    # V = R·(turned map), so the rotation found undoes the one that was applied
    errors = angle_in_degrees(found.rotations.double().numpy(), rotations.transpose(0, 2, 1))
    assert float(found.distances.max()) / norm < 3e-3
    assert errors.max() < 0.5


def test_a_quarter_turn_fixes_the_handedness():
    volume = render(molecule(), BOX, SIGMA)
    # rot90 turns the array's y axis onto its x axis, minus x onto y: about z by -90 degrees.
    # An even box has no voxel at its middle, so the turned array is moved back by one voxel.
    quarter = np.roll(np.rot90(volume, axes=(1, 2)), 1, axis=1)
    expected = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = cm.align(quarter, volume)
    assert angle_in_degrees(found.rotation, expected) < 0.05
    assert found.distance < 3e-3 * np.linalg.norm(volume)
    np.testing.assert_allclose(
        cm.rotate(volume, expected), cm.rotate(quarter, np.eye(3)), atol=1e-3 * volume.max()
    )


def test_symmetry_transposes_and_raw_bound():
    found = ensemble_distances()
    np.testing.assert_array_equal(found.distances, found.distances.T)
    np.testing.assert_array_equal(found.rotations, found.rotations.transpose(1, 0, 3, 2))
    assert (found.distances <= found.raw_distances).all()
    assert (np.diag(found.distances) == 0).all()


def test_swapping_the_volumes_gives_the_same_distance():
    there = cm.align(ensemble()[0], ensemble()[7])
    back = cm.align(ensemble()[7], ensemble()[0])
    assert there.distance == pytest.approx(back.distance, rel=1e-6)
    assert angle_in_degrees(there.rotation, back.rotation.T) < 0.01


def test_triangle_inequality():
    d = ensemble_distances().distances
    triples = [(i, j, k) for i in range(24) for j in range(i) for k in range(j)]
    assert len(triples) > 1000
    for i, j, k in triples:
        a, b, c = sorted((d[i, j], d[j, k], d[i, k]))
        assert c - (a + b) <= 1e-3 * c


@pytest.mark.parametrize("dtype", DTYPES)
def test_never_above_the_independent_oracle(dtype):
    starts = Rotation.random(2000, random_state=2)
    states = [hinged(molecule(), 14, angle) for angle in (0.0, 0.4, 0.9, 1.5)]
    turned_states = [turned(state, seed) for seed, state in enumerate(states)]
    volumes = np.stack([render(state, BOX, SIGMA) for state in turned_states])
    found = cm.pairwise_distances(volumes.astype(dtype)).distances
    for i in range(4):
        for j in range(i):
            oracle = least_distance(turned_states[i], turned_states[j], SIGMA, starts)
            assert found[i, j] <= 1.005 * oracle
            # the window's edge and the ball lose a little of it, never much
            assert found[i, j] >= 0.99 * oracle


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_changes_nothing(dtype, tolerance):
    volumes = ensemble()[:3].astype(dtype)
    shifted = volumes + np.array([0.0, 5.0, -3.0], dtype=dtype)[:, None, None, None]
    found = cm.pairwise_distances(volumes).distances
    # the constant costs digits of the density, the same share of every voxel
    np.testing.assert_allclose(
        cm.pairwise_distances(shifted).distances,
        found,
        atol=100 * tolerance[np.dtype(dtype).name] * found.max(),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", [2, 3])
def test_symmetric_maps_have_equal_optima(order, dtype):
    part = molecule()[:12] + [3.0, 0.0, 1.0]
    turns = [Rotation.from_euler("z", 2 * np.pi * k / order).as_matrix() for k in range(order)]
    atoms = np.concatenate([part @ turn.T for turn in turns])
    volume = render(atoms, BOX, SIGMA).astype(dtype)
    found = cm.align(render(turned(atoms, 3), BOX, SIGMA).astype(dtype), volume)
    norm = np.linalg.norm(volume)
    assert found.distance < 3e-3 * norm
    assert found.second_peak_gap < 3e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_near_spherical_maps_behave(dtype):
    ball = np.random.default_rng(0).normal(size=(4000, 3))
    ball *= 8.0 / np.linalg.norm(ball, axis=1, keepdims=True)
    volume = render(ball, BOX, 2.5).astype(dtype)
    found = cm.align(render(turned(ball, 1), BOX, 2.5).astype(dtype), volume)
    assert found.distance <= found.raw_distance < 0.1 * np.linalg.norm(volume)
    assert np.linalg.det(found.rotation) == pytest.approx(1, abs=1e-5)


def test_asymmetric_maps_have_a_clear_peak():
    found = cm.align(render(turned(molecule(), 5), BOX, SIGMA), render(molecule(), BOX, SIGMA))
    assert 0.1 < found.second_peak_gap < np.inf


def test_tiles_do_not_change_the_result():
    small = cm.pairwise_distances(ensemble()[:8], pairs_per_tile=3)
    large = cm.pairwise_distances(ensemble()[:8])
    np.testing.assert_allclose(small.distances, large.distances, rtol=1e-10)
    with pytest.raises(ArgumentError, match="at least 1"):
        cm.pairwise_distances(ensemble()[:8], pairs_per_tile=0)


def test_tiles_that_a_gpu_cannot_hold_are_halved(monkeypatch):
    """The error is that of a full GPU; what is compared then is compared for real."""
    held, compare = [], RotationSearch.compare

    def in_little_memory(search, pairs):
        if len(pairs) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        held.append(len(pairs))
        return compare(search, pairs)

    expected = cm.pairwise_distances(ensemble()[:5], pairs_per_tile=1)
    monkeypatch.setattr(RotationSearch, "compare", in_little_memory)
    found = cm.pairwise_distances(ensemble()[:5])
    assert held == [3, 2, 3, 2]
    np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-10)

    def in_none(search, pairs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(RotationSearch, "compare", in_none)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        cm.pairwise_distances(ensemble()[:3])


def test_tensors_in_tensors_out():
    volumes = torch.from_numpy(ensemble()[:2])
    assert isinstance(cm.pairwise_distances(volumes).distances, torch.Tensor)
    assert isinstance(cm.rotate(volumes[0], torch.eye(3)), torch.Tensor)


def test_inputs_are_not_changed():
    volumes = ensemble()[:2].copy()
    cm.pairwise_distances(volumes)
    np.testing.assert_array_equal(volumes, ensemble()[:2])


@pytest.mark.parametrize(
    ("volumes", "words"),
    [
        (np.zeros((2, 16, 16)), "shape"),
        (np.zeros((2, 15, 15, 15)), "even box"),
        (np.ones((2, 16, 16, 16)), r"volumes\[0\] is constant"),
        (np.full((2, 16, 16, 16), np.nan), r"volumes\[0\] holds NaN"),
        (np.full((2, 16, 16, 16), np.eye(16) * 1e18, np.float32), "too large to square"),
    ],
)
def test_what_cannot_be_compared_is_named(volumes, words):
    with pytest.raises(VolumeError, match=words):
        cm.pairwise_distances(volumes)


@pytest.mark.parametrize("scale", [1e-12, 1e14])
def test_small_and_large_numbers_are_compared_as_others_are(scale):
    usual = ensemble()[:3].astype(np.float32)
    expected = cm.pairwise_distances(usual).distances
    found = cm.pairwise_distances((scale * usual).astype(np.float32)).distances
    np.testing.assert_allclose(found / scale, expected, rtol=1e-4)


def test_boxes_must_agree():
    with pytest.raises(ArgumentError, match="one box"):
        cm.align(np.zeros((16, 16, 16)), np.zeros((18, 18, 18)))


def nearly_dihedral(order):
    """2 · order copies of a unit, placed as by D_order, each 1 % larger than the one before."""
    unit = 0.5 * compact(80, 11.0, np.random.default_rng(order)) + [4.5, 0.0, 1.0]
    turns = Rotation.create_group(f"D{order}")
    return np.concatenate([turn.apply(unit * (1 + 0.01 * k)) for k, turn in enumerate(turns)])


@pytest.mark.parametrize("order", [2, 3, 5])
def test_of_many_peaks_nearly_as_high_the_best_is_found(order):
    atoms = nearly_dihedral(order)
    volumes = np.stack([render(turned(atoms, seed), BOX, SIGMA) for seed in range(16)])
    found = cm.pairwise_distances(volumes).distances
    assert found.max() < 3e-3 * np.linalg.norm(volumes[0])


@pytest.mark.parametrize("lmax", [0, 1, 2, 12])
def test_any_band_limit_gives_a_distance_that_grows_with_it(lmax):
    found, full = (cm.pairwise_distances(ensemble()[:3], lmax=limit) for limit in (lmax, 40))
    upper = np.triu_indices(3, 1)
    assert np.isfinite(found.rotations).all()
    assert (0 < found.distances[upper]).all()
    assert (found.distances[upper] <= full.distances[upper] * (1 + 1e-4)).all()


def test_one_volume_has_no_pairs():
    found = cm.pairwise_distances(ensemble()[:1])
    assert found.distances.tolist() == [[0.0]]
    np.testing.assert_array_equal(found.rotations, np.eye(3)[None, None])
