"""The demo's images: projections of the molecule as conventions say, the same for every run."""

import pickle

import mrcfile
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryodrgn_metric.demo import molecule, simulate, truth


@pytest.fixture(scope="module")
def particles():
    return simulate.draw(6, seed=3)[0]


def test_projection_is_the_sum_of_the_turned_density_along_z():
    turn = Rotation.from_rotvec([0.5, 0.9, -0.4]).as_matrix()
    coords = molecule.atoms(30, 1) @ turn.T
    volume = molecule.density(coords)
    image = simulate.project(coords) * np.sqrt(2 * np.pi) * molecule.SIGMA
    np.testing.assert_allclose(volume.sum(axis=0), image, atol=1e-6 * image.max())


def test_a_quarter_turn_about_z_turns_the_image():
    """Fixes the handedness: x goes to y."""
    turn = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    plain = simulate.project(molecule.atoms(30, 1), box=33)
    turned = simulate.project(molecule.atoms(30, 1) @ turn.T, box=33)
    np.testing.assert_allclose(turned, np.rot90(plain, -1), atol=1e-9)


def test_the_nuisance_turn_is_in_the_atoms_and_not_in_the_poses(particles):
    plain = molecule.atoms(int(particles.motion[0]), int(particles.state[0]))
    found = truth.kabsch(simulate.turned_atoms(particles, 0), plain)
    angle = np.rad2deg(Rotation.from_matrix(found).magnitude())
    assert angle == pytest.approx(abs(particles.nuisance_in_degrees[0]))


def test_images_are_projections_seen_through_the_ctf(particles):
    """cryoDRGN's CTF is negative at low frequencies, and the phase plate keeps them all."""
    clean = simulate.images(particles, np.random.default_rng(0), snr=1e12)
    for i, image in enumerate(clean):
        expected = simulate.project(simulate.turned_atoms(particles, i) @ particles.poses[i].T)
        assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] < -0.99


def test_noise_has_the_ratio_asked_for(particles):
    noisy = simulate.images(particles, np.random.default_rng(0), snr=10.0)
    clean = simulate.images(particles, np.random.default_rng(0), snr=1e12)
    assert clean.var() / (noisy - clean).var() == pytest.approx(10.0, rel=0.05)


def test_seed_decides_everything(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        folder.mkdir()
        simulate.simulate(folder, count=4, seed=seed)
    first, again, other = (
        [(folder / name).read_bytes() for name in ("poses.pkl", "ctf.pkl")] for folder in folders
    )
    stacks = [mrcfile.read(folder / "particles.mrcs") for folder in folders]
    assert first == again and first[0] != other[0]
    np.testing.assert_array_equal(stacks[0], stacks[1])
    assert not np.array_equal(stacks[0], stacks[2])


def test_files_are_as_cryodrgn_reads_them(tmp_path):
    drawn = simulate.simulate(tmp_path, count=5, seed=0)
    rotations, shifts = pickle.loads((tmp_path / "poses.pkl").read_bytes())
    ctf = pickle.loads((tmp_path / "ctf.pkl").read_bytes())
    np.testing.assert_allclose(rotations, drawn.poses, atol=1e-7)
    assert rotations.dtype == shifts.dtype == ctf.dtype == np.float32
    assert shifts.shape == (5, 2) and ctf.shape == (5, 9)
    assert set(ctf[:, 0]) == {32.0} and set(ctf[:, 1]) == {6.0}


def test_shipped_truth_and_poses_are_this_simulation():
    facts = truth.load_truth()
    drawn, _ = simulate.draw(len(facts["motion"]), seed=0)
    np.testing.assert_array_equal(facts["motion"], drawn.motion)
    np.testing.assert_array_equal(facts["state"], drawn.state)
    np.testing.assert_allclose(facts["nuisance"], drawn.nuisance_in_degrees, atol=1e-5)
    assert drawn.nuisance_in_degrees.std() > 30
