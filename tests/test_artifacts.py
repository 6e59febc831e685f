"""Atomic writing, plain values and names."""

import json
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from cryodrgn_metric.artifacts import (
    atomic_path,
    plain,
    remove_drafts_of,
    require_space,
    save_json,
    save_npz,
    save_pickle,
    save_text,
    save_yaml,
    sha256_of,
)
from cryodrgn_metric.errors import OutputError
from cryodrgn_metric.metric_folder import MetricFolder


def test_atomic_path_replaces_and_leaves_nothing_beside(tmp_path):
    final = tmp_path / "new" / "numbers.mrc"
    save_text(final, "old")
    with atomic_path(final) as draft:
        assert draft.parent == final.parent
        assert draft.name.startswith(".") and draft.suffix == ".mrc"
        draft.write_text("new")
        assert final.read_text() == "old"
    assert final.read_text() == "new"
    assert os.listdir(final.parent) == ["numbers.mrc"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_changes_nothing(tmp_path, error):
    final = tmp_path / "numbers.txt"
    save_text(final, "old")
    with pytest.raises(error), atomic_path(final) as draft:
        draft.write_text("half")
        raise error
    assert final.read_text() == "old"
    assert os.listdir(tmp_path) == ["numbers.txt"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="numbers.txt"), atomic_path(tmp_path / "numbers.txt"):
        pass
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="modes are a matter of POSIX")
def test_files_have_the_users_usual_mode(tmp_path):
    (tmp_path / "usual").touch()
    save_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_pickle_and_npz_come_back(tmp_path):
    z = np.arange(6, dtype=np.float32).reshape(3, 2)
    save_pickle(tmp_path / "z.pkl", z)
    save_npz(tmp_path / "d.npz", distances=z, is_test=z[:, 0] > 1)
    np.testing.assert_array_equal(pickle.loads((tmp_path / "z.pkl").read_bytes()), z)
    with np.load(tmp_path / "d.npz", allow_pickle=False) as data:
        assert set(data) == {"distances", "is_test"}
        np.testing.assert_array_equal(data["distances"], z)


@dataclass(frozen=True)
class Parameters:
    workdir: Path
    seed: np.int64
    sizes: tuple[int, ...]
    scale: float


def test_yaml_and_json_hold_plain_values(tmp_path):
    value = {"a": Parameters(Path("w"), np.int64(3), (1, 2), float("nan")), 1: np.array([True])}
    expected = {"a": {"workdir": "w", "seed": 3, "sizes": [1, 2]}, "1": [True]}
    save_yaml(tmp_path / "p.yaml", value)
    save_json(tmp_path / "p.json", value)
    from_yaml = yaml.safe_load((tmp_path / "p.yaml").read_text())
    from_json = json.loads((tmp_path / "p.json").read_text())
    assert np.isnan(from_yaml["a"].pop("scale"))
    assert from_json["a"].pop("scale") is None
    assert from_yaml == from_json == expected


def test_plain_keeps_numbers_as_they_are():
    assert plain((1, 2.5, "x", None, True, {3})) == [1, 2.5, "x", None, True, [3]]
    assert type(plain(np.float32(0.5))) is float


def test_sha256_reads_the_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 1_000_000)
    before = sha256_of(path)
    path.write_bytes(b"abc" * 999_999 + b"abd")
    assert len(before) == 64 and sha256_of(path) != before


@pytest.mark.parametrize(
    ("epoch", "folder", "analysis"),
    [(49, "metric_embed.49", "analyze.49"), (None, "metric_embed", "analyze")],
)
def test_names(epoch, folder, analysis):
    names = MetricFolder.beside(Path("w"), epoch)
    assert names.path == Path("w") / folder
    assert names.cluster_labels(20) == Path("w", folder, analysis, "kmeans20", "labels.pkl")
    assert names.volume(20, 7).name == "vol_007.mrc"
    files = [names.parameters, names.log, names.z_metric, names.z_metric_csv, names.distances]
    assert [path.name for path in [*files, names.fidelity, names.models]] == [
        "metric_embed.yaml",
        "metric_embed.log",
        "z_metric.pkl",
        "z_metric.csv",
        "distances.npz",
        "fidelity.json",
        "models",
    ]


def test_room_is_asked_for_before_and_what_is_there_counts(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path / "new" / "folder", 1000)
    with pytest.raises(OutputError, match="Make room"):
        require_space(tmp_path / "new" / "folder", 2 * free)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2 * free)  # takes no room, but claims it
    require_space(tmp_path, 2 * free)


def test_drafts_of_one_file_are_removed_and_nothing_else(tmp_path):
    theirs = [".metric_z.pkl", ".metric_z.notes.pkl", ".other.0123456789ab.pkl", "metric_z.pkl"]
    for name in [*theirs, ".metric_z.0123456789ab.pkl"]:
        (tmp_path / name).touch()
    remove_drafts_of(tmp_path / "metric_z.pkl")
    assert {path.name for path in tmp_path.iterdir()} == set(theirs)
