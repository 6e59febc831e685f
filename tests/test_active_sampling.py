"""The real command with --sampling active: roles, files, and why it stopped."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import quiet
from running import SMALL, options_of, unchanged

from cryodrgn_metric import active_sampling
from cryodrgn_metric.acquisition import training_sizes
from cryodrgn_metric.config import (
    DistanceNetConfig,
    EmbedConfig,
    EnsembleConfig,
    LandmarkConfig,
    MetricMapConfig,
)
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.options import embed_config
from cryodrgn_metric.pipeline import embed
from cryodrgn_metric.report.fidelity_section import fidelity_section
from cryodrgn_metric.report.results import Results
from cryodrgn_metric.workdir import open_workdir

ACTIVE = ("--sampling", "active", "--ensemble", "2")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, vae_workdir):
    copy = tmp_path_factory.mktemp("active") / "workdir"
    shutil.copytree(vae_workdir, copy)
    return copy


def embedded(workdir, outdir, *options):
    """A run with nets that train at once; what it says of its landmarks."""
    config = embed_config(options_of(workdir, *SMALL, "-o", outdir, *options))
    with unchanged(workdir), quiet():
        embed(
            replace(
                config,
                distance_net=DistanceNetConfig(max_epochs=10),
                metric_map=MetricMapConfig(steps=50),
            )
        )
    with np.load(outdir / "distances.npz") as file:
        return {name: file[name] for name in file.files}


def fidelity_of(folder):
    return json.loads((folder / "fidelity.json").read_text())


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    """All rounds: the workdir is trained for two epochs, and its error would settle at once."""
    outdir = tmp_path_factory.mktemp("spent")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(active_sampling, "PROGRESS", -10.0)
        embedded(workdir, outdir, *ACTIVE)
    return outdir


@pytest.fixture(scope="module")
def usual(workdir, tmp_path_factory):
    """k-means landmarks, no error bars."""
    outdir = tmp_path_factory.mktemp("usual")
    embedded(workdir, outdir)
    return outdir


def test_landmarks_have_the_roles_and_the_test_set_of_every_sampling(folder, usual):
    with np.load(folder / "distances.npz") as file, np.load(usual / "distances.npz") as other:
        active = {name: file[name] for name in file.files}
        kmeans = {name: other[name] for name in other.files}
    assert set(active) == set(kmeans)
    test = active["is_test"]
    assert np.array_equal(
        active["landmark_rows"][test], kmeans["landmark_rows"][kmeans["is_test"]]
    )
    assert len(np.unique(active["landmark_rows"])) == len(active["landmark_rows"]) == 60
    assert active["is_validation"].sum() == kmeans["is_validation"].sum()
    assert not (active["is_validation"] & test).any()
    # the same volumes, compared in the same way: a basis of other landmarks, so not the same bits
    own = active["distances"][np.ix_(test, test)]
    theirs = kmeans["distances"][np.ix_(kmeans["is_test"], kmeans["is_test"])]
    np.testing.assert_allclose(own, theirs, atol=0.03 * np.median(theirs))


def test_the_curve_and_the_reason_are_told(folder):
    rounds = fidelity_of(folder)["active_sampling"]
    assert rounds["stopped"] == active_sampling.SPENT
    assert rounds["landmarks"] == [24 + size for size in training_sizes(36)]
    assert len(rounds["held_out_error"]) == len(rounds["landmarks"])
    assert all(0 < error < 5 for error in rounds["held_out_error"])
    assert yaml.safe_load((folder / "metric_embed.yaml").read_text())["active_sampling"] == rounds
    log = (folder / "metric_embed.log").read_text()
    assert "Round 5: 60 landmarks" in log and "No more landmarks: --landmarks is spent." in log
    assert "earlier run" not in log
    # a volume is decoded once: batches of eight of each round's own
    volumes = list((folder / "cache" / "volumes").iterdir())
    own = np.diff([0, *rounds["landmarks"]])
    assert len(volumes) == sum(-(-int(count) // 8) for count in own)


def test_the_report_shows_rounds_and_error_bars(workdir, folder, usual):
    def pictures(outdir):
        results = Results.load(open_workdir(workdir), MetricFolder(outdir, 2))
        section = fidelity_section(results)
        return {picture.name: picture for picture in section.pictures}, section.paragraphs

    shown, paragraphs = pictures(folder)
    assert active_sampling.SPENT in shown["landmark_rounds"].caption
    assert shown["landmark_rounds"].png and shown["error_bars"].png
    (words,) = [text for text in paragraphs if text.startswith("2 nets give")]
    assert "45 pairs of the other 10" in words
    assert not {"landmark_rounds", "error_bars"} & set(pictures(usual)[0])


def test_it_stops_where_the_error_has_stopped_falling(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(active_sampling, "PROGRESS", 0.99)
    found = embedded(workdir, tmp_path, *ACTIVE)
    rounds = fidelity_of(tmp_path)["active_sampling"]
    assert rounds["stopped"] == active_sampling.SETTLED
    assert len(rounds["landmarks"]) == 2 and rounds["landmarks"][-1] < 60
    assert len(found["landmark_rows"]) == rounds["landmarks"][-1]


def test_it_needs_an_ensemble():
    with pytest.raises(ArgumentError, match="--ensemble 2 or more; got 1"):
        EmbedConfig(
            "w", landmarks=LandmarkConfig(60, "active"), ensemble=EnsembleConfig(members=1)
        )


def test_error_bars_leave_everything_else_as_it_was(workdir, usual, tmp_path):
    """h_psi and z' to the byte, whatever --ensemble is; and what it adds."""
    embedded(workdir, tmp_path, "--ensemble", "2")
    for name in ("z_metric.pkl", "models/h_psi.safetensors", "models/h_psi.yaml"):
        assert (usual / name).read_bytes() == (tmp_path / name).read_bytes()
    bars = fidelity_of(tmp_path)["h_psi"]["error_bars"]
    assert (bars["members"], bars["calibrated_on"], bars["landmarks"]) == (2, 10, 10)
    assert bars["pairs"] == 45 and set(bars["coverage"]) >= {"0.68", "0.95"}
    assert fidelity_of(usual)["h_psi"]["error_bars"] is None
    with np.load(tmp_path / "particles.npz") as file:
        assert file["relative_error"].shape == (200,) and (file["relative_error"] > 0).all()
    with np.load(tmp_path / "held_out.npz") as file:
        assert file["is_calibration"].sum() == 10
        assert file["error_bars"].shape == file["measured"].shape
    assert (tmp_path / "models" / "h_psi_ensemble.safetensors").exists()
    embedded(workdir, tmp_path)  # again, without
    assert not (tmp_path / "models" / "h_psi_ensemble.safetensors").exists()
    with np.load(tmp_path / "particles.npz") as file:
        assert "relative_error" not in file.files
