"""Patches: how many neighbours reach a scale, and how much of the last direction they fill."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from sklearn.decomposition import PCA

from cryodrgn_metric.local_volume import (
    FEWEST_NEIGHBORS,
    count_at_scale,
    even_share,
    last_shares,
    misplaced_shares,
    neighbor_scale,
    neighbors_of,
)


@pytest.fixture
def points(generator):
    return generator.uniform(size=(120, 3))


def test_a_patch_is_a_point_and_its_nearest(points):
    distances = squareform(pdist(points))
    patches = neighbors_of(distances, 12)
    assert (patches[:, 0] == np.arange(len(points))).all()
    inside = np.take_along_axis(distances, patches, axis=1)
    np.testing.assert_array_equal(inside, np.sort(distances, axis=1)[:, :13])


def test_a_point_comes_first_also_among_its_doubles():
    patches = neighbors_of(np.zeros((5, 5)), 3)
    assert (patches[:, 0] == np.arange(5)).all()
    assert all(len(set(row)) == 4 for row in patches)


def test_the_count_at_a_scale_is_the_most_that_stays_within(points):
    distances = squareform(pdist(points))
    count = count_at_scale(distances, 0.35)
    assert neighbor_scale(distances, count) <= 0.35 < neighbor_scale(distances, count + 1)
    assert count_at_scale(distances, 0.0) == FEWEST_NEIGHBORS
    assert count_at_scale(distances, 9.0) == 60


def test_shares_are_those_of_a_pca_of_each_patch(points):
    patches = neighbors_of(squareform(pdist(points)), 15)
    expected = [PCA().fit(points[rows]).explained_variance_ratio_[-1] for rows in patches]
    np.testing.assert_allclose(last_shares(points, patches), expected, rtol=1e-9)


def test_a_flat_sheet_fills_two_dimensions_of_three(points):
    sheet = points * [1, 1, 0]
    patches = neighbors_of(squareform(pdist(sheet)), 15)
    assert np.median(last_shares(sheet[:, :2], patches)) > 0.8 * even_share(16, 2)
    assert last_shares(sheet, patches).max() < 1e-12


def test_the_even_share_of_many_points_is_one_over_the_dimension():
    for dimension in (1, 2, 4):  # the last of equal ones is the least by chance
        assert even_share(2000, dimension) == pytest.approx(1 / dimension, rel=0.06)
    assert even_share(11, 4) < even_share(40, 4) < 1 / 4  # few points: chance flattens a patch


def circle(count):
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return angle[:, None], np.column_stack([np.cos(angle), np.sin(angle)])


def test_a_circle_drawn_flat_lays_strangers_on_each_other():
    _, points = circle(100)
    distances = squareform(pdist(points))
    assert misplaced_shares(points, distances, 10) == (0, 0)
    assert misplaced_shares(points[:, :1], distances, 10)[0] > 0.5


def test_a_circle_drawn_as_a_line_is_torn_where_it_begins():
    angle, points = circle(100)
    _, torn_off = misplaced_shares(angle, squareform(pdist(points)), 10)
    assert 0.04 <= torn_off <= 0.1  # at most five on either side
