"""What the interactive scatter draws of few and of many particles."""

import numpy as np
import pytest

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.report.scatter import MOST_POINTS, scatter_of


def of_many(count, seed=0, most=MOST_POINTS, rare=3):
    """`count` particles of odd numbers, whose clusters 1 to `rare` have one member each."""
    rows = np.arange(count)
    clusters = np.where(rows < rare, rows + 1, 0)
    axes = {"z' 1": rows.astype(float), "z' 2": -rows.astype(float)}
    return scatter_of(2 * rows + 1, clusters, axes, {"class": rows % 5}, seed, most)


def test_few_particles_are_all_drawn_each_with_its_own_values():
    scatter = of_many(500)
    rows = (scatter.particles - 1) // 2
    assert sorted(rows) == list(range(500)) and scatter.total == len(scatter) == 500
    assert (scatter.axes["z' 1"] == rows).all() and (scatter.axes["z' 2"] == -rows).all()
    assert (scatter.colors["class"] == rows % 5).all()
    assert (scatter.clusters == np.where(rows < 3, rows + 1, 0)).all()


def test_of_many_a_sample_is_drawn_with_every_cluster():
    scatter = of_many(100_000, most=1000)
    assert len(scatter) == 1000 and scatter.total == 100_000
    assert len(set(scatter.particles.tolist())) == 1000
    assert set(scatter.clusters.tolist()) == {0, 1, 2, 3}
    assert ((scatter.particles - 1) // 2 == scatter.axes["z' 1"]).all()


def test_the_beginning_has_every_cluster_too():
    scatter = of_many(100_000, most=1000)
    assert set(scatter.clusters[:4].tolist()) == {0, 1, 2, 3}


def test_the_sample_is_uniform():
    """The mean row of 2,000 of 100,000 is within 4 standard errors (645) of the middle."""
    rows = of_many(100_000, most=2000).axes["z' 1"]
    assert abs(rows.mean() - 50_000) < 4 * 100_000 / np.sqrt(12 * 2000)
    assert abs((rows < 25_000).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2000)


def test_a_seed_is_a_sample():
    first, again, other = of_many(5000, 1, 100), of_many(5000, 1, 100), of_many(5000, 2, 100)
    assert (first.particles == again.particles).all()
    assert (first.particles != other.particles).any()


def test_more_clusters_than_points():
    assert len(of_many(100, most=10, rare=50)) == 10


def test_floats_are_narrowed_and_categories_are_kept():
    colors = {"a": np.arange(4.0), "b": np.arange(4), "c": np.array(list("wxyz")), "d": [True] * 4}
    scatter = scatter_of(np.arange(4), np.zeros(4, int), {"x": np.arange(4.0)}, colors)
    assert [scatter.colors[name].dtype.kind for name in "abcd"] == ["f", "i", "U", "b"]
    assert scatter.colors["a"].dtype == np.float32


def test_one_axis_is_spread_for_view():
    scatter = scatter_of(np.arange(50), np.zeros(50, int), {"z' 1": np.arange(50.0)}, {})
    assert list(scatter.axes) == ["z' 1", "(spread for view)"]
    spread = scatter.axes["(spread for view)"]
    assert -4.9 <= spread.min() < -3 and 3 < spread.max() <= 4.9


def test_a_column_of_another_length_is_refused():
    with pytest.raises(ArgumentError, match=r"value of class for each of \(4,\).*got \(3,\)"):
        scatter_of(np.arange(4), np.zeros(4), {"x": np.zeros(4)}, {"class": np.zeros(3)})


def test_no_axis_is_refused():
    with pytest.raises(ArgumentError, match="one axis"):
        scatter_of(np.arange(4), np.zeros(4), {}, {})
