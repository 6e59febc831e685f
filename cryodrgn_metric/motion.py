"""What moves: which paths through z' are taken, and their volumes."""

from __future__ import annotations

from itertools import chain

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from cryodrgn_metric.clusters import Clusters
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.frame import Frame, saved_frame
from cryodrgn_metric.measurement import Measured
from cryodrgn_metric.path_folder import PathFolder
from cryodrgn_metric.path_volumes import PathSummary, remove_path, write_path
from cryodrgn_metric.paths import (
    LARGEST_CLUSTERS,
    ParticleGraph,
    cluster_tree,
    path_between,
    principal_path,
)
from cryodrgn_metric.run import Run
from cryodrgn_metric.safe_files.pickles import load_pickle

__all__ = ["add_path", "write_motion"]

Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def write_motion(
    run: Run, measured: Measured, z_metric: Array, clusters: Clusters
) -> list[PathSummary]:
    """Paths along the components of z' and among its largest clusters, with their volumes.

    The first four components get one each, and so do the branches of the tree that connects the
    five largest clusters (`paths.cluster_tree`). Paths of earlier runs are removed.

    Arguments:
        run: What all stages share.
        measured: The landmarks, whose medoid gives the frame.
        z_metric: z' of all particles, (N, d').
        clusters: k-means of z'.

    Returns:
        One summary a path, for report.json; components first.
    """
    frame, graph = Frame.of(measured), _graph(run, z_metric, clusters.centers_ind)
    planned = [
        (run.folder.principal_path(component), principal_path(graph, component), run.written_box)
        for component in range(1, z_metric.shape[1] + 1)
    ]
    planned += [
        (
            run.folder.cluster_path(first, second),
            path_between(graph, *clusters.centers_ind[[first, second]].tolist()),
            run.stream.box,
        )
        for first, second in _branches(graph, clusters)
    ]
    _remove_other_paths(run, {folder.name for folder, _, _ in planned})
    summaries = []
    total = sum(len(path) for _, path, _ in planned)
    with tqdm(total=total, unit="vol", desc="Volumes along paths") as bar:
        for folder, path, box in planned:
            found = write_path(run, frame, path, folder, z_metric, box)
            summaries += [] if found is None else [found]
            bar.update(len(path))
    return summaries


def add_path(run: Run, first: int, second: int) -> PathSummary | None:
    """One more path between two clusters, from what an earlier run has saved.

    Arguments:
        run: Prepared from the same configuration.
        first, second: Labels of the clusters, from 0.

    Returns:
        Its summary; None if no volume on it can be compared.

    Raises:
        ArgumentError: There are no such clusters, or the run is not finished.
    """
    centers = run.folder.cluster_center_indices(run.config.clusters.count)
    if not centers.is_file():
        raise ArgumentError(f"{centers} is missing: the run is not finished. Type it again.")
    rows = np.loadtxt(centers, dtype=np.int64, ndmin=1)
    if first == second or not {first, second} <= set(range(len(rows))):
        raise ArgumentError(
            f"--path takes two different clusters from 0 to {len(rows) - 1}, as labels.pkl "
            f"counts them; got {first} {second}."
        )
    z_metric = np.asarray(load_pickle(run.folder.z_metric))
    path = path_between(_graph(run, z_metric, rows), int(rows[first]), int(rows[second]))
    folder = run.folder.cluster_path(first, second)
    return write_path(run, saved_frame(run), path, folder, z_metric, run.stream.box)


def _graph(run: Run, z_metric: Array, ends: IntArray) -> ParticleGraph:
    """The same for every path of a run, so that one that is added later is no other."""
    return ParticleGraph(z_metric, ends, run.config.seed)


def _branches(graph: ParticleGraph, clusters: Clusters) -> list[tuple[int, int]]:
    """Labels of the clusters that get a path: the tree of the five largest."""
    by_size = np.argsort(-np.bincount(clusters.labels), kind="stable")
    largest = np.sort(by_size[:LARGEST_CLUSTERS])
    tree = cluster_tree(graph, clusters.centers_ind[largest].tolist())
    return [(int(largest[first]), int(largest[second])) for first, second in tree]


def _remove_other_paths(run: Run, kept: set[str]) -> None:
    """Paths of earlier runs, through an older z'; what else lies there is the user's."""
    there = (run.folder.analysis.glob(pattern) for pattern in ("pc*", "straight*", "path_*"))
    for path in chain.from_iterable(there):
        folder = PathFolder(path)
        if folder.numbers and folder.name not in kept and path.is_dir():
            remove_path(folder)
