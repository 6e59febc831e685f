"""The demo's own part: where it may write, what it measures, what it prints."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from shipped import DEMO

from cryodrgn_metric.artifacts import save_npz, save_pickle
from cryodrgn_metric.demo import run, truth
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.reference_spaces import reference_spaces


@pytest.fixture
def shipped():
    return DEMO


@pytest.fixture
def perfect(tmp_path, shipped):
    """What metric_embed would write if it knew the truth."""
    facts = truth.load_truth()
    epoch = run.open_workdir(str(shipped), -1).epoch
    folder = MetricFolder(tmp_path, epoch)
    rng = np.random.default_rng(0)
    rows = rng.choice(len(facts["motion"]), 40, replace=False)
    points = np.stack([facts["motion"], 20.0 * facts["state"]], 1)
    points = (points + 0.1 * rng.normal(size=points.shape)).astype(np.float32)
    save_pickle(folder.z_metric, points)
    distances = truth.true_distances(rows[:, None], rows[None, :])
    is_test = np.arange(40) < 30
    save_npz(folder.distances, landmark_rows=rows, is_test=is_test, distances=distances)
    return folder


@pytest.fixture
def scores(perfect, shipped, monkeypatch):
    monkeypatch.setattr(run, "reference_spaces", partial(reference_spaces, skip_umap=True))
    return run.score_embedding(shipped, perfect)


def test_true_distances_score_as_perfect(scores):
    assert scores.test_landmarks == 30
    assert scores.spearman["exact_delta"] == pytest.approx(1)
    assert scores.spearman["z"] < 0.8
    assert scores.nuisance_share["z_metric"] < 0.01 < 0.3 < scores.nuisance_share["z"]
    assert scores.state_auc["z_metric"] == pytest.approx(1)


def test_report_shows_every_number_and_where_to_look(scores, perfect):
    text = run.report(scores, Path("out"), perfect)
    assert f"{scores.spearman['z']:.3f}" in text
    assert str(perfect.path) in text and "demo.png" in text
    assert json.loads(json.dumps(asdict(scores)))["dimensions"] == {
        "z": 4,
        "pca": 2,
        "z_metric": 2,
    }
    assert max(map(len, text.splitlines())) < 130


def test_figure_is_drawn(perfect, shipped, tmp_path):
    run._draw(tmp_path / "demo.png", shipped, perfect)
    assert (tmp_path / "demo.png").stat().st_size > 50_000


def test_a_folder_of_the_users_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ArgumentError, match="not empty"):
        run.run_demo(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_refused(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ArgumentError, match="is a file"):
        run.run_demo(str(tmp_path / "out"))


def test_a_demos_own_folder_is_used_again(tmp_path):
    first = run._claim(tmp_path / "new" / "out")
    (first / "demo.json").write_text("{}")
    assert run._claim(first) == first
