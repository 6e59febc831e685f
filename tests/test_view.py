"""The flat view of z'."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.view import umap_view, view_of


def test_two_coordinates_are_shown_as_they_are(generator):
    z = generator.normal(size=(50, 2))
    np.testing.assert_array_equal(view_of(z), z.astype(np.float32))


def test_one_coordinate_is_shown_as_a_line(generator):
    z = generator.normal(size=(50, 1)).astype(np.float32)
    np.testing.assert_array_equal(view_of(z), np.column_stack([z, 0 * z]))


def test_without_umap_principal_components_are_shown(generator):
    """Points on a plane in space: their distances are the plane's."""
    plane, axes = generator.normal(size=(60, 2)), np.linalg.qr(generator.normal(size=(5, 2)))[0]
    view = view_of(plane @ axes.T)
    np.testing.assert_allclose(cdist(view, view), cdist(plane, plane), atol=1e-5)


@pytest.fixture(scope="module")
def blobs():
    """600 points of three blobs far apart in space, and which blob each is of."""
    random = np.random.default_rng(0)
    blob = random.integers(0, 3, 600)
    return 20 * np.eye(3)[blob] + random.normal(size=(600, 3)), blob


@pytest.fixture(scope="module")
def sampled(blobs):
    return umap_view(blobs[0], seed=0, most=200)


def nearest(points):
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    return distances.argmin(axis=1)


@pytest.mark.slow  # numba compiles
def test_umap_of_a_sample_places_all_others_with_their_own(blobs, sampled):
    assert sampled.shape == (600, 2) and sampled.dtype == np.float32
    assert np.isfinite(sampled).all()
    blob = blobs[1]
    assert (blob[nearest(sampled)] == blob).mean() > 0.99


@pytest.mark.slow  # numba compiles
def test_a_copy_of_a_sampled_particle_lies_on_it(blobs):
    """Inverse distance: at distance zero, nothing else counts."""
    points = np.concatenate([blobs[0][:200]] * 2)
    view = umap_view(points, seed=0, most=200)
    seen = np.sort(np.random.default_rng(0).choice(400, 200, replace=False))
    for row in np.setdiff1d(np.arange(400), seen):
        twin = (row + 200) % 400
        if twin in seen:
            np.testing.assert_array_equal(view[row], view[twin])


@pytest.mark.slow  # numba compiles
def test_the_same_seed_gives_the_same_bits(blobs, sampled):
    np.testing.assert_array_equal(umap_view(blobs[0], seed=0, most=200), sampled)


@pytest.mark.parametrize("wrong", [np.zeros(4), np.zeros((0, 2)), [[np.nan, 1.0]]])
def test_what_is_no_embedding(wrong):
    with pytest.raises(ArgumentError, match=r"finite array \(N, d'\)"):
        view_of(wrong)
