"""The figures of a run, one function each; all are drawn from saved results alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist

from cryodrgn_metric.artifacts import atomic_path

__all__ = [
    "coordinates_figure",
    "distance_net_figure",
    "learning_curves_figure",
    "raw_distance_figure",
    "rotation_angles_figure",
    "sampled_rows",
    "save_figure",
    "shepard_figure",
]

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

DPI = 150
MOST_POINTS = 50_000
_INK = "#1f3b57"
_ACCENT = "#c8553d"


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_path(path) as draft:
        figure.savefig(draft, dpi=DPI)


def _figure(columns: int, title: str, height: float = 4.2) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(4.6 * columns, height), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def shepard_figure(
    spaces: dict[str, FloatArray], distances: FloatArray, scores: dict[str, dict[str, float]]
) -> Figure:
    """Distance in each space against Delta, over pairs of held-out landmarks.

    Arguments:
        spaces: Name to coordinates of the test landmarks, (n, d).
        distances: Delta among them, (n, n).
        scores: `fidelity_of` per name.
    """
    figure, axes = _figure(len(spaces), "Shepard diagrams, pairs of held-out landmarks")
    measured = distances[np.triu_indices(len(distances), 1)]
    for axis, (name, points) in zip(axes, spaces.items(), strict=True):
        shown = pdist(points)
        axis.scatter(measured, shown, s=6, alpha=0.35, color=_INK, linewidths=0, rasterized=True)
        scale = float(shown @ measured) / max(float(shown @ shown), 1e-30)
        reach = measured.max()
        slope = 1.0 if name == "z'" else 1 / max(scale, 1e-30)
        label = "distance = Δ" if name == "z'" else "best scale"
        axis.plot([0, reach], [0, reach * slope], color=_ACCENT, lw=1.2, label=label)
        axis.legend(frameon=False, loc="upper left")
        axis.set_title(
            f"{name}: stress-1 {scores[name]['stress1']:.3f}, "
            f"Spearman {scores[name]['spearman']:.3f}",
            fontsize=10,
        )
        axis.set_xlabel("measured Δ (density units)")
        unit = "units of Δ" if name == "z'" else "latent units"
        axis.set_ylabel(f"distance in {name} ({unit})")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
    return figure


def distance_net_figure(
    predicted: FloatArray, measured: FloatArray, errors: dict[str, float]
) -> Figure:
    """h_psi against Delta on pairs of held-out landmarks, and its relative error against Delta."""
    figure, (left, right) = _figure(2, "h_ψ on pairs of held-out landmarks")
    reach = float(measured.max())
    left.scatter(measured, predicted, s=6, alpha=0.35, color=_INK, linewidths=0, rasterized=True)
    left.plot([0, reach], [0, reach], color=_ACCENT, lw=1.2, label="predicted = measured")
    left.set(xlabel="measured Δ (density units)", ylabel="predicted h_ψ (density units)")
    left.set_title(f"median error {100 * errors['median_relative_error']:.1f} %", fontsize=10)
    left.legend(frameon=False)
    relative = 100 * (predicted - measured) / np.maximum(measured, 1e-30)
    right.scatter(measured, relative, s=6, alpha=0.35, color=_INK, linewidths=0, rasterized=True)
    right.axhline(0, color=_ACCENT, lw=1.2)
    bound = float(np.clip(np.percentile(np.abs(relative), 99), 1, 200))
    right.set(xlabel="measured Δ (density units)", ylabel="error (%)", ylim=(-bound, bound))
    p90 = 100 * errors["percentile_90_relative_error"]
    right.set_title(f"90 % of pairs within {p90:.1f} %", fontsize=10)
    return figure


def learning_curves_figure(
    distance_net: dict[str, list[float]], metric_map: dict[str, list[float]]
) -> Figure:
    """Training of h_psi (loss and validation error) and of f_xi (loss)."""
    figure, (left, right) = _figure(2, "Learning curves")
    left.semilogy(distance_net["epoch"], distance_net["train"], color=_INK, label="training loss")
    left.semilogy(
        distance_net["epoch"],
        distance_net["validation"],
        color=_ACCENT,
        label="relative error, validation landmarks",
    )
    left.set(xlabel="epoch", ylabel="loss, relative error", title="h_ψ")
    left.legend(frameon=False)
    right.semilogy(metric_map["step"], metric_map["loss"], color=_INK)
    right.set(xlabel="step", ylabel="loss", title="f_ξ")
    return figure


def coordinates_figure(
    points: FloatArray,
    title: str,
    axis_names: tuple[str, str],
    labels: IntArray | None = None,
    centers: IntArray | None = None,
    seed: int = 0,
) -> Figure:
    """Scatter (coloured by cluster) or density of the first two coordinates of all particles.

    Arguments:
        points: (N, d); with d = 1 the particles are spread at random along y.
        title: Of the figure.
        axis_names: With units.
        labels: Cluster numbers, (N,); None draws the density of particles instead.
        centers: Particle numbers that are marked with their cluster numbers.
        seed: Of the sample drawn where N > 50,000.
    """
    figure, (axis,) = _figure(1, title, height=4.4)
    figure.set_size_inches(5.6, 4.8)
    x = points[:, 0]
    y = points[:, 1] if points.shape[1] > 1 else _spread(len(points), seed)
    if labels is None:
        drawn = axis.hexbin(x, y, gridsize=60, bins="log", mincnt=1, cmap="viridis")
        figure.colorbar(drawn, ax=axis, label="particles")
    else:
        chosen = sampled_rows(len(points), seed)
        colors = matplotlib.colormaps["tab20"](labels[chosen] % 20)
        size = float(np.clip(2e4 / len(chosen), 0.5, 8))
        axis.scatter(x[chosen], y[chosen], s=size, c=colors, linewidths=0, rasterized=True)
    for number, center in enumerate(centers if centers is not None else ()):
        axis.plot(x[center], y[center], "o", ms=4, mfc="white", mec="black", mew=0.8)
        axis.annotate(
            str(number), (x[center], y[center]), (3, 3), textcoords="offset points", fontsize=8
        )
    axis.set(xlabel=axis_names[0], ylabel=axis_names[1])
    axis.set_aspect("equal" if points.shape[1] > 1 else "auto", adjustable="datalim")
    return figure


def _spread(count: int, seed: int) -> FloatArray:
    return np.random.default_rng(seed).uniform(-1, 1, count)


def sampled_rows(count: int, seed: int) -> IntArray:
    """At most 50,000 of `count` rows, drawn at random."""
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.random.default_rng(seed).choice(count, MOST_POINTS, replace=False)


def rotation_angles_figure(angles_in_degrees: FloatArray) -> Figure:
    """Distribution of the optimal rotation angle over landmark pairs."""
    figure, (axis,) = _figure(1, "How far landmarks are turned against each other")
    axis.hist(angles_in_degrees, bins=np.linspace(0, 180, 61), color=_INK, log=True)
    axis.axvline(float(np.median(angles_in_degrees)), color=_ACCENT, lw=1.2, label="median")
    axis.set(xlabel="angle of the optimal rotation (degrees)", ylabel="landmark pairs (log scale)")
    axis.legend(frameon=False)
    return figure


def raw_distance_figure(raw: FloatArray, distances: FloatArray) -> Figure:
    """Distance before against after the rotation is taken out, over landmark pairs."""
    figure, (axis,) = _figure(1, "Rotation taken out: raw distance against Δ")
    axis.scatter(raw, distances, s=4, alpha=0.25, color=_INK, linewidths=0, rasterized=True)
    reach = float(raw.max())
    axis.plot([0, reach], [0, reach], color=_ACCENT, lw=1.2, label="nothing to turn")
    share = 1 - float((distances**2).sum()) / max(float((raw**2).sum()), 1e-30)
    axis.set_title(f"{100 * share:.1f} % of the squared raw distance is rotation", fontsize=10)
    axis.set(xlabel="||V1 - V2|| (density units)", ylabel="Δ = min over R of ||V1 - R·V2||")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    return figure
