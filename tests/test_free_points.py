"""Free points: distances that can be kept are kept, and the losses are those of the note."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.spatial.distance import pdist, squareform
from sklearn.manifold import smacof

from cryodrgn_metric.free_points import classical_points, fitted_points, pair_weights


@pytest.fixture
def points(generator):
    return generator.normal(size=(40, 3))


def weighted_stress(points, distances, weights):
    """Of its value for points in one place, written out pair by pair."""
    apart = squareform(pdist(points))
    return np.sqrt((weights * (apart - distances) ** 2).sum() / (weights * distances**2).sum())


def test_classical_scaling_is_exact_where_points_lie_in_a_space(points):
    found = classical_points(squareform(pdist(points)), 3)
    np.testing.assert_allclose(pdist(found), pdist(points), rtol=1e-9)
    assert (np.diff(found.var(axis=0)) < 0).all()


def test_more_dimensions_than_points_are_zero():
    assert classical_points(squareform(pdist(np.eye(3))), 5).shape == (3, 5)


@pytest.mark.parametrize(("loss", "power"), [("relative", 2), ("weighted", 4)])
def test_weights_are_the_powers_of_equations_8_and_9(points, loss, power):
    distances = squareform(pdist(points))
    weights = pair_weights(distances, loss)
    upper = np.triu_indices(len(points), 1)
    assert weights[upper].mean() == pytest.approx(1)
    assert not weights.diagonal().any()
    floored = np.maximum(distances, 0.1 * np.median(distances[upper]))
    product = (weights * floored**power)[upper]
    np.testing.assert_allclose(product, product[0])


@pytest.mark.parametrize("loss", ["relative", "weighted"])
def test_points_that_fit_are_found_again(points, generator, loss):
    distances = squareform(pdist(points))
    start = points + 0.1 * generator.normal(size=points.shape)
    found, stress = fitted_points(start, distances, pair_weights(distances, loss))
    assert stress < 5e-3
    np.testing.assert_allclose(pdist(found), pdist(points), rtol=0.05)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-12)


def test_the_stress_is_what_it_says_and_no_step_makes_it_less(points):
    distances = squareform(pdist(points)) ** 0.5  # no points of two dimensions have these
    weights = pair_weights(distances, "weighted")
    found, stress = fitted_points(classical_points(distances, 2), distances, weights)
    assert stress == pytest.approx(weighted_stress(found, distances, weights), rel=1e-6)

    def squared(flat):
        return weighted_stress(flat.reshape(found.shape), distances, weights) ** 2

    assert np.abs(approx_fprime(found.ravel(), squared)).max() < 2e-3


def test_no_worse_than_majorization(points):
    """The oracle is scikit-learn's SMACOF, from the same start, with all weights equal."""
    distances = squareform(pdist(points)) ** 0.5
    weights = 1 - np.eye(len(points))
    start = classical_points(distances, 2)
    theirs, _ = smacof(
        distances,
        n_components=2,
        init=start,
        n_init=1,
        max_iter=500,
        eps=1e-9,
        normalized_stress=False,
    )
    ours, stress = fitted_points(start, distances, weights)
    assert stress <= 1.001 * weighted_stress(theirs, distances, weights)


def test_points_that_are_all_alike_stay_in_one_place():
    distances = np.zeros((30, 30))
    weights = pair_weights(distances, "weighted")
    found, stress = fitted_points(classical_points(distances, 2), distances, weights)
    assert not found.any() and stress < 1e-6
