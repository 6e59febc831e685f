"""Paths through z': they follow the data, join what lies apart, and take seconds."""

import time

import numpy as np
import pytest

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.paths import (
    MOST_PARTICLES,
    ParticleGraph,
    cluster_tree,
    path_between,
    principal_path,
)


def horseshoe(count, generator, width=0.05):
    """Particles along three quarters of a unit circle, and how far along each lies."""
    angle = np.sort(generator.uniform(0, 1.5 * np.pi, count))
    radius = 1 + width * generator.standard_normal(count)
    return radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]), angle


def test_a_path_follows_the_horseshoe(generator):
    points, angle = horseshoe(4000, generator)
    path = path_between(ParticleGraph(points), 0, 3999)
    assert len(path) == 10 and path.rows[0] == 0 and path.rows[-1] == 3999
    # a shortest path takes the inside of a band; ten particles cut another 1 % off
    assert path.lengths[-1] == pytest.approx(angle[-1] - angle[0], rel=0.08)
    assert (np.diff(angle[path.rows]) > 0).all()
    steps = np.linalg.norm(np.diff(points[path.rows], axis=0), axis=1)
    np.testing.assert_allclose(np.diff(path.lengths), steps)
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.15)


def test_length_is_that_of_the_arc_where_there_is_no_width(generator):
    points, angle = horseshoe(4000, generator, width=0)
    graph = ParticleGraph(points)
    arc = angle[-1] - angle[0]
    assert graph.between(0, 3999).lengths[-1] == pytest.approx(arc, rel=1e-3)
    half_step = arc / 9 / 2
    expected = arc * np.sin(half_step) / half_step
    assert path_between(graph, 0, 3999).lengths[-1] == pytest.approx(expected, rel=1e-3)


def test_one_stray_particle_is_no_shortcut(generator):
    """In the middle of the gap, its neighbours lie on both ends of the horseshoe."""
    points, _ = horseshoe(1000, generator, width=0.01)
    gap = (points[0] + points[-1]) / 2
    path = path_between(ParticleGraph(np.vstack([points, gap])), 0, 999)
    assert path.lengths[-1] > 4 and 1000 not in path.rows


def test_the_principal_component_of_a_ring_does_not_jump(generator):
    angle = generator.uniform(0, 2 * np.pi, 3000)
    points = np.column_stack([2 * np.cos(angle), np.sin(angle)])
    path = principal_path(ParticleGraph(points), 1)
    side = np.sign(points[path.rows[1:-1], 1])
    assert abs(side.sum()) == len(side)  # along one arc
    assert (np.diff(points[path.rows, 0]) > 0).all()
    assert path.lengths[-1] > 4


def test_a_principal_path_goes_from_the_5th_to_the_95th_percentile(generator):
    turn = np.linalg.qr(generator.standard_normal((3, 3)))[0]
    local = generator.standard_normal((5000, 3)) * [5, 2, 0.5]
    graph = ParticleGraph(local @ turn.T)
    for component in (1, 2):
        path = principal_path(graph, component)
        along = local[path.rows, component - 1]
        column = local[:, component - 1]
        ends = np.percentile(column, (5, 95))
        first, last = np.sort(along[[0, -1]])
        assert 3 <= 100 * (column < first).mean() <= 7
        assert 93 <= 100 * (column < last).mean() <= 97
        assert path.lengths[-1] == pytest.approx(ends[1] - ends[0], rel=0.15)
        largest = np.abs(turn[:, component - 1]).argmax()
        assert (graph.all_points[path.rows[-1]] - graph.all_points[path.rows[0]])[largest] > 0
    with pytest.raises(ArgumentError, match="1 to 3; got 4"):
        principal_path(graph, 4)


def test_a_principal_path_does_not_end_at_a_stray(generator):
    """The axis of a horseshoe leads out of it, to where one particle lies by accident."""
    angle = generator.uniform(0, np.pi, 3000)
    horseshoe = 10 * np.column_stack([np.cos(angle), np.sin(angle)])
    horseshoe += 0.3 * generator.standard_normal(horseshoe.shape)
    low = np.percentile(horseshoe[:, 1], 5)
    points = np.concatenate([horseshoe, [[0.0, low]]])  # in its opening
    graph = ParticleGraph(points)
    across = principal_path(graph, 2)
    assert len(points) - 1 not in across.rows
    radius = np.linalg.norm(points[across.rows], axis=1)
    assert (radius > 8).all()


def test_separate_blobs_are_joined_by_the_shortest_bridge(generator):
    blobs = np.concatenate([generator.standard_normal((500, 2)) + [x, 0] for x in (0, 50, 120)])
    graph = ParticleGraph(blobs)
    full = graph.between(0, 1499)
    steps = np.linalg.norm(np.diff(blobs[full.rows], axis=0), axis=1)
    np.testing.assert_allclose(np.cumsum(steps), full.lengths[1:])
    bridges = np.sort(steps)[-2:]
    distances = np.linalg.norm(blobs[:500, None] - blobs[None, 500:1000], axis=2)
    others = np.linalg.norm(blobs[500:1000, None] - blobs[None, 1000:], axis=2)
    np.testing.assert_allclose(bridges, [distances.min(), others.min()])


def test_the_tree_connects_the_nearest(generator):
    centers = np.array([[0, 0], [9, 0], [18, 0], [0, 9], [27, 0]])
    points = np.concatenate([c + 0.3 * generator.standard_normal((100, 2)) for c in centers])
    rows = [0, 100, 200, 300, 400]
    graph = ParticleGraph(points, rows)
    assert cluster_tree(graph, rows) == [(0, 1), (0, 3), (1, 2), (2, 4)]
    assert cluster_tree(graph, rows[:1]) == []


def test_one_dimension_and_duplicates():
    points = np.repeat(np.arange(20.0), 30)[:, None]
    graph = ParticleGraph(points, [5, 595])
    path = path_between(graph, 5, 595, count=5)
    assert path.rows[0] == 5 and path.rows[-1] == 595
    np.testing.assert_array_equal(path.lengths[[0, -1]], [0, 19])
    assert len(path) == 5 == len(np.unique(points[path.rows]))
    assert len(path_between(graph, 5, 5)) == 1
    assert len(principal_path(graph, 1)) <= 10
    same = ParticleGraph(np.zeros((7, 2)), [2, 4])
    assert path_between(same, 2, 4).lengths.tolist() == [0]
    assert cluster_tree(same, [2, 4]) == [(0, 1)]


def test_many_tight_clumps_are_still_one_graph(generator):
    centers = 100 * generator.standard_normal((300, 2))
    points = (centers[:, None] + 1e-6 * generator.standard_normal((300, 12, 2))).reshape(-1, 2)
    assert np.isfinite(ParticleGraph(points).lengths_among([0, 3599])).all()


def test_few_particles_give_short_paths():
    graph = ParticleGraph([[0.0, 0.0], [1.0, 0.0], [2.0, 0.1]])
    assert path_between(graph, 0, 2).rows.tolist() == [0, 1, 2]
    assert path_between(ParticleGraph([[3.0]]), 0, 0).rows.tolist() == [0]


def test_a_million_particles_take_seconds(generator):
    points = generator.standard_normal((1_000_000, 3)).astype(np.float32)
    points[1::2, 0] += 6
    start = time.perf_counter()
    graph = ParticleGraph(points, [0, 1], seed=1)
    path = path_between(graph, 0, 1)
    principal_path(graph, 1)
    assert time.perf_counter() - start < 20
    assert len(graph.rows) <= MOST_PARTICLES + 2
    assert (path.rows[0], path.rows[-1]) == (0, 1) and len(np.unique(path.rows)) == 10


def test_the_same_seed_gives_the_same_path(generator):
    points = generator.standard_normal((MOST_PARTICLES + 1000, 2))
    first, second = (path_between(ParticleGraph(points, [3, 7], 5), 3, 7) for _ in range(2))
    np.testing.assert_array_equal(first.rows, second.rows)


def test_what_is_refused(generator):
    for bad in (np.zeros(3), np.zeros((0, 2)), [[np.nan]]):
        with pytest.raises(ArgumentError, match="finite"):
            ParticleGraph(bad)
    with pytest.raises(ArgumentError, match="from 0 to 2"):
        ParticleGraph(np.zeros((3, 1)), [3])
    graph = ParticleGraph(np.arange(9.0)[:, None])
    with pytest.raises(ArgumentError, match="not in the graph"):
        graph.between(0, 11)
