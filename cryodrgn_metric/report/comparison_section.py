"""Two runs side by side: epochs, replicates, or parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.metrics import adjusted_rand_score

from cryodrgn_metric.report.content import Picture, Section, Table, shown
from cryodrgn_metric.report.drawing import (
    FloatArray,
    IntArray,
    cluster_colors,
    diagonal,
    pair_cloud,
    panels,
    particle_cloud,
    sampled_rows,
)
from cryodrgn_metric.report.landscape_section import plane_of
from cryodrgn_metric.report.results import Results

__all__ = ["comparison_section"]

_COMPARED = 1500  # particles among whose pairs distances in both z' are compared


def comparison_section(results: Results, other: Results) -> Section:
    """What two runs agree on, where they embed the same particles.

    Arguments:
        results: The run of this report.
        other: The run of --compare.
    """
    rows, others = _common(results, other)
    pictures = [
        Picture(
            "comparison_shepard",
            _held_out(results, other),
            "Shepard diagrams of z' of both runs, each on its own held-out landmarks. The "
            "narrower cloud is the run whose z' to trust.",
        )
    ]
    paragraphs = [f"This run: {_name(results)}. The other: {_name(other)}."]
    if len(rows) > 2:
        agreement = _distances(results, other, rows, others)
        pictures += [
            Picture(
                "comparison_distances",
                _distance_figure(*agreement),
                "Distances in z' between the same pairs of particles in both runs. A narrow cloud "
                "means that both tell the same story, whatever their axes are.",
            ),
            Picture(
                "comparison_maps",
                _maps(results, other, rows, others),
                "z' of both runs, coloured by the clusters of this one. Colours that stay "
                "together on the right are states that both runs find.",
            ),
        ]
        rank = spearmanr(*agreement).statistic
        same = adjusted_rand_score(results.labels[rows], other.labels[others])
        paragraphs.append(
            f"They share {len(rows):,} particles. Distances in z' agree with a Spearman "
            f"correlation of {rank:.3f}; the k-means clusters with an adjusted Rand index of "
            f"{same:.2f} (1: the same, 0: chance)."
        )
    else:
        paragraphs.append("They have no particles in common, so only their numbers are compared.")
    table = Table("Both runs", ["", "this run", "the other"], _rows(results, other))
    return Section("comparison", "How does it compare?", paragraphs, pictures, [table])


def _name(results: Results) -> str:
    return f"{results.folder.path.name} of {results.workdir.path.name}"


def _common(results: Results, other: Results) -> tuple[IntArray, IntArray]:
    """Rows of the particles that are in both runs, by their numbers in the original stack."""
    _, rows, others = np.intersect1d(
        results.workdir.particle_indices, other.workdir.particle_indices, return_indices=True
    )
    return rows, others


def _distances(
    results: Results, other: Results, rows: IntArray, others: IntArray
) -> tuple[FloatArray, FloatArray]:
    count = min(_COMPARED, len(rows))
    chosen = np.random.default_rng(results.seed).choice(len(rows), count, replace=False)
    return pdist(results.z_metric[rows[chosen]]), pdist(other.z_metric[others[chosen]])


def _distance_figure(ours: FloatArray, theirs: FloatArray) -> Figure:
    figure, (axis,) = panels(1, "Distances between the same particles", width=5.6)
    pair_cloud(axis, ours, theirs)
    diagonal(axis, float(min(ours.max(), theirs.max())), "equal")
    axis.set(xlabel="distance in z' of this run", ylabel="distance in z' of the other")
    return figure


def _held_out(results: Results, other: Results) -> Figure:
    figure, axes = panels(2, "z' on held-out landmarks of each run")
    for axis, run, name in zip(axes, (results, other), ("this run", "the other"), strict=True):
        measured = run.held_out["measured"]
        measured = measured[np.triu_indices(len(measured), 1)]
        pair_cloud(axis, measured, pdist(run.held_out["z_metric"]))
        diagonal(axis, float(measured.max()), "distance = Δ")
        axis.set(xlabel=f"measured Δ ({run.wording.unit})", ylabel="distance in z'")
        axis.set_title(
            f"{name}: stress-1 {shown(run.fidelity['z_metric']['stress1'])}", fontsize=10
        )
    return figure


def _maps(results: Results, other: Results, rows: IntArray, others: IntArray) -> Figure:
    chosen = sampled_rows(len(rows), results.seed)
    colors = cluster_colors(results.labels[rows[chosen]])
    figure, axes = panels(2, "The same particles in both", width=5.0, height=4.4)
    for axis, run, at in zip(axes, (results, other), (rows, others), strict=True):
        plane, names = plane_of(run)
        points = plane[at[chosen]]
        particle_cloud(axis, points[:, 0], points[:, 1], colors)
        axis.set(xlabel=names[0], ylabel=names[1])
    return figure


def _rows(results: Results, other: Results) -> list[list[Any]]:
    facts = [_facts(run) for run in (results, other)]
    return [[name, *(_cell(fact[name]) for fact in facts)] for name in facts[0]]


def _cell(value: Any) -> Any:
    return "undefined" if value is None else value


def _facts(run: Results) -> dict[str, Any]:
    fidelity, config = run.fidelity, run.parameters["config"]
    return {
        "folder": _name(run),
        "epoch": "–" if run.workdir.epoch is None else run.workdir.epoch,
        "particles": len(run.labels),
        "landmarks": len(run.landmarks["landmark_rows"]),
        "box compared": run.parameters["box"],
        "dimension of z'": run.dimension,
        "loss": config["metric_map"]["loss"],
        "distance": config["distances"]["distance"],
        "scale": config["distances"]["scale"],
        "stress-1 of z": fidelity["z"]["stress1"],
        "stress-1 of z'": fidelity["z_metric"]["stress1"],
        "Spearman of z'": fidelity["z_metric"]["spearman"],
        "median error of h_ψ": fidelity["h_psi"]["median_relative_error"],
        "median Δ": shown(fidelity["median_distance"], ".3g", f" {run.wording.unit}"),
        "median Δ / |V|, or Rg": "–" if run.by_models else run.relative_distance,
        "share of rotation": run.summary["rotation"]["share"],
        "share of norms in Δ²": (run.summary["contrast"] or {}).get("norm_share", "–"),
        "outside the landmarks' reach": run.summary["reach"]["outside_share"],
    }
