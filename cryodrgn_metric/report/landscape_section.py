"""The landscape of z': where particles are, by cluster, by density, and how far f_xi stretches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cryodrgn_metric.density import GridDensity, density_of, negative_log
from cryodrgn_metric.report.content import Picture, Section, shown
from cryodrgn_metric.report.drawing import (
    ACCENT,
    INK,
    MOST_POINTS,
    FloatArray,
    IntArray,
    cluster_colors,
    panels,
    particle_cloud,
    sampled_in_words,
    sampled_rows,
    spread,
)
from cryodrgn_metric.report.results import Results

__all__ = ["landscape_section", "plane_of"]

Densities = dict[str, GridDensity]

_CONTOURS = 8


def landscape_section(results: Results) -> Section:
    """Figures of all particles in z'.

    Arguments:
        results: Of a finished run.
    """
    paragraphs, pictures = _paragraphs(results), _pictures(results)
    return Section("landscape", "What does the landscape look like?", paragraphs, pictures)


def _pictures(results: Results) -> list[Picture]:
    drawn, densities = sampled_in_words(len(results.labels)), _both(results)
    clustered = [
        Picture(
            "z_metric_kmeans",
            _clustered(results, results.labels, results.centers, "k-means clusters of z'"),
            f"{drawn} in z', coloured by k-means cluster; one unit on either axis is one unit of "
            "Δ. Numbers are the labels in labels.pkl, at the particle that stands for the "
            "cluster.",
        ),
        Picture(
            "z_metric_hdbscan",
            _clustered(results, results.densest, None, "HDBSCAN clusters of z'"),
            "The same, by a clustering that finds dense islands by itself and leaves grey what is "
            "in none. Few islands and much grey say that the motion is continuous rather than a "
            "set of states.",
        ),
    ]
    if results.umap is not None:
        clustered.append(_umap_picture(results, results.umap))
    return [
        *clustered,
        Picture(
            "density",
            _densities(results, densities),
            "Density of particles in z', as counted (left) and per unit of Δ (right), where "
            "places that f_ξ squeezed or stretched are set right. A basin that only the left "
            "one shows is the map's doing.",
        ),
        Picture(
            "negative_log_density",
            _negative_logs(results, densities),
            "Minus the logarithm of the same two densities, in contours of one. This is not a "
            "free energy: particles were picked and filtered, z is uncertain, and z' is not a "
            "reaction coordinate.",
        ),
        Picture(
            "stretch",
            _stretch(results),
            "How many units of Δ one unit of z is worth at each particle (the Jacobian of f_ξ), "
            "on the map and as a histogram of its singular values. Where it is small, a large "
            "step in z changes little: noise, or a rotation.",
        ),
    ]


def _paragraphs(results: Results) -> list[str]:
    noise = 100 * float((results.densest < 0).mean())
    found = int(results.densest.max()) + 1
    density = results.summary["density"]
    rank = density["directions"]
    said = [
        f"{_axes_in_words(results)} HDBSCAN finds {found} "
        f"island{'' if found == 1 else 's'}; {noise:.0f} % of the particles are in none.",
        f"The density per unit of Δ compares volumes in the {rank} leading direction"
        f"{'s' if rank > 1 else ''} of h_ψ; its correction ranges from "
        f"{density['correction_5']:.2f} to {density['correction_95']:.2f} over 90 % of the "
        "particles (1 where f_ξ follows h_ψ).",
    ]
    if results.flow is not None:
        said.append(_flow_in_words(results.flow, results.dimension))
    if len(results.labels) > MOST_POINTS:
        said.append(
            f"Of the {len(results.labels):,} particles, figures with one point a particle show "
            f"{MOST_POINTS:,}, drawn at random; densities and histograms count every one."
        )
    return said


def _axes_in_words(results: Results) -> str:
    if results.flow is not None and results.dimension == len(results.flow["variance_shares"]):
        return "The axes of z' are those of z, moved by the flow."
    return "The axes of z' are its principal components."


def _flow_in_words(flow: dict[str, Any], dimension: int) -> str:
    """What --map flow did to z, and whether it can be undone."""
    shares = flow["variance_shares"]
    left_out = (
        f"{shown(flow['variance_left_out'], '.1%')} of the variance lies in the "
        f"{len(shares) - dimension} dimensions that were not kept. "
        if dimension < len(shares)
        else f"{shown(shares[-1], '.1%')} of the variance of z' lies in the last of its "
        f"{dimension} principal components. "
    )
    return (
        f"z' = c·T(z) with c = {flow['scale']:.4g}, T a flow that began as the identity and moved "
        f"{shown(flow['moved'], '.0%')} of z away from a scaled copy of itself (root mean square "
        f"over particles). {left_out}Its inverse gives every particle's z back to "
        f"{flow['round_trip']:.0e} of a standard deviation; a small step is stretched "
        f"{flow['condition_median']:.3g} times more along one direction of z than along another "
        f"(condition number of the Jacobian: median; 95 % below {flow['condition_95']:.3g})."
    )


def plane_of(results: Results) -> tuple[FloatArray, list[str]]:
    """The two coordinates in which particles are drawn, (N, 2), and their names.

    z' itself where it has two dimensions; its two leading principal components where it has more;
    spread at random along y where it has one.
    """
    z_metric = results.z_metric.astype(np.float64)
    unit = results.wording.unit_of_z_metric
    if results.dimension == 1:
        height = spread(len(z_metric), results.seed)
        return np.column_stack([z_metric[:, 0], height]), [
            f"z' 1 ({unit})",
            "(spread for view)",
        ]
    if results.dimension == 2:
        return z_metric, [f"z' {number} ({unit})" for number in (1, 2)]
    points, shares = results.components
    names = [f"PC{i + 1} of z' ({unit}, {100 * shares[i]:.0f} %)" for i in range(2)]
    return points[:, :2], names


def _scaled(axis: Any, results: Results, names: list[str]) -> None:
    axis.set(xlabel=names[0], ylabel=names[1])
    axis.set_aspect("equal" if results.dimension > 1 else "auto", adjustable="datalim")


def _clustered(results: Results, labels: IntArray, centers: IntArray | None, title: str) -> Figure:
    plane, names = plane_of(results)
    rows = sampled_rows(len(plane), results.seed)
    figure, (axis,) = panels(1, title, width=6.4, height=5.2)
    particle_cloud(axis, plane[rows, 0], plane[rows, 1], cluster_colors(labels[rows]))
    for number, center in enumerate(centers if centers is not None else ()):
        axis.plot(*plane[center], "o", ms=4, mfc="white", mec="black", mew=0.8)
        axis.annotate(str(number), plane[center], (3, 3), textcoords="offset points", fontsize=8)
    _scaled(axis, results, names)
    return figure


def _umap_picture(results: Results, umap: FloatArray) -> Picture:
    rows = sampled_rows(len(umap), results.seed)
    figure, (axis,) = panels(1, "UMAP of z'", width=6.4, height=5.2)
    colors = cluster_colors(results.labels[rows])
    particle_cloud(axis, umap[rows, 0], umap[rows, 1], colors)
    axis.set(xlabel="UMAP1 of z'", ylabel="UMAP2 of z'")
    return Picture(
        "z_metric_umap",
        figure,
        "UMAP of z' in the colours of the k-means clusters. Neighbours are kept, distances "
        "between islands are not: use the plot of z' for those.",
    )


def _densities(results: Results, densities: Densities) -> Figure:
    title = "Density of particles in z'"
    if results.dimension == 1:
        names = plane_of(results)[1][0], "density"
        return _along(densities, title, names, lambda density: density.values)
    figure, axes = panels(2, title, width=5.0, height=4.4)
    most = max(float(density.values.max()) for density in densities.values())
    for axis, (label, density) in zip(axes, densities.items(), strict=True):
        shown = np.ma.masked_less(density.values.T, density.single)
        drawn = axis.pcolormesh(*density.edges, shown, vmin=0, vmax=most, rasterized=True)
        figure.colorbar(drawn, ax=axis, label="share of particles per unit of area")
        _label(axis, results, label)
    return figure


def _negative_logs(results: Results, densities: Densities) -> Figure:
    title = "-log density in z' (not a free energy)"
    if results.dimension == 1:
        return _along(densities, title, (plane_of(results)[1][0], "-log density"), negative_log)
    figure, axes = panels(2, title, width=5.0, height=4.4)
    levels = np.arange(0, _CONTOURS + 1)
    for axis, (label, density) in zip(axes, densities.items(), strict=True):
        values = np.ma.masked_invalid(negative_log(density).T)
        drawn = axis.contourf(
            *density.centers, values, levels=levels, cmap="viridis_r", extend="max"
        )
        axis.contour(*density.centers, values, levels=levels, colors="white", linewidths=0.5)
        figure.colorbar(drawn, ax=axis, label="-log density, above its lowest")
        _label(axis, results, label)
    return figure


def _both(results: Results) -> Densities:
    """The density of all particles in the drawn plane, as counted and per unit of Delta."""
    plane, _ = plane_of(results)
    view = plane[:, : min(results.dimension, 2)]
    return {
        "as counted": density_of(view),
        "per unit of Δ": density_of(view, results.particles["density_correction"]),
    }


def _along(
    densities: Densities,
    title: str,
    names: tuple[str, str],
    values: Callable[[GridDensity], FloatArray],
) -> Figure:
    """Both densities as lines, where z' has one dimension."""
    figure, (axis,) = panels(1, title, width=6.4)
    for (label, density), color in zip(densities.items(), (INK, ACCENT), strict=True):
        axis.plot(density.centers[0], values(density), color=color, label=label)
    axis.set(xlabel=names[0], ylabel=names[1])
    axis.legend(frameon=False)
    return figure


def _label(axis: Any, results: Results, title: str) -> None:
    axis.set_title(title, fontsize=10)
    _scaled(axis, results, plane_of(results)[1])


def _stretch(results: Results) -> Figure:
    plane, names = plane_of(results)
    rows = sampled_rows(len(plane), results.seed)
    stretch = np.maximum(results.particles["stretch"][rows], 1e-30)
    logarithm = np.log10(stretch)
    low, high = np.percentile(logarithm, [1, 99])
    figure, (left, right) = panels(2, "Local stretch of f_ξ", width=5.2, height=4.4)
    drawn = particle_cloud(
        left, plane[rows, 0], plane[rows, 1], logarithm, cmap="magma", vmin=low, vmax=high
    )
    figure.colorbar(drawn, ax=left, label="log₁₀ stretch (Δ per unit of z)")
    _scaled(left, results, names)
    values = np.log10(np.maximum(results.particles["singular_values"], 1e-30))
    least, most = np.percentile(values, [0.1, 99.9])
    edges = np.linspace(least, max(most, least + 1e-3), 61)
    for number, column in enumerate(values.T):
        right.hist(
            column,
            bins=edges,
            histtype="step",
            lw=1.4,
            label=f"singular value {number + 1}",
        )
    right.set(xlabel="log₁₀ singular value (Δ per unit of z)", ylabel="particles")
    right.legend(frameon=False)
    return figure
