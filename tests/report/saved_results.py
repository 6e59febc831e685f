"""Stand-ins for files of the report, made from a run's own results.

To be removed once `cryodrgn metric_embed` writes held_out.npz, particles.npz, striking_pairs.npz,
report.json, hdbscan/labels.pkl and path.npz itself.
"""

import json

import mrcfile
import numpy as np
import torch
from sklearn.decomposition import PCA

from cryodrgn_metric import artifacts
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.safe_files.pickles import load_indices
from cryodrgn_metric.workdir import open_workdir


def add_missing_results(folder, workdir_path, count):
    """Write what is missing in a MetricFolder; `count` is that of its k-means."""
    workdir = open_workdir(workdir_path, folder.epoch or -1)
    z = workdir.latents
    z_metric = np.loadtxt(folder.z_metric_csv, delimiter=",", skiprows=1, ndmin=2)
    labels = load_indices(folder.cluster_labels(count))
    centers = np.loadtxt(folder.cluster_center_indices(count), dtype=int, ndmin=1)
    with np.load(folder.distances) as file:
        distances = dict(file)
    _held_out(folder, z, z_metric, distances)
    _particles(folder, z, distances["landmark_rows"])
    _striking_pairs(folder, z, distances, count)
    _summary(folder, labels, centers, z_metric)
    artifacts.save_pickle(folder.hdbscan_labels, np.where(labels > 1, labels - 2, -1))
    if not folder.umap.exists():
        artifacts.save_pickle(folder.umap, np.float32(np.resize(z_metric.T, (2, len(z))).T))
    if volumes_of(folder, count):
        _path(folder.principal_path(1), folder, z_metric, centers[:4], count)
        _path(folder.cluster_path(0, 2), folder, z_metric, centers[[0, 2]], count)


def volumes_of(folder, count):
    """(K, n, n, n), the representatives."""
    return [mrcfile.read(path) for path in sorted(folder.kmeans(count).glob("vol_*.mrc"))]


def _held_out(folder, z, z_metric, distances):
    test = distances["is_test"]
    rows = distances["landmark_rows"][test]
    net = DistanceNet.load(folder.models, "cpu")
    artifacts.save_npz(
        folder.held_out,
        z=z[rows],
        pca=PCA(min(2, z.shape[1])).fit(z).transform(z[rows]),
        z_metric=z_metric[rows],
        measured=distances["distances"][np.ix_(test, test)],
        predicted=net.predict_matrix(z[rows]),
    )


def _particles(folder, z, landmark_rows):
    metric_map = MetricMap.load(folder.models, "cpu")
    step = 1e-2
    moved = [metric_map.transform(z + step * axis) for axis in np.eye(z.shape[1], dtype="f4")]
    jacobian = (np.stack(moved, -1) - metric_map.transform(z)[..., None]) / step
    values = np.linalg.svd(jacobian, compute_uv=False).astype(np.float32)
    stretch = np.exp(np.log(np.maximum(values, 1e-6)).mean(1))
    nearest = np.min([np.linalg.norm(z - z[row], axis=1) for row in landmark_rows], axis=0)
    artifacts.save_npz(
        folder.particles,
        stretch=stretch,
        singular_values=values,
        density_correction=stretch / stretch.mean(),
        uncertainty=0.1 * stretch,
        landmark_distance=nearest * stretch,
        is_outside=nearest > np.quantile(nearest, 0.99),
    )


def _striking_pairs(folder, z, distances, count):
    generator = np.random.default_rng(0)
    pairs = generator.integers(0, len(distances["distances"]), (2, 10, 2))
    volumes = np.array(volumes_of(folder, count) or generator.random((4, 8, 8, 8)))
    views = np.stack([volumes.sum(1), volumes.sum(2), volumes.sum(3)], 1).astype(np.float32)
    images = [
        [views[i % len(views)], views[j % len(views)], views[i % len(views)]]
        for i, j in pairs.reshape(-1, 2)
    ]
    images = np.array(images).reshape(2, 10, *np.shape(images)[1:])
    artifacts.save_npz(
        folder.striking_pairs,
        far_in_z=pairs[0],
        near_in_z=pairs[1],
        images_far=images[0],
        images_near=images[1],
    )


def _summary(folder, labels, centers, z_metric):
    clusters = [
        {
            "label": int(label),
            "particles": int((labels == label).sum()),
            "spread": float(z_metric[labels == label].std()),
            "medoid": int(centers[label]),
            "medoid_row": int(centers[label]),
            "volume": folder.volume(len(centers), label + 1).relative_to(folder.path),
            "members": folder.cluster_members(len(centers), label).relative_to(folder.path),
        }
        for label in np.unique(labels)
    ]
    artifacts.save_json(
        folder.summary,
        {
            "contrast": {"share": 0.01},
            "rotation": {"share": 0.7, "median_angle_in_degrees": 12.0, "drift": {"r2": 0.8}},
            "reach": {"share_outside": 0.01},
            "clusters": clusters,
        },
    )
    assert json.loads(folder.summary.read_text())["clusters"]


def _path(path, folder, z_metric, rows, count):
    volumes = np.array(volumes_of(folder, count)[: len(rows)])
    distances = np.linalg.norm(z_metric[rows][:, None] - z_metric[rows], axis=2)
    middle = volumes.shape[1] // 2
    artifacts.save_npz(
        path.table,
        rows=rows,
        particles=rows,
        z_metric=z_metric[rows].astype(np.float32),
        distances=distances.astype(np.float32),
        rotations=torch.eye(3).repeat(len(rows), 1, 1).numpy(),
        projections=np.stack([volumes.sum(axis) for axis in (1, 2, 3)], 1).astype(np.float32),
        slices=np.stack([volumes.take(middle, axis) for axis in (1, 2, 3)], 1).astype(np.float32),
    )
