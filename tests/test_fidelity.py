"""Fidelity: formulas against hand-made cases and scikit-learn, and intervals."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform
from scipy.stats import pearsonr, spearmanr
from sklearn.manifold import trustworthiness

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.fidelity import (
    MEASURES,
    distance_errors,
    fidelity_of,
    intervals_of,
    subsampling_interval,
)


def points(count: int = 40, columns: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, columns))


def test_an_isometry_is_perfect_and_a_scale_shows_only_unscaled() -> None:
    x = points()
    found = fidelity_of(2 * x, squareform(pdist(x)))
    assert found["stress1"] == pytest.approx(0, abs=1e-12)
    assert found["sammon"] == pytest.approx(0, abs=1e-12)
    assert found["stress1_unscaled"] == pytest.approx(1)
    assert found["spearman"] == pytest.approx(1)
    assert found["trustworthiness"] == pytest.approx(1)


def test_formulas() -> None:
    x = points()
    distances = squareform(pdist(x))
    found = fidelity_of(x[:, :1], distances)
    d, target = pdist(x[:, :1]), pdist(x)
    scales = np.linspace(0.1, 5, 20_001)[:, None]
    stress = np.sqrt(((scales * d - target) ** 2).sum(axis=1) / (target**2).sum())
    sammon = ((scales * d - target) ** 2 / target).sum(axis=1) / target.sum()
    # the grid of scales is finite
    assert found["stress1"] == pytest.approx(stress.min(), abs=1e-6)
    assert found["sammon"] == pytest.approx(sammon.min(), abs=1e-6)
    assert found["stress1_unscaled"] == pytest.approx(
        np.sqrt(((d - target) ** 2).sum() / (target**2).sum())
    )
    assert found["pearson"] == pytest.approx(pearsonr(d, target).statistic)
    assert found["spearman"] == pytest.approx(spearmanr(d, target).statistic)
    expected = trustworthiness(distances, x[:, :1], n_neighbors=10, metric="precomputed")
    assert found["trustworthiness"] == pytest.approx(expected)
    # Venna & Kaski's continuity: scikit-learn's trustworthiness of x as a picture of its column
    shown = squareform(pdist(x[:, :1]))
    expected = trustworthiness(shown, x, n_neighbors=10, metric="precomputed")
    assert found["continuity"] == pytest.approx(expected)


def test_folding_costs_trust_and_tearing_costs_continuity() -> None:
    angle = np.linspace(0, 2 * np.pi, 80, endpoint=False)[:, None]
    circle = np.hstack([np.cos(angle), np.sin(angle)])
    folded = fidelity_of(circle[:, :1], squareform(pdist(circle)))
    torn = fidelity_of(angle, squareform(pdist(circle)))
    assert folded["trustworthiness"] < folded["continuity"] - 0.05
    assert torn["continuity"] < torn["trustworthiness"] - 0.005  # at the cut only


def test_coordinates_and_their_distances_agree() -> None:
    x = points()
    distances = squareform(pdist(points(40, 5)))
    assert fidelity_of(x, distances) == fidelity_of(squareform(pdist(x)), distances)


@pytest.mark.parametrize("count", [3, 4, 5, 12])
def test_few_points(count: int) -> None:
    x = points(count)
    found = fidelity_of(x[:, :2], squareform(pdist(x)))
    assert np.isfinite(found["stress1"])
    assert 0 <= found["trustworthiness"] <= 1


def test_collapsed_embedding_and_zero_distances() -> None:
    distances = squareform(pdist(points(12)))
    found = fidelity_of(np.zeros((12, 2)), distances)
    assert found["stress1"] == found["stress1_unscaled"] == 1
    assert np.isnan(found["pearson"])
    twins = squareform(pdist(np.repeat(points(6), 2, axis=0)))
    assert np.isfinite(fidelity_of(points(12), twins)["sammon"])


def test_distance_errors() -> None:
    measured = np.arange(0, 101, dtype=float)
    found = distance_errors(1.2 * measured, measured)
    assert found["median_relative_error"] == pytest.approx(0.2)
    assert found["percentile_90_relative_error"] == pytest.approx(0.2)
    assert found["pearson"] == found["spearman"] == pytest.approx(1)
    with pytest.raises(ArgumentError):
        distance_errors([1.0], [1.0, 2.0])


def test_interval_covers_and_draws_without_replacement() -> None:
    def statistic(rows: np.ndarray) -> float:
        assert len(np.unique(rows)) == len(rows)
        return float(x[rows].mean())

    covered = 0
    for seed in range(60):
        x = np.random.default_rng(seed).normal(size=200)
        low, high = subsampling_interval(statistic, 200, seed, repeats=100)
        covered += low < 0 < high
    # Without replacement the spread is smaller by sqrt(1 - m/L): 76 % of 60, less 3 sd.
    assert covered >= 36
    assert subsampling_interval(statistic, 200, 7) == subsampling_interval(statistic, 200, 7)


def test_all_intervals_are_those_of_each_measure_alone() -> None:
    x = points(40)
    distances = squareform(pdist(x))
    spaces = {"one": x[:, :1], "all": x}
    found = intervals_of(spaces, distances, seed=3)
    assert list(found) == list(spaces)
    for name in MEASURES:

        def statistic(rows: np.ndarray, name: str = name) -> float:
            return fidelity_of(x[rows, :1], distances[np.ix_(rows, rows)])[name]

        expected = subsampling_interval(statistic, 40, 3, repeats=100)
        assert found["one"][name] == expected
        assert expected[0] < fidelity_of(x[:, :1], distances)[name] < expected[1]
        perfect = float(name in ("spearman", "trustworthiness", "continuity"))
        assert found["all"][name] == pytest.approx((perfect, perfect), abs=1e-9)


def test_unlike_arguments_are_refused() -> None:
    distances = squareform(pdist(points(10)))
    for embedding, measured in [
        (points(9), distances),
        (points(10)[:, 0], distances),
        (points(10), distances[:5]),
        (points(2), distances[:2, :2]),
    ]:
        with pytest.raises(ArgumentError):
            fidelity_of(embedding, measured)
    with pytest.raises(ArgumentError):
        subsampling_interval(lambda rows: 0.0, 2, 0)
