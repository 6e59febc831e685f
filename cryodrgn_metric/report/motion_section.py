"""What moves: volumes along paths through z', one after another and their differences."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from cryodrgn_metric.report.content import Picture, Section, Table
from cryodrgn_metric.report.drawing import (
    ACCENT,
    INK,
    FloatArray,
    cluster_colors,
    panels,
    particle_cloud,
    sampled_rows,
    tiles,
)
from cryodrgn_metric.report.landscape_section import plane_of
from cryodrgn_metric.report.results import MeasuredPath, Results

__all__ = ["motion_section"]

_ROWS = (
    "projection\nalong z",
    "projection\nalong y",
    "projection\nalong x",
    "slice z",
    "slice y",
    "slice x",
)
_GROUPS = (slice(0, 3), slice(3, 6))  # rows that share their scale


def motion_section(results: Results) -> Section:
    """Figures of every path that was written.

    Arguments:
        results: Of a finished run.
    """
    pictures = []
    if results.paths:
        pictures.append(
            Picture(
                "paths",
                _map_of_paths(results),
                "The paths below on the map of z', each through up to ten particles of the data "
                "set. They follow where particles are, so that every volume on them was seen"
                f"{_dashed(results)}.",
            )
        )
    for path in results.paths:
        pictures += _pictures(path, results.wording.unit)
    straight = [path for path in results.paths if path.folder.is_straight]
    paragraphs = [
        "Each path joins real particles through their nearest neighbours in z', as `cryodrgn "
        "graph_traversal` does in z. Its volumes are decoded, turned into one frame (that of the "
        "landmark with the smallest sum of distances), and compared with each other again"
        f"{', by models fitted to them' if results.by_models else ''}.",
        f"{_movies(results)}`z_values.txt` in a path's folder is for `cryodrgn eval_vol --zfile`. "
        "Another path: `cryodrgn_metric report WORKDIR --path A B`, with the labels of two "
        "clusters.",
    ]
    tables = [_table(results)]
    if straight:
        paragraphs.append(
            "The straight line of a component joins the ends of its path without following the "
            "data: its points are at equal steps of z', and the inverse of f_ξ turns them into z, "
            "the decoder into volumes. Where a line is far from every particle (second table), "
            "nothing in the data says that such a volume exists: steps of Δ much longer than "
            "those of z' are the sign of it. Where even z is out of range, there is no volume."
        )
        tables.append(_straight_table(straight, results))
    return Section("motion", "What moves?", paragraphs, pictures, tables)


def _dashed(results: Results) -> str:
    straight = any(path.folder.is_straight for path in results.paths)
    return "; straight lines (dashed) do not" if straight else ""


def _movies(results: Results) -> str:
    if not any(path.folder.movie.is_file() for path in results.paths):
        return ""  # --skip-vol
    return "`movie.cxc` in a path's folder opens its volumes in ChimeraX as a movie. "


def _pictures(path: MeasuredPath, unit: str) -> list[Picture]:
    name = path.folder.name
    return [
        Picture(
            f"{name}_volumes",
            _montage(path),
            f"Volumes of the {path.title}, aligned: projections and central slices, one "
            "column a volume. Look along a row for what moves, appears or fades.",
        ),
        Picture(
            f"{name}_differences",
            _differences(path),
            f"Each volume of the {path.title} minus the first, in the same views: red was added, "
            "blue taken away. A red and a blue lobe side by side are a part that moved.",
        ),
        Picture(
            f"{name}_steps",
            _steps(path, unit),
            f"Measured Δ from each volume of the {path.title} to the next, and added up. Even "
            "steps are a continuous motion; one large step is a jump between two states.",
        ),
    ]


def _map_of_paths(results: Results) -> Figure:
    plane, names = plane_of(results)
    rows = sampled_rows(len(plane), results.seed)
    figure, (axis,) = panels(1, "Paths through z'", width=6.4, height=5.2)
    colors = cluster_colors(results.labels[rows])
    particle_cloud(axis, plane[rows, 0], plane[rows, 1], colors, alpha=0.25)
    heights = np.linspace(-0.8, 0.8, max(len(results.paths), 2))
    for path, height in zip(results.paths, heights, strict=False):
        points = _in_plane(path, plane, results)
        if results.dimension == 1:
            points[:, 1] = height  # particles lie at random heights; a path has one of its own
        along = len(path.numbers) == 1
        axis.plot(
            *points.T,
            "o--" if path.folder.is_straight else "o-",
            ms=3,
            lw=1.4,
            color=ACCENT if along else INK,
            zorder=3,
        )
        middle = points[len(points) // 2]
        axis.annotate(
            path.folder.name,
            middle,
            (4, 4),
            textcoords="offset points",
            fontsize=8,
            zorder=4,
            bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.7},
        )
    axis.set(xlabel=names[0], ylabel=names[1])
    return figure


def _in_plane(path: MeasuredPath, plane: FloatArray, results: Results) -> FloatArray:
    """Where a path is drawn, (P, 2): at its particles, or where a straight line really runs."""
    points = path.arrays["z_metric"].astype(np.float64)
    if path.folder.is_straight and results.dimension == 2:
        return points
    if path.folder.is_straight and results.dimension > 2:
        pca = PCA(svd_solver="full").fit(results.z_metric.astype(np.float64))
        return np.asarray(pca.transform(points)[:, :2])
    return np.array(plane[path.arrays["rows"]])


def _montage(path: MeasuredPath) -> Figure:
    images = _views(path)
    limits = [tuple(np.percentile(images[rows], [1, 99.8])) for rows in _GROUPS for _ in range(3)]
    return _grid(path, images, limits, "gray")


def _differences(path: MeasuredPath) -> Figure:
    images = _views(path)
    change = images - images[:, :1]
    reaches = [max(float(np.percentile(np.abs(change[rows]), 99.8)), 1e-30) for rows in _GROUPS]
    limits = [(-reach, reach) for reach in reaches for _ in range(3)]
    return _grid(path, change, limits, "RdBu_r")


def _views(path: MeasuredPath) -> FloatArray:
    """(6, P, n, n): three projections, three slices."""
    views = [path.arrays["projections"], path.arrays["slices"]]
    return np.asarray(np.concatenate(views, axis=1).swapaxes(0, 1))


def _grid(
    path: MeasuredPath, images: FloatArray, limits: list[tuple[float, float]], cmap: str
) -> Figure:
    """A row for each view, a column for each volume."""
    views, count = images.shape[:2]
    figure = Figure(figsize=(1.0 * count + 0.9, 1.0 * views + 0.7), layout="constrained")
    figure.suptitle(path.title)
    axis = figure.subplots()
    tiles(axis, images, limits, cmap)
    axis.set_xticks(np.arange(count) + 0.5, [str(number + 1) for number in range(count)])
    axis.set_yticks(np.arange(views) + 0.5, _ROWS)
    return figure


def _steps(path: MeasuredPath, unit: str) -> Figure:
    steps = path.steps
    numbers = np.arange(2, len(steps) + 2)
    figure, (left, right) = panels(2, path.title, height=3.2)
    left.bar(numbers, steps, color=INK)
    left.set(xlabel="to volume", ylabel=f"Δ from the one before ({unit})")
    right.plot([1, *numbers], [0, *np.cumsum(steps)], "o-", color=INK, label="added up")
    ends = path.arrays["distances"][0]
    right.plot([1, *numbers], ends, "o-", color=ACCENT, label="straight from the first")
    right.set(xlabel="volume", ylabel=f"Δ ({unit})")
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    right.legend(frameon=False)
    return figure


def _table(results: Results) -> Table:
    header = ["path", "volumes", "length (Σ Δ)", "end to end (Δ)", "largest step (Δ)", "folder"]
    rows: list[list[str | int | float]] = [
        [
            path.title,
            len(path.arrays["rows"]),
            float(path.steps.sum()),
            float(path.arrays["distances"][0, -1]),
            float(path.steps.max(initial=0.0)),
            path.folder.path.relative_to(results.folder.path).as_posix(),
        ]
        for path in results.paths
    ]
    return Table("Paths", header, rows)


def _straight_table(paths: list[MeasuredPath], results: Results) -> Table:
    header = [
        "line",
        "volumes",
        "length in z'",
        "length (Σ Δ)",
        "farthest from a particle",
        "where",
    ]
    rows: list[list[str | int | float]] = []
    for path in paths:
        apart = path.arrays["distance_to_particles"]
        where = f"volume {int(apart.argmax()) + 1}"
        ends = path.arrays["z_metric"][[0, -1]].astype(np.float64)
        length = float(np.linalg.norm(ends[1] - ends[0]))
        total = float(path.steps.sum())
        rows.append([path.title, len(apart), length, total, float(apart.max()), where])
    return Table("Straight lines (units of Δ)", header, rows)
