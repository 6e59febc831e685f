"""Models fitted to densities of a real enzyme between closed and open, all turned at random.

The whole route by its public functions, against the atoms that the densities were made from.
"""

import numpy as np
import pytest
import torch
from data.adk_path import arrays, package_data
from open_closed import APIX, DATA, LID, Enzyme, superposed_rmsd
from scipy.spatial.transform import Rotation

from cryodrgn_metric import atom_distances, fit_models, pairwise_distances, read_model
from cryodrgn_metric.fitted_models import LEAST_CORRELATION, MOST_STRAIN

STEPS = (0, 6, 12, 18, 24, 12)  # the one in the middle twice: nothing but turned
TURNS = Rotation.random(len(STEPS), random_state=0).as_matrix()
UPPER = np.triu_indices(len(STEPS), 1)


@pytest.fixture(scope="module")
def enzyme():
    return Enzyme()


@pytest.fixture(scope="module")
def volumes(enzyme):
    return np.stack([enzyme.density(step, turn) for step, turn in zip(STEPS, TURNS, strict=True)])


@pytest.fixture(scope="module")
def truth(enzyme):
    return np.array(
        [[superposed_rmsd(enzyme.beads(i), enzyme.beads(j)) for j in STEPS] for i in STEPS]
    )


@pytest.fixture(scope="module")
def closed(enzyme, tmp_path_factory):
    """The closed model as a file, turned and far away."""
    path = tmp_path_factory.mktemp("model") / "closed.pdb"
    enzyme.write_pdb(path, 0, Rotation.random(random_state=5).as_matrix(), (40, -70, 120))
    return read_model(path)


@pytest.fixture(scope="module")
def by_model(volumes, closed):
    return fit_models(volumes, APIX, closed)


@pytest.fixture(scope="module")
def by_pseudo_atoms(volumes):
    return fit_models(volumes, APIX)


@pytest.fixture(params=["by_model", "by_pseudo_atoms"])
def fits(request):
    return request.getfixturevalue(request.param)


def measured(fits, kind="rmsd"):
    return atom_distances(torch.from_numpy(fits.coordinates), kind).distances.numpy()


def test_they_fit(fits):
    assert fits.correlations.min() > 0.93 and fits.strains.max() < MOST_STRAIN


def test_rmsd_is_the_true_one(fits, truth):
    found = measured(fits)[UPPER]
    assert np.corrcoef(found, truth[UPPER])[0, 1] > 0.985
    far = truth[UPPER] > 2
    # a fifth of a voxel: a model that starts in the middle lags behind at the ends
    np.testing.assert_allclose(found[far], truth[UPPER][far], rtol=0, atol=0.5)


def test_a_mere_rotation_is_a_quarter_voxel(fits):
    for kind in ("rmsd", "drmsd"):
        assert measured(fits, kind)[2, 5] < 0.25 * APIX


def test_drmsd_is_near_the_true_one(fits, enzyme):
    beads = torch.from_numpy(np.array([enzyme.beads(step) for step in STEPS]))
    expected = atom_distances(beads, "drmsd").distances.numpy()
    assert np.corrcoef(measured(fits, "drmsd")[UPPER], expected[UPPER])[0, 1] > 0.98


def test_l2_saturates_where_rmsd_does_not(fits, volumes, truth):
    """A good quarter of the way to open, L2 has gone much more of its own way, RMSD has not."""
    true = truth[0, 1] / truth[0, 4]
    by_density = pairwise_distances(volumes).distances
    found = measured(fits)
    assert by_density[0, 1] / by_density[0, 4] > true + 0.1
    assert abs(found[0, 1] / found[0, 4] - true) < 0.05


def test_the_models_orientation_is_found(by_model, enzyme):
    """The file may lie anywhere; residues end up where they belong."""
    reference = by_model.reference
    beads = enzyme.beads(STEPS[reference]) @ TURNS[reference].T
    apart = np.linalg.norm(by_model.coordinates[reference] - beads, axis=1)
    assert np.median(apart) < 2 and len(by_model.model) == 214


def test_same_bits_again(volumes, by_pseudo_atoms):
    again = fit_models(volumes, APIX)
    np.testing.assert_array_equal(again.coordinates, by_pseudo_atoms.coordinates)


def test_a_density_without_a_part_of_the_molecule(enzyme):
    """Without much of it no model fits, but for a squeezed one; a sixth is not missed.

    That is the honest limit of the method: presence or absence is nothing that moving beads tell.
    """
    turns = Rotation.random(4, random_state=3).as_matrix()
    missing = ((), (), LID, range(90, 215))
    volumes = [
        enzyme.density(12, turn, without=part) for turn, part in zip(turns, missing, strict=True)
    ]
    fits = fit_models(np.stack(volumes), APIX)
    assert fits.reference < 2 and (fits.strains[:2] < 0.1).all()
    assert fits.strains[3] > MOST_STRAIN
    assert (fits.correlations > LEAST_CORRELATION).all()  # by which alone all would pass
    assert fits.strains[:2].max() + 0.02 < fits.strains[2] < MOST_STRAIN


@pytest.mark.slow
def test_the_kept_path_is_the_packages():
    """tests/data/adk_path.npz against MDAnalysisTests: pip install --no-deps MDAnalysisTests."""
    folder = package_data()
    if folder is None:
        pytest.skip("pip install --no-deps MDAnalysisTests")
    with np.load(DATA) as kept:
        for name, values in arrays(folder).items():
            np.testing.assert_array_equal(kept[name], values)


@pytest.mark.slow
def test_the_packages_own_file_is_read(enzyme):
    """adk_open.pdb, with its hydrogens and odd element names: the open end of the path."""
    folder = package_data()
    if folder is None:
        pytest.skip("pip install --no-deps MDAnalysisTests")
    model = read_model(folder / "adk_open.pdb")
    assert len(model) == 214
    assert superposed_rmsd(model.positions, enzyme.beads(24)) < 2
