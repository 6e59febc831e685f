"""The real command with --rigid se3: what it saves, and what it writes in one frame."""

import json
import re
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import torch
from conftest import APIX, BOX, VAE_SIZE, project_blobs, quiet, random_rotations, run_cryodrgn
from running import SMALL, options_of, run, unchanged
from shipped import copied_demo

from cryodrgn_metric.artifacts import save_pickle
from cryodrgn_metric.config import DistanceNetConfig, MetricMapConfig
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.distances.rigid import RigidDistance
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.options import embed_config
from cryodrgn_metric.pipeline import embed
from cryodrgn_metric.report.results import Results
from cryodrgn_metric.report.rotation_section import rotation_section
from cryodrgn_metric.report.verdict import judge
from cryodrgn_metric.se3.motions import MOST_TRANSLATION
from cryodrgn_metric.so3.conventions import (
    edge_of,
    mirrored,
    mirrored_vectors,
    spherical_window,
    windowed,
)
from cryodrgn_metric.workdir import open_workdir

FEW, SIDE = ("--landmarks", "24", "--rigid", "se3"), 16


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The demo's: its volumes turn, and what moves in them moves their middle."""
    return copied_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    """The whole command, but for nets that train at once."""
    outdir = tmp_path_factory.mktemp("rigid") / "out"
    options = options_of(workdir, *SMALL, *FEW, "-d", SIDE, "-o", outdir)
    config = replace(
        embed_config(options),
        distance_net=DistanceNetConfig(max_epochs=10),
        metric_map=MetricMapConfig(dimension=1, steps=50),
    )
    with unchanged(workdir), quiet():
        embed(config)
    return outdir


def saved(folder):
    with np.load(folder / "distances.npz") as arrays:
        return dict(arrays)


def test_translations_are_saved_beside_rotations(folder):
    found = saved(folder)
    assert found["translations"].shape == (24, 24, 3)
    lengths = np.linalg.norm(found["translations"], axis=-1)
    assert 0 < lengths.max() <= (1 + 1e-5) * MOST_TRANSLATION * SIDE
    expected = -np.einsum("ijba,ijb->ija", found["rotations"], found["translations"])
    np.testing.assert_allclose(found["translations"].swapaxes(0, 1), expected, atol=1e-5)
    log = (folder / "metric_embed.log").read_text()
    (estimate,) = re.findall(r"Superposing 276 pairs of volumes will take about (\d+) s", log)
    assert 0 <= int(estimate) < 120 and log.count("Superposing") == 1
    parameters = (folder / "metric_embed.yaml").read_text()
    assert "rigid: se3" in parameters


def test_the_report_says_what_was_taken_out(folder, workdir):
    opened = open_workdir(workdir, -1)
    results = Results.load(opened, MetricFolder(folder, opened.epoch))
    section = rotation_section(results)
    assert "is pure rigid motion" in section.paragraphs[0]
    (raw,) = (one.figure for one in section.pictures if one.name == "raw_distance")
    assert "min over R, t" in raw.axes[0].get_ylabel()
    assert "turned and shifted" in judge(results)[1].sentence


def test_motions_are_those_of_the_decoded_volumes(folder, workdir):
    """Delta from volumes that are decoded anew, and never above Delta over rotations alone."""
    found = saved(folder)
    opened = open_workdir(workdir, -1)
    decoder = Decoder.from_workdir(opened, "cpu", torch.float32, as_trained=True)
    latents = opened.latents[found["landmark_rows"][:10]]
    window = spherical_window(SIDE)
    volumes = windowed(decoder.decode(latents, SIDE), window, edge_of(window))
    distance, alone = (
        kind(SIDE, full_box=opened.box_size) for kind in (RigidDistance, RotationDistance)
    )
    distance.recall(found["calibration"])
    alone.recall(found["calibration"][:2])
    again = distance.pairwise(distance.features(volumes))
    expected = found["distances"][:10, :10]
    # the radial directions are those of other volumes
    np.testing.assert_allclose(again.distances, expected, atol=0.01 * np.median(expected))
    turned = alone.pairwise(alone.features(volumes))
    assert bool((again.distances <= turned.distances).all())
    assert float(again.distances.sum()) < 0.99 * float(turned.distances.sum())
    np.testing.assert_allclose(
        found["volume_norms"][:10], alone.norms(alone.features(volumes)), rtol=1e-4
    )


def test_volumes_along_a_path_lie_on_each_other(folder, workdir):
    """Translations add up along a path as rotations do: what is left in the files is Delta."""
    (path,) = folder.glob("analyze.120/pc1/path.npz")
    with np.load(path) as table:
        distances, moves = table["distances"], table["translations"]
    files = sorted(path.parent.glob("vol_*.mrc"))
    volumes = torch.from_numpy(np.stack([mrcfile.read(file) for file in files]))
    assert moves.shape == (len(files), 3) and np.linalg.norm(moves, axis=1).max() > 0.1
    window = spherical_window(SIDE)
    seen = windowed(volumes, window, edge_of(window))
    # the norm is that at the model's box, where amplitudes are lower
    steps = (
        seen.diff(dim=0).flatten(1).norm(dim=1)
        * (SIDE / open_workdir(workdir, -1).box_size) ** 1.5
    )
    left = steps.numpy() / np.diagonal(distances, 1)
    assert np.median(left) < 1.05 and left.max() < 1.2


@pytest.mark.slow
def test_a_drift_that_z_has_learned_is_taken_out_of_what_is_written(tmp_path):
    """Particles whose middle drifts, and whose poses don't know: stock cryoDRGN learns the drift.

    Shows that Delta over rigid motions is a fraction of Delta over rotations, and that written
    volumes lie on each other.
    """
    drifting = drifting_workdir(tmp_path)
    few = ("--landmarks", "30", "--ksample", "4", "--epoch", "40")
    results = {}
    for rigid in ("so3", "se3"):
        run(drifting, *few, "--rigid", rigid, "-o", tmp_path / rigid)
        files = sorted((tmp_path / rigid).glob("analyze.40/pc1/vol_*.mrc"))
        volumes = torch.from_numpy(np.stack([mrcfile.read(path) for path in files]))
        flat = windowed(volumes, spherical_window(BOX)).flatten(1)
        results[rigid] = saved(tmp_path / rigid), float(torch.pdist(flat).median())
    upper = np.triu_indices(30, 1)
    alone, found = (results[rigid][0]["distances"][upper] for rigid in ("so3", "se3"))
    assert np.median(found) < 0.7 * np.median(alone)
    assert results["se3"][1] < 0.7 * results["so3"][1]
    summary = json.loads((tmp_path / "se3" / "report.json").read_text())
    assert "rotation" in summary


def drifting_workdir(tmp_path):
    """Blobs that drift by up to 8 % of the box along an axis of their own, poses as before."""
    generator, count = np.random.default_rng(1), 1500
    body = generator.uniform(-BOX / 6, BOX / 6, (7, 3))
    drift = generator.uniform(-0.08, 0.08, count) * BOX
    centers = body + drift[:, None, None] * np.array([0.6, 0.8, 0.0])
    rotations = random_rotations(count, generator)
    images = project_blobs(centers, rotations, BOX)
    images += 0.1 * images.std() * generator.standard_normal(images.shape)
    particles, poses, ctf = (tmp_path / n for n in ("p.mrcs", "poses.pkl", "ctf.pkl"))
    with mrcfile.new(particles) as mrc:
        mrc.set_data(images.astype(np.float32))
    save_pickle(poses, (rotations.astype(np.float32), np.zeros((count, 2), np.float32)))
    row = [BOX, APIX, 1e1, 1e1, 0.0, 300.0, 0.0, 1.0, 0.0]
    save_pickle(ctf, np.tile(row, (count, 1)).astype(np.float32))
    workdir = tmp_path / "workdir"
    torch.manual_seed(0)
    size = [64 if str(one) == "32" else one for one in VAE_SIZE]
    with quiet():
        run_cryodrgn(
            *("train_vae", particles, "--poses", poses, "--ctf", ctf, "--zdim", 1),
            *("-o", workdir, "-n", 40, "-b", 32, "--no-amp", "--no-analysis", "--seed", 0),
            *("--lr", 1e-3, *size),
        )
    return workdir


def test_flip_mirrors_translations_too():
    turn, move = random_rotations(1, np.random.default_rng(0))[0], np.array([1.0, 2.0, 3.0])
    point, mirror = np.array([0.3, -0.2, 0.5]), np.array([1.0, 1.0, -1.0])
    np.testing.assert_allclose(
        mirrored(turn) @ (mirror * point) + mirrored_vectors(move),
        mirror * (turn @ point + move),
    )
