"""Clusters of z': what k-means and HDBSCAN find, cryoDRGN's formats, order, edge cases."""

import pickle
import re

import numpy as np
import pytest
from conftest import CHOSEN, CHOSEN_TILTED, PARTICLES, TILT_PARTICLES, TILTS, run_cryodrgn_utils

from cryodrgn_metric.artifacts import save_pickle
from cryodrgn_metric.clusters import (
    MOST_LINKED,
    cluster_hdbscan,
    cluster_kmeans,
    describe_clusters,
    write_members,
)
from cryodrgn_metric.config import ClusterConfig
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.workdir import open_workdir


def blobs(count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.integers(4, size=count)
    centers = np.array([[0, 0], [10, 0], [0, 10], [30, 30]])
    return centers[truth] + 0.1 * rng.normal(size=(count, 2)), truth


def test_separate_blobs_are_found() -> None:
    z, truth = blobs()
    found = cluster_kmeans(z, ClusterConfig(count=4))
    pairs = {(int(a), int(b)) for a, b in zip(truth, found.labels, strict=True)}
    assert len(pairs) == len(found) == 4


def test_formats_are_those_of_cryodrgn() -> None:
    z, _ = blobs()
    found = cluster_kmeans(z, ClusterConfig(count=4))
    assert (found.labels.dtype, found.labels.shape) == (np.int32, (200,))
    assert (found.centers.dtype, found.centers.shape) == (np.float32, (4, 2))
    assert (found.centers_ind.dtype, found.centers_ind.shape) == (np.int64, (4,))
    assert np.array_equal(found.centers, z.astype(np.float32)[found.centers_ind])
    assert np.array_equal(found.labels[found.centers_ind], np.arange(4))


def test_far_cluster_comes_at_an_end() -> None:
    z, truth = blobs()
    found = cluster_kmeans(z, ClusterConfig(count=4))
    assert found.labels[truth == 3][0] in (0, 3)


def test_same_seed_same_clusters() -> None:
    z = np.random.default_rng(1).normal(size=(300, 2))
    first, second = (cluster_kmeans(z, ClusterConfig(count=9), seed=2) for _ in range(2))
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.centers_ind, second.centers_ind)


@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_more_clusters_than_distinct_points(distinct: int) -> None:
    z = np.repeat(np.arange(distinct, dtype=float)[:, None], 5, axis=0)
    found = cluster_kmeans(z, ClusterConfig(count=20))
    assert len(found) == distinct
    assert len(np.unique(found.centers_ind)) == distinct
    assert np.array_equal(np.unique(found.labels), np.arange(distinct))


def test_input_is_untouched_and_bad_input_refused() -> None:
    z, _ = blobs()
    kept = z.copy()
    cluster_kmeans(z)
    assert np.array_equal(z, kept)
    for bad in (z[:, 0], z[:0], np.full_like(z, np.nan)):
        with pytest.raises(ArgumentError):
            cluster_kmeans(bad)


# -- HDBSCAN


def test_density_finds_blobs_of_any_number_and_leaves_noise_out(generator) -> None:
    noise = generator.uniform(-50, 50, (40, 2))
    sizes, centers = (300, 500, 200), ((0, 0), (20, 0), (0, 20))
    parts = [c + generator.normal(size=(n, 2)) for n, c in zip(sizes, centers, strict=True)]
    z = np.concatenate([*parts, noise])
    labels = cluster_hdbscan(z)
    assert labels.dtype == np.int32 and labels.max() == 2
    counts = np.bincount(labels[labels >= 0])
    assert (np.diff(counts) <= 0).all()
    for start, size, expected in ((0, 300, 1), (300, 500, 0), (800, 200, 2)):
        inside = labels[start : start + size]
        assert set(np.unique(inside)) <= {expected, -1} and (inside == expected).mean() > 0.8
    assert (labels[1000:] == -1).mean() > 0.7


def test_a_continuum_has_next_to_no_clusters(generator) -> None:
    for dimension in (2, 4):
        labels = cluster_hdbscan(generator.normal(size=(5000, dimension)))
        assert (labels == -1).mean() > 0.8


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_two_separate_blobs_are_two_clusters(dimension, generator) -> None:
    z = generator.normal(size=(3000, dimension))
    z[::3, 0] += 7
    labels = cluster_hdbscan(z)
    assert labels.max() == 1
    truth = np.zeros(3000, int)
    truth[::3] = 1
    assert (labels == truth).mean() > 0.8
    assert (labels == 1 - truth).mean() < 0.01  # strays of one blob in the other


def test_particles_that_were_not_fitted_take_their_neighbours_label(generator) -> None:
    z = generator.normal(size=(MOST_LINKED + 5000, 1)).astype(np.float32)
    z[::3] += 30
    labels = cluster_hdbscan(z, seed=4)
    np.testing.assert_array_equal(labels, cluster_hdbscan(z, seed=4))
    far = z[:, 0] > 15
    assert set(np.unique(labels[far])) <= {1, -1} and set(np.unique(labels[~far])) <= {0, -1}
    assert (labels >= 0).mean() > 0.8


def test_density_of_few_or_equal_particles() -> None:
    assert cluster_hdbscan(np.zeros((3, 2))).tolist() == [-1, -1, -1]
    assert len(set(cluster_hdbscan(np.zeros((50, 2))))) == 1
    with pytest.raises(ArgumentError):
        cluster_hdbscan(np.zeros(3))


# -- what the report says


def test_description_is_size_spread_and_representative() -> None:
    z, truth = blobs()
    found = cluster_kmeans(z, ClusterConfig(count=4))
    numbers = 1000 + np.arange(len(z))
    described = describe_clusters(z, found, numbers)
    assert [one.label for one in described] == [0, 1, 2, 3]
    assert sum(one.particles for one in described) == len(z)
    assert sum(one.share for one in described) == pytest.approx(1)
    for one in described:
        members = truth == truth[one.medoid_row]
        assert one.particles == members.sum() and one.medoid == 1000 + one.medoid_row
        expected = np.sqrt(((z[members] - z[members].mean(0)) ** 2).sum(1).mean())
        assert one.spread == pytest.approx(expected, rel=1e-5)


# -- members, read by cryoDRGN's own tools


def load(path):
    with open(path, "rb") as file:
        return pickle.load(file)


@pytest.fixture(params=["vae", "ind", "tilt", "tilt_ind"])
def clustered(request, tmp_path, vae_workdir, workdir_of):
    """A workdir, what it was clustered into, and the files."""
    kind = request.param
    workdir = open_workdir(vae_workdir if kind == "vae" else workdir_of(kind))
    clusters = cluster_kmeans(workdir.latents, ClusterConfig(count=3))
    folder = MetricFolder(tmp_path / "metric_embed.2", 2)
    save_pickle(folder.cluster_labels(3), clusters.labels)
    stale = folder.cluster_members(3, 3)
    theirs = folder.kmeans(3) / "ind_cluster_mine.pkl"
    for path in (stale, theirs):
        save_pickle(path, np.arange(2))
    paths = write_members(folder, 3, clusters, workdir.particle_indices)
    assert not stale.exists() and theirs.exists()
    return kind, workdir, clusters, folder, paths


def test_members_are_numbered_as_in_the_original_stack(clustered) -> None:
    kind, workdir, clusters, folder, paths = clustered
    members = [load(path) for path in paths]
    assert all((np.diff(one) > 0).all() and one.dtype == np.int64 for one in members)
    chosen = {"ind": CHOSEN, "tilt_ind": CHOSEN_TILTED}.get(kind, workdir.particle_indices)
    assert set(np.concatenate(members)) == set(np.asarray(chosen).tolist())
    assert sum(map(len, members)) == len(clusters.labels)


def test_select_clusters_agrees(clustered, tmp_path) -> None:
    """Its --sel counts from 1, labels and our files from 0."""
    kind, workdir, _, folder, paths = clustered
    options = []
    if kind.endswith("ind"):
        save_pickle(tmp_path / "parent.pkl", workdir.particle_indices)
        total = TILT_PARTICLES if "tilt" in kind else PARTICLES
        options = ["--parent-ind", tmp_path / "parent.pkl", "--N-orig", total]
    for label, path in enumerate(paths):
        arguments = ["--sel", label + 1, "-o", tmp_path / "selected.pkl", *options]
        run_cryodrgn_utils("select_clusters", folder.cluster_labels(3), *arguments)
        np.testing.assert_array_equal(np.sort(load(tmp_path / "selected.pkl")), load(path))


def test_stacks_and_poses_are_cut_to_a_cluster(clustered, tmp_path, stack, tilt_series) -> None:
    """write_star and filter_pkl of a stack, filter_star of a tilt series."""
    kind, _, _, _, paths = clustered
    members, out = load(paths[0]), tmp_path / "cluster.star"
    if "tilt" in kind:
        run_cryodrgn_utils("filter_star", tilt_series.star, "--et", "--ind", paths[0], "-o", out)
        images = (members[:, None] * TILTS + np.arange(TILTS)).ravel()
    else:
        arguments = ["--ctf", stack.ctf, "--poses", stack.poses, "--ind", paths[0]]
        run_cryodrgn_utils("write_star", stack.particles, *arguments, "-o", out)
        run_cryodrgn_utils(
            "filter_pkl", stack.poses, "--ind", paths[0], "-o", tmp_path / "poses.pkl"
        )
        np.testing.assert_array_equal(
            load(tmp_path / "poses.pkl")[0], load(stack.poses)[0][members]
        )
        images = members
    found = re.findall(r"(\d+)@\S*\.mrcs", out.read_text())
    assert sorted(map(int, found)) == (np.sort(images) + 1).tolist()


def test_write_cs_takes_a_cluster(clustered, tmp_path) -> None:
    """cryoSPARC's tables have one row a particle, as our numbers count."""
    kind, _, _, _, paths = clustered
    count = TILT_PARTICLES if "tilt" in kind else PARTICLES
    table = np.zeros(count, [("uid", "u8"), ("blob/path", "S32"), ("blob/idx", "u4")])
    table["uid"] = table["blob/idx"] = np.arange(count)
    with (tmp_path / "particles.cs").open("wb") as file:
        np.save(file, table)
    for path in paths:
        out = tmp_path / "cluster.cs"
        run_cryodrgn_utils("write_cs", tmp_path / "particles.cs", "--ind", path, "-o", out)
        np.testing.assert_array_equal(np.load(out)["uid"], load(path))
