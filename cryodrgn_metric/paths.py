r"""Paths on the data: from particle to particle through z', never across its empty parts.

As ``cryodrgn graph_traversal`` does in z, a path is the shortest one along a graph of nearest
neighbours. Of at most 50,000 particles (a random sample, and the ends that paths will have), two
are joined where each is among the other's 20 nearest (5 % of fewer than 400): a stray particle
between two arms, whose neighbours lie in both, then bridges nothing. What that leaves apart is
joined by the shortest bridges, first of the one-sided neighbours, then of all, so that there is a
path from anywhere to anywhere. graph_traversal drops all edges above one length instead, which
cuts sparse regions off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra, minimum_spanning_tree
from scipy.spatial import cKDTree
from sklearn.neighbors import kneighbors_graph

from cryodrgn_metric.errors import ArgumentError

__all__ = ["MetricPath", "ParticleGraph", "cluster_tree", "path_between", "principal_path"]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

MOST_PARTICLES = 50_000
NEIGHBOURS = 20  # with fewer, mutual ones leave detours where z' has more than three dimensions
LEAST_SHARE = 20  # of fewer particles, no more than one in twenty: all would be neighbours
MOST_PIECES = 30  # left by the neighbours; bridges between many pieces are looked for slowly
ALONG_PATH = 10  # volumes, as many as `cryodrgn analyze` makes along a principal component
LARGEST_CLUSTERS = 5  # that paths connect in every run
PERCENTILES = (5, 95)  # where analyze begins and ends
WINDOW = 2  # percent around them, in which an end is looked for


@dataclass(frozen=True)
class MetricPath:
    """Particles along a path, in its order.

    Arguments:
        rows: Rows of z, each once. (P,)
        lengths: Length in z' (units of Delta) of the polygon through them, up to each; what the
            steps of Delta add up to, if z' is right. (P,)
    """

    rows: IntArray
    lengths: FloatArray

    def __len__(self) -> int:
        return len(self.rows)


class ParticleGraph:
    """The graph of nearest neighbours in z' on which paths run.

    Arguments:
        z_metric: z' of all particles, (N, d').
        ends: Rows that must be in it; all others may be left out by the sample.
        seed: Of the sample.

    Raises:
        ArgumentError: z_metric is no finite (N, d') array.

    References:
        Mutual nearest neighbours: Brito et al., Statistics & Probability Letters 35, 1997,
        doi:10.1016/S0167-7152(96)00213-1.

    Example:
        >>> graph = ParticleGraph([[0.0], [1.0], [2.0], [9.0]])
        >>> graph.between(3, 0).rows
        array([3, 2, 1, 0])
    """

    def __init__(self, z_metric: npt.ArrayLike, ends: npt.ArrayLike = (), seed: int = 0) -> None:
        points = np.asarray(z_metric, dtype=np.float64)
        if points.ndim != 2 or not points.size or not np.isfinite(points).all():
            raise ArgumentError(f"z' must be a finite array (N, d'); got shape {points.shape}.")
        self.all_points = points
        rows = _sampled_rows(len(points), np.asarray(ends, dtype=np.int64), seed)
        self.points, first, vertex = np.unique(
            points[rows], axis=0, return_index=True, return_inverse=True
        )
        self.rows: IntArray = rows[first]
        self._vertex_of = dict(zip(rows.tolist(), vertex.ravel().tolist(), strict=True))
        self._edges = _connected_graph(self.points)

    def vertex(self, row: int) -> int:
        """The vertex of a row of z; rows with the same z' share one."""
        if row not in self._vertex_of:
            raise ArgumentError(f"particle {row} is not in the graph; name it among its ends.")
        return int(self._vertex_of[row])

    def between(self, first: int, second: int) -> MetricPath:
        """The shortest path between two rows, with every particle on it."""
        start, here = self.vertex(first), self.vertex(second)
        _, before = dijkstra(self._edges, directed=False, indices=start, return_predecessors=True)
        vertices = [here]
        while vertices[-1] != start:
            vertices.append(int(before[vertices[-1]]))
        return self.through(self.rows[vertices[::-1]])

    def through(self, rows: IntArray) -> MetricPath:
        """The polygon through some rows, in their order."""
        steps = np.linalg.norm(np.diff(self.all_points[rows], axis=0), axis=1)
        return MetricPath(rows, np.concatenate([[0.0], np.cumsum(steps)]))

    def lengths_among(self, rows: Sequence[int]) -> FloatArray:
        """Lengths of the shortest paths among some rows, (K, K)."""
        vertices = [self.vertex(row) for row in rows]
        found = dijkstra(self._edges, directed=False, indices=vertices)
        return np.asarray(found[:, vertices], dtype=np.float64)


def path_between(
    graph: ParticleGraph, first: int, second: int, count: int = ALONG_PATH
) -> MetricPath:
    """The shortest path between two particles, and `count` of those on it, evenly spread.

    Arguments:
        graph: Of z'.
        first, second: Rows of z, among the ends of the graph.
        count: Particles wanted; fewer where the path passes fewer.

    Returns:
        The path, both ends included.

    Example:
        >>> circle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
        >>> graph = ParticleGraph(np.column_stack([np.cos(circle), np.sin(circle)]), [0, 200])
        >>> bool(abs(path_between(graph, 0, 200).lengths[-1] - np.pi) < 0.03)
        True
    """
    full = graph.between(first, second)
    wanted = np.linspace(0, full.lengths[-1], min(count, len(full)))
    kept = np.unique(np.abs(full.lengths[:, None] - wanted).argmin(axis=0))
    return graph.through(full.rows[kept])


def principal_path(graph: ParticleGraph, component: int, count: int = ALONG_PATH) -> MetricPath:
    """A path on the data along one principal component of z'.

    It leads from about the component's 5th percentile to about its 95th, the ends that ``cryodrgn
    analyze`` has; each end is the particle with the densest neighbourhood among those within two
    percent of it, for the point on the axis itself may lie where no particle is, and the one
    nearest to it be a stray. Between them the path may follow the data away from the axis, which a
    straight line of particles nearest to points on it would not survive: where the data bends,
    those lie on one arm and on the other by turns.

    Arguments:
        graph: Of z'; the component is that of all particles.
        component: From 1.
        count: Particles wanted; fewer where the path passes fewer.

    Returns:
        The path, towards larger values of the component.

    Raises:
        ArgumentError: z' has no such component.
    """
    points = graph.all_points
    dimension = points.shape[1]
    if not 1 <= component <= dimension:
        raise ArgumentError(f"z' has components 1 to {dimension}; got {component}.")
    _, axes = np.linalg.eigh(np.atleast_2d(np.cov(points.T, ddof=0)))
    axis = axes[:, dimension - component]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])
    along = points @ axis
    first, second = (
        _densest_between(graph, axis, *np.percentile(along, [end - WINDOW, end + WINDOW]))
        for end in PERCENTILES
    )
    return path_between(graph, first, second, count)


def _densest_between(graph: ParticleGraph, axis: FloatArray, low: float, high: float) -> int:
    """The row whose neighbours are nearest, of those between two values along an axis."""
    along = graph.points @ axis
    inside = np.flatnonzero((along >= low) & (along <= high))
    if not len(inside):  # of a few particles
        inside = np.array([np.abs(along - (low + high) / 2).argmin()])
    neighbours = min(NEIGHBOURS + 1, len(graph.points))
    reach, _ = cKDTree(graph.points).query(graph.points[inside], [neighbours])
    return int(graph.rows[inside[reach[:, 0].argmin()]])


def cluster_tree(graph: ParticleGraph, representatives: Sequence[int]) -> list[tuple[int, int]]:
    """Which clusters to connect so that a path leads from any to any other.

    Arguments:
        graph: Of z', with the representatives among its ends.
        representatives: Rows of z, one a cluster. (K,)

    Returns:
        The K - 1 branches of the minimum spanning tree by path length, as sorted pairs of
        positions in `representatives`.

    Example:
        >>> cluster_tree(ParticleGraph([[0.0], [5.0], [1.0]]), [0, 1, 2])
        [(0, 2), (1, 2)]
    """
    lengths = graph.lengths_among(representatives)
    # to scipy a zero is no edge; two representatives may lie on the same point
    lengths = np.maximum(lengths, np.finfo(np.float64).tiny)
    tree = minimum_spanning_tree(csr_matrix(np.triu(lengths, 1))).tocoo()
    return sorted((int(i), int(j)) for i, j in zip(tree.row, tree.col, strict=True))


def _sampled_rows(total: int, ends: IntArray, seed: int) -> IntArray:
    """Rows of the graph, its ends first: of equal points, np.unique keeps the first."""
    if ((ends < 0) | (ends >= total)).any():
        raise ArgumentError(f"rows of z are from 0 to {total - 1}; got {ends.tolist()}.")
    rows = np.arange(total)
    if total > MOST_PARTICLES:
        rows = np.sort(np.random.default_rng(seed).choice(total, MOST_PARTICLES, replace=False))
    return np.concatenate([np.unique(ends), np.setdiff1d(rows, ends)])


def _connected_graph(points: FloatArray) -> csr_matrix:
    if len(points) == 1:
        return csr_matrix((1, 1))
    neighbours = min(NEIGHBOURS, max(1, len(points) // LEAST_SHARE))
    edges = kneighbors_graph(points, neighbours, mode="distance")
    mutual = edges.minimum(edges.T)
    one_sided = edges.maximum(edges.T)
    while neighbours < len(points) - 1 and connected_components(one_sided)[0] > MOST_PIECES:
        neighbours = min(4 * neighbours, len(points) - 1)
        further = kneighbors_graph(points, neighbours, mode="distance")
        one_sided = further.maximum(further.T)
    bridges = minimum_spanning_tree(_joined(one_sided, points))
    return mutual.maximum(bridges).maximum(bridges.T).tocsr()


def _joined(edges: csr_matrix, points: FloatArray) -> csr_matrix:
    """With the shortest bridge from every piece but the largest, until there is one (Boruvka)."""
    while True:
        pieces, labels = connected_components(edges, directed=False)
        if pieces == 1:
            return edges
        bridges = [
            _shortest_bridge(points, labels == piece)
            for piece in np.argsort(np.bincount(labels), kind="stable")[:-1]
        ]
        rows, columns, lengths = (np.array(column) for column in zip(*bridges, strict=True))
        found = csr_matrix((lengths, (rows, columns)), shape=edges.shape)
        edges = edges.maximum(found).maximum(found.T)


def _shortest_bridge(points: FloatArray, inside: npt.NDArray[np.bool_]) -> tuple[int, int, float]:
    members, others = np.flatnonzero(inside), np.flatnonzero(~inside)
    distances, found = cKDTree(points[others]).query(points[members])
    shortest = int(np.argmin(distances))
    return int(members[shortest]), int(others[found[shortest]]), float(distances[shortest])
