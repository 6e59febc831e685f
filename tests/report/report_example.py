"""A report such as a run makes: a curved motion of two ends, real figures, hostile names."""

import numpy as np
from scipy.spatial.distance import pdist

from cryodrgn_metric.report.content import FileEntry, Picture, Report, Section, Table
from cryodrgn_metric.report.drawing import (
    INK,
    cluster_colors,
    diagonal,
    pair_cloud,
    panels,
    particle_cloud,
)
from cryodrgn_metric.report.scatter import scatter_of

HOSTILE = """<b>ü' "q"</b>"""
CLUSTERS = 20


def columns(count, seed=0):
    """z' on an arc with noise, its labels and a stretch of `count` particles."""
    generator = np.random.default_rng(seed)
    angle = np.pi * generator.beta(0.7, 0.7, count)
    z_metric = np.stack([10 * np.cos(angle), 10 * np.sin(angle), 0 * angle], 1)
    z_metric += generator.normal(0, 0.6, z_metric.shape)
    clusters = np.minimum((CLUSTERS * angle / np.pi).astype(int), CLUSTERS - 1)
    stretch = np.exp(0.3 * generator.standard_normal(count))
    return z_metric, clusters, stretch


def example_scatter(count, most=20_000):
    """Particles of a subset of a stack: every third number."""
    z_metric, clusters, stretch = columns(count)
    axes = {f"z' {i + 1}": z_metric[:, i] for i in range(3)}
    centred = z_metric - z_metric.mean(0)
    turned = centred @ np.linalg.svd(centred[:10_000], full_matrices=False)[2].T
    axes |= {f"PC{i + 1} of z'": turned[:, i] for i in range(3)}
    colors = {
        "local stretch": stretch,
        "HDBSCAN": np.where(stretch > 1.3, -1, clusters // 7),
        "outside the landmarks' reach": stretch > 1.6,
        "micrograph": 10_000 + np.arange(count) // 7,
        "class <i>": np.where(z_metric[:, 0] > 0, "open & <b>wide</b>", "closed </script>"),
    }
    return scatter_of(3 * np.arange(count), clusters, axes, colors, most=most)


def example_pictures():
    """Figures of one panel and of four, drawn as the report's are."""
    z_metric, clusters, _ = columns(400)
    generator = np.random.default_rng(1)
    truth = pdist(z_metric[:60, :2])
    shepard, axes = panels(2, "Shepard diagrams", rows=2)
    for axis, (name, noise) in zip(
        axes, {"z": 6, "PCA": 3, "UMAP": 2, "z'": 0.3}.items(), strict=True
    ):
        pair_cloud(axis, truth, pdist(z_metric[:60] + generator.normal(0, noise, (60, 3))))
        axis.set_title(name)
    raw_distance, (axis,) = panels(1, "Raw distance against Δ")
    pair_cloud(axis, truth + generator.gamma(2, 2, truth.shape), truth)
    diagonal(axis, float(truth.max()), "nothing to turn")
    angles, (axis,) = panels(1, "Rotation angles", height=3.4)
    axis.hist(180 * generator.beta(1, 6, 5000), bins=60, color=INK)
    clustered, (axis,) = panels(1, "z', 20 clusters", width=6.4)
    particle_cloud(axis, *z_metric[:, :2].T, cluster_colors(clusters))
    return {
        "shepard": shepard,
        "raw_distance": raw_distance,
        "rotation_angles": angles,
        "z_metric_kmeans": clustered,
    }


def example_report(count=1000, most=20_000):
    """All that a report can hold, with `count` particles."""
    figures = example_pictures()
    caption = "Distances in four spaces against Δ. Look for {}, as in " + HOSTILE + "."
    pictures = {name: Picture(name, fig, caption.format(name)) for name, fig in figures.items()}
    fidelity = Table(
        f"Held-out fidelity of {HOSTILE}",
        ["space", "stress-1", "stress-1, 90 % interval", "Sammon", "Spearman", "k", "continuity"],
        [
            ["z", 0.61234, "0.58 to 0.64", 0.4, 0.12345, 10, 0.7],
            ["PCA", 0.5, "0.47 to 0.53", 0.35, 0.2, 10, 0.72],
            ["UMAP", 12345.6, "0.49 to 0.55", float("nan"), 0.3, 10, 0.8],
            ["z'", 0.0456, "0.04 to 0.05", 1.23e-6, 0.987, 1234567, 0.98],
        ],
    )
    sections = [
        Section(
            "fidelity",
            "Can z' be trusted?",
            ["Measured on landmarks that no network has seen.", f"Workdir {HOSTILE}; `a < b`."],
            [pictures["shepard"]],
            [fidelity],
        ),
        Section(
            "rotation",
            "Where rotation was hiding",
            ["A volume that only turned is the same molecule, and lies at distance 0."],
            [pictures["raw_distance"], pictures["rotation_angles"]],
        ),
        Section("landscape", "Landscape", ["All particles."], [pictures["z_metric_kmeans"]]),
    ]
    files = [
        FileEntry("z_metric.pkl", "z' of every particle; `cryodrgn graph_traversal` reads it."),
        FileEntry("analyze.49/kmeans20/vol_001.mrc", "Representative volume of cluster 0."),
        FileEntry(f"figures/{HOSTILE} #1?.png", "A name that has all that hurts."),
        FileEntry("a" * 90 + ".pkl", "A long name."),
    ]
    return Report(
        title=f"{HOSTILE}/00_vae128, epoch 49",
        verdict=[
            "z' can be trusted: on held-out pairs its distances are off by 4.6 %.",
            "Rotation was hiding in z: 38 % of the squared raw distance is pure rotation.",
            f"41 % of the particles lie outside the landmarks' reach in {HOSTILE}.",
        ],
        grades=["good", "fair", "poor"],
        facts={"particles": f"{count:,}", "landmarks": "500", "d'": "3", "workdir": HOSTILE},
        sections=sections,
        scatter=example_scatter(count, most),
        files=files,
    )
