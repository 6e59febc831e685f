"""Which figures a run shows: results in, named figures out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from cryodrgn_metric.clusters import Clusters
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.distances.base import PairwiseDistances
from cryodrgn_metric.reference_spaces import principal_components, umap_of
from cryodrgn_metric.report.figures import (
    FloatArray,
    IntArray,
    coordinates_figure,
    distance_net_figure,
    learning_curves_figure,
    raw_distance_figure,
    rotation_angles_figure,
    sampled_rows,
    shepard_figure,
)
from cryodrgn_metric.so3.rotations import rotation_angle

__all__ = [
    "FIGURES",
    "held_out_figures",
    "landscape_figures",
    "rotation_figures",
    "training_figures",
]

FIGURES = (
    "shepard",
    "h_psi",
    "learning_curves",
    "rotation_angles",
    "raw_distance",
    "z_metric_kmeans",
    "z_metric_pca",
    "z_metric_umap",
)
"""The names of all figures that a run may draw."""


def held_out_figures(
    z: FloatArray,
    z_metric: FloatArray,
    distances: FloatArray,
    test: IntArray,
    net: DistanceNet,
    scores: dict[str, Any],
) -> dict[str, Figure]:
    """Shepard diagrams of z and z', and h_psi against Delta, on pairs of test landmarks.

    Arguments:
        z, z_metric: Of all landmarks, (L, d) and (L, d').
        distances: Delta among them, (L, L).
        test: Rows of the test landmarks.
        net: h_psi.
        scores: fidelity.json.
    """
    truth = distances[np.ix_(test, test)]
    upper = np.triu_indices(len(test), 1)
    predicted = net.predict_matrix(z[test])[upper]
    spaces = {"z": z[test], "z'": z_metric[test]}
    shepard = shepard_figure(spaces, truth, {"z": scores["z"], "z'": scores["z_metric"]})
    return {
        "shepard": shepard,
        "h_psi": distance_net_figure(predicted, truth[upper], scores["h_psi"]),
    }


def training_figures(
    distance_net: dict[str, list[float]], metric_map: dict[str, list[float]]
) -> dict[str, Figure]:
    """Learning curves of h_psi and f_xi, from their `history_`."""
    return {"learning_curves": learning_curves_figure(distance_net, metric_map)}


def rotation_figures(pairs: PairwiseDistances) -> dict[str, Figure]:
    """Optimal rotation angles, and raw distance against Delta, over all landmark pairs."""
    upper = np.triu_indices(len(pairs.distances), 1)
    angles = np.degrees(rotation_angle(torch.from_numpy(pairs.rotations[upper])).numpy())
    return {
        "rotation_angles": rotation_angles_figure(angles),
        "raw_distance": raw_distance_figure(pairs.raw_distances[upper], pairs.distances[upper]),
    }


def landscape_figures(
    z_metric: FloatArray, clusters: Clusters, seed: int, skip_umap: bool
) -> dict[str, Figure]:
    """z' coloured by k-means, its PCA, and its UMAP (of at most 50,000 particles)."""
    centers = clusters.centers_ind
    name = "z' {} (units of Δ)"
    second = name.format(2) if z_metric.shape[1] > 1 else "(spread for view)"
    drawn = {
        "z_metric_kmeans": coordinates_figure(
            z_metric,
            f"z' of every particle, {len(clusters)} k-means clusters",
            (name.format(1), second),
            clusters.labels,
            centers,
            seed,
        )
    }
    components, shares = principal_components(z_metric)
    labels = [f"PC{i + 1} of z' (units of Δ, {100 * s:.0f} %)" for i, s in enumerate(shares)]
    drawn["z_metric_pca"] = coordinates_figure(
        components, "PCA of z', density of particles", (labels[0], [*labels, second][1])
    )
    if not skip_umap and z_metric.shape[1] > 1:
        rows = sampled_rows(len(z_metric), seed)
        points = umap_of(z_metric[rows], 2, seed)
        drawn["z_metric_umap"] = coordinates_figure(
            points, "UMAP of z'", ("UMAP 1", "UMAP 2"), clusters.labels[rows]
        )
    return drawn
