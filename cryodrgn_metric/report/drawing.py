"""How all figures look, and what several of them share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = [
    "ACCENT",
    "CSS_PIXELS_PER_INCH",
    "INK",
    "MOST_POINTS",
    "NONE",
    "FloatArray",
    "IntArray",
    "cluster_colors",
    "diagonal",
    "pair_cloud",
    "panels",
    "particle_cloud",
    "png_of",
    "sampled_in_words",
    "sampled_rows",
    "spread",
    "tiles",
]

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

# Sharp on a screen of twice the usual density, yet some 100 kB; wide figures lose resolution
# before they lose their place on the page.
DPI = 150
CSS_PIXELS_PER_INCH = 96  # what browsers call an inch
MOST_PIXELS_ACROSS = 1800
MOST_PIXELS_DOWN = 4000
MOST_POINTS = 50_000
MOST_PAIRS = 20_000
INK = "#1f3b57"
ACCENT = "#c8553d"
GAP = 0.025  # around a tile, of its width
NONE = "#b8b8b8"  # particles that belong to no cluster


def png_of(figure: Figure) -> bytes:
    """A figure as PNG, sharp on a screen of twice the usual density.

    The canvas draws it once; `savefig` would draw it twice, for the same bytes.
    """
    wide, high = figure.get_size_inches()
    figure.set_dpi(min(DPI, MOST_PIXELS_ACROSS / wide, MOST_PIXELS_DOWN / high))
    buffer = io.BytesIO()
    # no date and no version: the same figure gives the same bytes
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def panels(
    columns: int, title: str = "", rows: int = 1, width: float = 4.6, height: float = 4.2
) -> tuple[Figure, list[Any]]:
    """A figure of equal panels, row by row, without the frame's upper and right line.

    Arguments:
        columns, rows: How many panels.
        title: Over all of them.
        width, height: Of one panel, in inches.
    """
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    if title:
        figure.suptitle(title)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def pair_cloud(axis: Axes, x: FloatArray, y: FloatArray, seed: int = 0) -> None:
    """One faint point a pair; of more than 20,000 pairs, so many at random."""
    if len(x) > MOST_PAIRS:
        chosen = np.random.default_rng(seed).choice(len(x), MOST_PAIRS, replace=False)
        x, y = x[chosen], y[chosen]
    alpha = float(np.clip(1500 / max(len(x), 1), 0.08, 0.4))
    axis.scatter(x, y, s=6, alpha=alpha, color=INK, linewidths=0, rasterized=True)


def diagonal(axis: Axes, reach: float, label: str, slope: float = 1.0) -> None:
    """The line from the origin on which all points would lie."""
    axis.plot([0, reach], [0, slope * reach], color=ACCENT, lw=1.2, label=label)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, loc="upper left")


def sampled_rows(count: int, seed: int) -> IntArray:
    """At most 50,000 of `count` rows, drawn at random."""
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, MOST_POINTS, replace=False))


def sampled_in_words(count: int) -> str:
    """What `sampled_rows` takes of `count` particles, to begin a caption with."""
    if count <= MOST_POINTS:
        return "Every particle"
    return f"A random sample of {MOST_POINTS:,} of the {count:,} particles"


def spread(count: int, seed: int) -> FloatArray:
    """Random heights, for points that have one coordinate only."""
    return np.random.default_rng(seed).uniform(-1, 1, count)


def cluster_colors(labels: IntArray) -> FloatArray:
    """RGBA of cluster numbers; -1, no cluster, is grey."""
    colors = np.asarray(matplotlib.colormaps["tab20"](labels % 20))
    colors[labels < 0] = matplotlib.colors.to_rgba(NONE)
    return colors


def particle_cloud(axis: Axes, x: FloatArray, y: FloatArray, colors: Any, **options: Any) -> Any:
    """One point a particle, smaller the more there are."""
    size = float(np.clip(2e4 / max(len(x), 1), 0.5, 8))
    return axis.scatter(x, y, s=size, c=colors, linewidths=0, rasterized=True, **options)


def tiles(
    axis: Axes,
    images: FloatArray,
    limits: Sequence[tuple[float, float]],
    cmap: str,
    left: float = 0.0,
) -> None:
    """Small images in rows and columns, each one unit wide; one picture, so that it draws fast.

    Arguments:
        axis: Rows run downwards from 0, columns to the right from `left`.
        images: (rows, columns, n, n).
        limits: Of the values, for each row.
        cmap: Of matplotlib.
        left: Where the first column begins.
    """
    rows, columns, high, wide = images.shape
    low, top = np.array(limits, dtype=np.float64).T[:, :, None, None, None]
    shown = (images - low) / np.maximum(top - low, 1e-30)
    gap = max(1, round(GAP * wide))
    framed = np.full((rows, columns, high + 2 * gap, wide + 2 * gap), np.nan)
    framed[:, :, gap : gap + high, gap : gap + wide] = np.clip(shown, 0, 1)
    picture = framed.transpose(0, 2, 1, 3).reshape(rows * framed.shape[2], -1)
    axis.imshow(
        picture,
        cmap=cmap,
        vmin=0,
        vmax=1,
        extent=(left, left + columns, rows, 0),
        interpolation="nearest",
    )
    axis.set(xlim=(0, left + columns), ylim=(rows, 0))
    axis.tick_params(
        length=0, labelsize=8, top=False, labeltop=True, bottom=False, labelbottom=False
    )
    axis.spines[:].set_visible(False)
