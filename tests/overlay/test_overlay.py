"""The files of the overlay, on workdirs of every kind; cryoDRGN's tools open them elsewhere."""

import errno
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import CHOSEN, KINDS, WITHOUT_LATENTS, quiet
from running import hashes, unchanged

from cryodrgn_metric import open_workdir
from cryodrgn_metric.artifacts import sha256_of
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.overlay import is_guest, write_guests, write_overlay
from cryodrgn_metric.runlog import logging_kept
from cryodrgn_metric.view import view_of

with logging_kept():  # to import cryoDRGN silences the loggers there are
    import cryodrgn.config
    from cryodrgn import utils
    from cryodrgn.dashboard.landscape_full_3d import landscape_full_3d_ready

WITH_LATENTS = sorted(set(KINDS) - set(WITHOUT_LATENTS))


@pytest.fixture
def copied(tmp_path, workdir_of):
    """copied(name): a copy of a workdir of that kind, to be written to."""

    def copy(name="dec"):
        return Path(shutil.copytree(workdir_of(name), tmp_path / "00_vae"))

    return copy


def results(workdir, dimension=3):
    """z', its view, and labels such as a run gives them; what the numbers are is of no matter."""
    random = np.random.default_rng(0)
    z_metric = random.normal(size=(len(workdir.latents), dimension)).astype(np.float32)
    labels = random.integers(0, 4, len(z_metric)).astype(np.int32)
    return z_metric, view_of(z_metric), labels


def overlaid(folder, outdir=None, dimension=3):
    """Write the overlay of a workdir's latest epoch; give its MetricFolder."""
    workdir = open_workdir(folder)
    made = MetricFolder(Path(outdir or workdir.outdir), workdir.epoch)
    made.require_ours(workdir.path)
    made.path.mkdir(exist_ok=True, parents=True)
    (made.path / "metric_embed.lock").touch()  # as the run that writes there
    write_overlay(made, workdir, *results(workdir, dimension))
    return made


def edit_config(folder, **changes):
    """Change dataset_args of a workdir's config.yaml."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["dataset_args"] |= {name: value for name, value in changes.items()}
    path.write_text(yaml.safe_dump(config))


# -- config.yaml


@pytest.mark.parametrize("name", WITH_LATENTS)
def test_it_opens_as_the_workdir_does(name, workdir_of, tmp_path):
    original = open_workdir(workdir_of(name))
    made = overlaid(original.path, tmp_path / "elsewhere" / "out")
    again = open_workdir(made.path)
    assert (again.epoch, again.kind, again.box_size) == (
        original.epoch,
        original.kind,
        original.box_size,
    )
    assert again.apix == original.apix
    np.testing.assert_array_equal(again.latents, original.latents)
    np.testing.assert_array_equal(again.particle_indices, original.particle_indices)


@pytest.mark.parametrize("name", ["ind", "tilt", "abinit", "abinit_ind"])
def test_its_config_is_the_users_but_for_paths(name, workdir_of, tmp_path):
    folder = workdir_of(name)
    made = overlaid(folder, tmp_path / "out")
    config = cryodrgn.config.load(str(made.path / "config.yaml"))
    # everything was found as it is written: cryoDRGN writes absolute paths
    assert config == cryodrgn.config.load(str(folder / "config.yaml"))


def test_inputs_are_found_beside_the_workdir_and_in_its_parent(copied, stack, tmp_path, caplog):
    folder = copied("ind")
    shutil.copy(stack.ctf, folder / "ctf.pkl")
    shutil.copy(stack.poses, tmp_path / "poses.pkl")
    (tmp_path / "images").mkdir()
    edit_config(
        folder,
        ctf="/gone/ctf.pkl",
        poses="/gone/poses.pkl",
        particles="/gone/stack.mrcs",
        datadir="/gone/images",
    )
    paths = cryodrgn.config.load(str(overlaid(folder).config))["dataset_args"]
    assert paths["ctf"] == str(folder / "ctf.pkl")
    assert paths["poses"] == str(tmp_path / "poses.pkl")
    assert paths["datadir"] == str(tmp_path / "images")
    assert paths["particles"] == "/gone/stack.mrcs"
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1 and "the particles of config.yaml, /gone/stack.mrcs," in told[0]


def test_paths_relative_to_where_one_stands(copied, stack, monkeypatch):
    folder = copied("dec")
    edit_config(folder, ctf=stack.ctf.name)
    monkeypatch.chdir(stack.ctf.parent)
    with quiet():
        config = cryodrgn.config.load(str(overlaid(folder).config))
    assert config["dataset_args"]["ctf"] == str(stack.ctf)


def test_an_ind_that_is_a_number_stays_one(copied):
    folder = copied("abinit")
    edit_config(folder, ind=200)
    config = cryodrgn.config.load(str(overlaid(folder).config))
    assert config["dataset_args"]["ind"] == 200


def test_the_inputs_that_drgn_ai_repeats(copied, stack):
    folder = copied("abinit")
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    shutil.copy(stack.particles, folder.parent)
    config["training"]["particles"] = "/gone/particles.mrcs"
    path.write_text(yaml.safe_dump(config))
    again = cryodrgn.config.load(str(overlaid(folder).config))
    assert again["training"]["particles"] == str(folder.parent / "particles.mrcs")
    assert again["training"]["ind"] is None


# -- links


def test_links_are_relative_and_survive_a_move(copied, tmp_path):
    folder = copied("dec")
    made = overlaid(folder)
    assert os.readlink(made.path / "z.2.pkl") == "../z.2.pkl"
    assert os.readlink(made.path / "weights.2.pkl") == "../weights.2.pkl"
    assert os.readlink(made.path / "run.log") == "../run.log"
    moved = shutil.move(folder, tmp_path / "moved")
    assert open_workdir(moved / "metric_embed.2").epoch == 2


def test_links_lead_home_from_another_folder_through_links(copied, tmp_path):
    """A folder reached by a link has another parent than its name says."""
    folder = copied("dec")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "short").symlink_to(tmp_path / "deep" / "er")
    made = overlaid(folder, tmp_path / "short" / "out")
    assert not os.path.isabs(os.readlink(made.path / "z.2.pkl"))
    assert (made.path / "z.2.pkl").samefile(folder / "z.2.pkl")


def test_poses_of_the_training_come_along(workdir_of, tmp_path):
    made = overlaid(workdir_of("pose_sgd"), tmp_path / "sgd")
    assert (made.path / "pose.2.pkl").samefile(workdir_of("pose_sgd") / "pose.2.pkl")
    made = overlaid(workdir_of("dec"), tmp_path / "dec")
    assert not os.path.lexists(made.path / "pose.2.pkl")


def test_without_an_epoch_there_is_no_overlay(copied):
    folder = copied("dec")
    for name in [*folder.glob("z.*.pkl"), *folder.glob("weights.*.pkl")]:
        name.unlink()
    made = overlaid(folder)
    assert {path.name for path in made.path.iterdir()} == {"metric_embed.lock", "analyze"}
    assert [path.name for path in made.analysis.iterdir()] == ["umap.pkl"]  # for the report


def without_links(*_, **__):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))  # what exFAT answers


def test_copies_where_the_file_system_has_no_links(copied, monkeypatch, caplog):
    folder = copied("dec")
    monkeypatch.setattr(Path, "symlink_to", without_links)
    made = overlaid(folder)
    assert "z.2.pkl, weights.2.pkl, run.log were copied" in caplog.text
    for name in ("z.2.pkl", "weights.2.pkl", "run.log"):
        assert not (made.path / name).is_symlink()
        assert sha256_of(made.path / name) == sha256_of(folder / name)
    overlaid(folder)  # and again: its own copies are no strangers
    monkeypatch.undo()
    assert (overlaid(folder).path / "z.2.pkl").is_symlink()


# -- what was there before


def test_the_same_again_gives_the_same(copied):
    folder = copied("dec")
    made = overlaid(folder)
    first = hashes(made.path)
    overlaid(folder)
    assert hashes(made.path) == first
    assert not [path for path in made.path.rglob(".*")]


def test_another_epoch_in_the_same_folder_is_the_only_one(copied, tmp_path):
    """cryoDRGN's filter and dashboard open the largest N that they see."""
    folder = copied("dec")
    for epoch in (2, 1):
        workdir = open_workdir(folder, epoch)
        made = MetricFolder(tmp_path / "out", epoch)
        write_overlay(made, workdir, *results(workdir))
    assert open_workdir(tmp_path / "out").epoch == 1
    assert sorted(path.name for path in made.path.glob("*.pkl")) == ["weights.1.pkl", "z.1.pkl"]


def test_a_link_of_an_earlier_run_to_what_is_gone(copied, tmp_path):
    folder = copied("pose_sgd")
    out = tmp_path / "out"
    made = overlaid(folder, out)
    (folder / "pose.2.pkl").unlink()
    (made.path / "z.2.pkl").unlink()
    (made.path / "z.2.pkl").symlink_to("../old_place/z.2.pkl")
    overlaid(folder, out)
    assert not os.path.lexists(made.path / "pose.2.pkl")
    assert (made.path / "z.2.pkl").samefile(folder / "z.2.pkl")


@pytest.mark.parametrize("name", ["z.2.pkl", "weights.2.pkl", "pose.2.pkl", "run.log"])
def test_a_file_of_the_users_is_not_replaced_by_a_link(name, copied):
    folder = copied("dec")
    made = overlaid(folder)
    (made.path / name).unlink(missing_ok=True)
    (made.path / name).write_text("mine")
    with pytest.raises(ArgumentError, match=rf"{name} was not made by metric_embed.*-o"):
        made.require_ours(folder)
    assert (made.path / name).read_text() == "mine"


def test_a_link_of_the_users_is_not_replaced_either(copied, tmp_path):
    folder = copied("dec")
    made = overlaid(folder)
    made.require_ours(folder)
    (made.path / "run.log").unlink()
    (made.path / "run.log").symlink_to(tmp_path / "diary.txt")
    with pytest.raises(ArgumentError, match=r"run\.log was not made by metric_embed"):
        made.require_ours(folder)


def test_nothing_is_written_through_a_linked_landscape(copied, tmp_path):
    folder = copied("dec")
    made = overlaid(folder)
    shutil.rmtree(made.path / "landscape.2")
    (made.path / "landscape.2").symlink_to(tmp_path)
    with pytest.raises(ArgumentError, match=r"landscape\.2 is a link"):
        made.require_ours(folder)


# -- analyze.N and landscape.N


@pytest.mark.parametrize("dimension", [1, 2, 3, 4])
def test_the_landscape_holds_z_metric(dimension, workdir_of, tmp_path):
    workdir = open_workdir(workdir_of("ind"))
    made = overlaid(workdir.path, tmp_path / "out", dimension)
    z_metric, view, labels = results(workdir, dimension)
    full = made.path / "landscape.2" / "landscape_full"
    axes = utils.load_pkl(full / "vol_pca_all.pkl")
    assert axes.shape == (len(CHOSEN), max(3, dimension)) and axes.dtype == np.float32
    np.testing.assert_array_equal(axes[:, :dimension], z_metric)
    assert not axes[:, dimension:].any()
    rows = utils.load_pkl(full / "ind.sampled.pkl")
    np.testing.assert_array_equal(rows, np.arange(len(CHOSEN)))
    np.testing.assert_array_equal(utils.load_pkl(full / "z.sampled.pkl"), workdir.latents)
    np.testing.assert_array_equal(utils.load_pkl(full / "umap_vol_pca.pkl"), view)
    numbers = utils.load_pkl(full / "full_clustering" / "cluster_labels.pkl")
    np.testing.assert_array_equal(numbers, labels + 1)
    np.testing.assert_array_equal(utils.load_pkl(made.path / "analyze.2" / "umap.pkl"), view)
    assert landscape_full_3d_ready(str(made.path), 2)


def test_of_many_particles_the_landscape_shows_ten_thousand(copied, tmp_path):
    folder = copied("dec")
    latents = np.random.default_rng(0).normal(size=(12_000, 3)).astype(np.float32)
    (folder / "z.2.pkl").write_bytes(pickle.dumps(latents))
    edit_config(folder, poses=None, ctf=None)
    full = overlaid(folder).landscape
    rows = utils.load_pkl(full / "ind.sampled.pkl")
    assert len(set(rows)) == 10_000 and rows[0] >= 0 and rows[-1] < 12_000
    np.testing.assert_array_equal(utils.load_pkl(full / "z.sampled.pkl"), latents[rows])
    assert utils.load_pkl(full / "vol_pca_all.pkl").shape == (12_000, 3)


# -- guests


@pytest.fixture
def analysed(copied):
    """A workdir with an analyze.2, and what a run has found in it."""
    folder = copied("dec")
    (folder / "analyze.2").mkdir()
    workdir = open_workdir(folder)
    z_metric, _, labels = results(workdir)
    return workdir, z_metric, labels


def test_guests_are_read_as_any_pickle(analysed):
    workdir, z_metric, labels = analysed
    written = write_guests(workdir, z_metric, labels)
    assert [path.name for path in written] == ["metric_z.pkl", "metric_labels.pkl"]
    np.testing.assert_array_equal(utils.load_pkl(written[0]), z_metric)
    np.testing.assert_array_equal(utils.load_pkl(written[1]), labels)
    assert all(is_guest(path) for path in written)


def test_guests_of_an_earlier_run_are_replaced(analysed):
    workdir, z_metric, labels = analysed
    write_guests(workdir, z_metric, labels)
    written = write_guests(workdir, z_metric[:, :1], labels[::-1])
    assert utils.load_pkl(written[0]).shape == (200, 1)
    names = {path.name for path in (workdir.path / "analyze.2").iterdir()}
    assert names == {"metric_z.pkl", "metric_labels.pkl"}


def test_a_file_of_the_users_with_a_guests_name_stays(analysed, caplog):
    workdir, z_metric, labels = analysed
    path = workdir.path / "analyze.2" / "metric_labels.pkl"
    write_guests(workdir, z_metric, labels)
    utils.save_pkl(utils.load_pkl(path) + 5, path)  # ours, changed by the user: theirs
    before = path.read_bytes()
    written = write_guests(workdir, z_metric, labels)
    assert [path.name for path in written] == ["metric_z.pkl"]
    assert path.read_bytes() == before and "metric_labels.pkl was not made by" in caplog.text


def test_nothing_is_written_through_a_link_with_a_guests_name(analysed, tmp_path):
    workdir, z_metric, labels = analysed
    (tmp_path / "kept.pkl").write_bytes(b"mine")
    (workdir.path / "analyze.2" / "metric_z.pkl").symlink_to(tmp_path / "kept.pkl")
    assert len(write_guests(workdir, z_metric, labels)) == 1
    assert (tmp_path / "kept.pkl").read_bytes() == b"mine"


def test_no_analysis_no_guests(copied):
    folder = copied("dec")
    workdir = open_workdir(folder)
    z_metric, _, labels = results(workdir)
    with unchanged(folder):
        assert write_guests(workdir, z_metric, labels) == []


def test_an_analysis_that_cannot_be_written_to_costs_a_warning(analysed, monkeypatch, caplog):
    workdir, z_metric, labels = analysed

    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", read_only)  # permissions don't stop who is root
    assert write_guests(workdir, z_metric, labels) == []
    assert "Read-only file system" in caplog.text
