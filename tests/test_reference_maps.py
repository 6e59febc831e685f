"""Free points against closed forms, against each other, and against f_xi on real distances."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from studies.measured import demo_case

from cryodrgn_metric import reference_maps
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.fidelity import fidelity_of
from cryodrgn_metric.free_points import WEIGHTINGS
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.reference_maps import free_points, lowest_stress


def cube(count=40):
    return np.random.default_rng(0).normal(size=(count, 3)) * [3, 2, 1]


def objective(points, target, power):
    d, delta = pdist(points), squareform(target, checks=False)
    weights = np.maximum(delta, 0.1 * np.median(delta)) ** -power
    return float(weights @ (d - delta) ** 2)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_points_that_fit_are_found(weighting):
    target = squareform(pdist(7 * cube()))
    found = free_points(target, 3, weighting)
    # where L-BFGS stops, in units of the median
    np.testing.assert_allclose(pdist(found), pdist(7 * cube()), atol=1e-2 * np.median(target))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)


def test_equal_distances_among_four_points_in_a_line_and_a_plane():
    """Closed forms: stress-1 of a tetrahedron is that of a square, and of 4 points on a line."""
    target = 1 - np.eye(4)
    side = (4 + 2 * np.sqrt(2)) / (4 + 2 * 2)  # the best scale, of 4 sides and 2 diagonals
    square = np.sqrt((4 * (side - 1) ** 2 + 2 * (np.sqrt(2) * side - 1) ** 2) / 6)
    gaps = np.array([1, 1, 1, 2, 2, 3])
    line = np.sqrt(1 - gaps.sum() ** 2 / (6 * (gaps**2).sum()))
    found = [
        fidelity_of(free_points(target, dimension), target)["stress1"] for dimension in (2, 1)
    ]
    assert found[0] == pytest.approx(square, abs=1e-4)
    assert found[1] <= line + 1e-6


def test_each_weighting_is_best_at_its_own_measure():
    target = squareform(pdist(cube(60)))
    found = {name: free_points(target, 2, name) for name in WEIGHTINGS}
    for name, power in WEIGHTINGS.items():
        scores = {other: objective(points, target, power) for other, points in found.items()}
        assert min(scores, key=scores.get) == name, scores
    # Sammon's own definition agrees; no distance is below the floor here but a few
    scores = {name: fidelity_of(points, target)["sammon"] for name, points in found.items()}
    assert scores["sammon"] <= 1.01 * min(scores.values())


def test_the_gradient_leaves_nothing_to_gain():
    """A random step in any direction raises the loss: a local minimum, by the loss alone."""
    target = squareform(pdist(cube()))
    rng = np.random.default_rng(1)
    for name, power in WEIGHTINGS.items():
        found = free_points(target, 2, name)
        least = objective(found, target, power)
        for _ in range(20):
            step = rng.normal(size=found.shape)
            assert objective(found + 1e-2 * step, target, power) > least


def test_scaled_distances_give_scaled_points():
    target = squareform(pdist(cube()))
    for name in WEIGHTINGS:
        once, large = free_points(target, 2, name), free_points(1000 * target, 2, name)
        np.testing.assert_allclose(pdist(large), 1000 * pdist(once), rtol=2e-2)


def test_odd_distances_are_no_obstacle():
    assert not free_points(np.zeros((5, 5)), 2).any()
    assert np.isfinite(free_points(1 - np.eye(3), 5, "weighted")).all()
    twins = squareform(pdist(np.repeat(cube(10), 2, axis=0)))
    assert np.isfinite(free_points(twins, 2, "relative")).all()


def test_unlike_arguments_are_refused():
    good = squareform(pdist(cube(5)))
    asymmetric = good + np.triu(np.ones((5, 5)))
    for distances in (good[:3], good[:2, :2], -good, good * np.nan, asymmetric):
        with pytest.raises(ArgumentError):
            free_points(distances, 2)
    for options in ((0, "stress"), (2, "kruskal")):
        with pytest.raises(ArgumentError):
            free_points(good, *options)


def test_of_many_points_the_first_count(monkeypatch):
    many = squareform(pdist(cube()))
    monkeypatch.setattr(reference_maps, "MOST_POINTS", 30)
    found = lowest_stress(many, 2, "relative")
    assert found == lowest_stress(many[:30, :30], 2, "relative") and found["points"] == 30


# -- f_xi against them

DIMENSIONS = (1, 2, 3)


@pytest.mark.slow
def test_f_xi_is_as_good_as_free_points_on_the_demo(tmp_path, capsys):
    """Its stress-1 within 1.15 of theirs; on test landmarks, within 1.15 of both errors.

    Like with like: f_xi trained by the stress against SMACOF, and by Eq. 8 against free points of
    Eq. 5, whose stress-1 is larger than SMACOF's. A thousand steps leave a few percent more than
    three thousand.
    """
    case = demo_case(tmp_path)
    net = DistanceNet(progress=False)
    net.fit(case.z[case.rows], case.distances, train=case.train, validation=case.validation)
    truth = {"train": case.among(case.train), "test": case.among(case.test)}
    predicted = net.predict_matrix(case.z[case.rows[case.test]]).astype(float)
    error = np.linalg.norm(predicted - truth["test"]) / np.linalg.norm(truth["test"])
    for dimension, loss in itertools.product(DIMENSIONS, ("stress", "relative")):
        found = MetricMap(dimension, loss=loss, steps=3000, progress=False).fit(case.z, net)
        stress, free = {}, {}
        for name, rows in (("train", case.train), ("test", case.test)):
            points = found.transform(case.z[case.rows[rows]])
            stress[name] = fidelity_of(points, truth[name])["stress1"]
            best = free_points(truth[name], dimension, loss)
            free[name] = fidelity_of(best, truth[name])["stress1"]
        with capsys.disabled():
            print(f"\nd'={dimension} {loss}: f_xi {stress}, free points {free}, e {error:.4f}")
        assert stress["train"] <= 1.15 * free["train"]
        assert stress["test"] <= 1.15 * np.hypot(free["test"], error)
