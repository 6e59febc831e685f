"""Which particles to take next: the clusters, their volumes, and the files that select them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from cryodrgn_metric.report.content import Picture, Section, Table
from cryodrgn_metric.report.drawing import FloatArray, tiles
from cryodrgn_metric.report.results import Results

__all__ = ["clusters_section"]

_COLUMNS = 5
_MOST_PIXELS = 96  # a side of an image in the montage


def clusters_section(results: Results) -> Section:
    """The table of clusters, and their representatives side by side.

    Arguments:
        results: Of a finished run.
    """
    shown = {
        cluster["label"]: path
        for cluster in results.summary["clusters"]
        if (path := _volume_of(results, cluster)).is_file()
    }
    pictures = []
    if shown:
        pictures.append(
            Picture(
                "representatives",
                _montage(shown),
                "The representative volume of every k-means cluster, projected along z, all in "
                "one frame. Neighbouring numbers are similar structures.",
            )
        )
    folder = results.folder.kmeans(results.cluster_count).relative_to(results.folder.path)
    paragraphs = [
        f"`{folder.as_posix()}/ind_cluster<label>.pkl` holds the particles of a cluster, numbered "
        "as in the original stack, for `--ind` of `cryodrgn train_vae` and of "
        f"{_selecting(results)}. To choose by hand, `cryodrgn filter` and `cryodrgn dashboard` "
        "open this folder. Labels count from 0, volumes from 1, as in cryoDRGN; `--sel` of "
        "`cryodrgn_utils select_clusters` counts from 1.",
    ]
    return Section("clusters", "Which particles next?", paragraphs, pictures, [_table(results)])


def _selecting(results: Results) -> str:
    if results.workdir.config["model_args"].get("encode_mode") == "tilt":
        return "`cryodrgn_utils filter_star --et` (`write_star` would take them for images)"
    return "`cryodrgn_utils write_star`, `filter_star` and `filter_cs`"


def _volume_of(results: Results, cluster: dict[str, Any]) -> Path:
    return results.folder.volume(results.cluster_count, cluster["label"] + 1)


def _montage(volumes: dict[int, Path]) -> Figure:
    images = np.stack([_projection(path) for path in volumes.values()])
    rows = -(-len(images) // _COLUMNS)
    limits = [tuple(np.percentile(images, [1, 99.8]))] * rows
    places = np.full((rows * _COLUMNS, *images.shape[1:]), np.nan)
    places[: len(images)] = images
    figure = Figure(figsize=(1.6 * _COLUMNS, 1.6 * rows + 0.4), layout="constrained")
    figure.suptitle("Representatives of the k-means clusters")
    axis = figure.subplots()
    tiles(axis, places.reshape(rows, _COLUMNS, *images.shape[1:]), limits, "gray")
    axis.set_axis_off()
    outlined = [withStroke(linewidth=2, foreground="black")]  # where --invert made it bright
    for place, label in enumerate(volumes):
        corner = place % _COLUMNS + 0.06, place // _COLUMNS + 0.06
        axis.text(*corner, str(label), color="white", fontsize=9, va="top", path_effects=outlined)
    return figure


def _projection(path: Path) -> FloatArray:
    """Along z, thinned to what a small picture can show."""
    with mrcfile.mmap(path, mode="r", permissive=True) as file:
        image = np.asarray(file.data).sum(axis=0, dtype=np.float64)
    fold = max(1, len(image) // _MOST_PIXELS)
    side = len(image) // fold
    image = image[: side * fold, : side * fold].reshape(side, fold, side, fold).mean(axis=(1, 3))
    return np.asarray(image)


def _table(results: Results) -> Table:
    folder = results.folder.kmeans(results.cluster_count)
    rows = []
    for cluster in results.summary["clusters"]:
        label, volume = cluster["label"], _volume_of(results, cluster)
        rows.append(
            [
                label,
                cluster["particles"],
                f"{100 * cluster['particles'] / len(results.labels):.1f} %",
                float(cluster["spread"]),
                cluster["medoid"],
                volume.name if volume.is_file() else "–",
                results.folder.cluster_members(results.cluster_count, label).name,
            ]
        )
    header = [
        "label",
        "particles",
        "share",
        "spread (Δ)",
        "medoid particle",
        "volume",
        "particles' file",
    ]
    return Table(f"k-means clusters of z', in {folder.name}", header, rows)
