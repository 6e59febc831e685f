"""--distance atoms on the demo's real workdir: what is written, kept, reported and refused."""

import logging
import re
import shutil
from dataclasses import replace

import gemmi
import numpy as np
import pytest
import torch
import yaml
from conftest import quiet
from running import FEW, SMALL, options_of, run, unchanged
from scipy.spatial.transform import Rotation
from shipped import copied_demo

from cryodrgn_metric import ArgumentError, VolumeError, atom_distances
from cryodrgn_metric.atomic_model import write_models
from cryodrgn_metric.bead_density import correlation
from cryodrgn_metric.config import DistanceConfig, DistanceNetConfig, MetricMapConfig
from cryodrgn_metric.fitted_models import FittedModels, save_models
from cryodrgn_metric.measurement import measure_distances, pick_landmarks
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.motion import add_path
from cryodrgn_metric.options import embed_config
from cryodrgn_metric.pipeline import embed
from cryodrgn_metric.report.fidelity_section import fidelity_section
from cryodrgn_metric.report.gallery import report_of
from cryodrgn_metric.report.motion_section import motion_section
from cryodrgn_metric.report.results import Results
from cryodrgn_metric.report.rotation_section import rotation_section
from cryodrgn_metric.run import prepare

ATOMS = ("--distance", "atoms", "--device", "cpu", "-d", "24", "--landmarks", "30", "--skip-vol")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return copied_demo(tmp_path_factory.mktemp("atoms"))


def config_of(workdir, folder, *options):
    """A run of few landmarks and paths, with nets that train at once."""
    given = (*SMALL, *ATOMS, "--ksample", "2", *options)
    return replace(
        embed_config(options_of(workdir, *given)),
        outdir=str(folder),
        distance_net=DistanceNetConfig(max_epochs=30),
        metric_map=MetricMapConfig(dimension=1, steps=200),
    )


def embedded(config):
    with unchanged(config.workdir), quiet():
        return embed(config)


def measured_again(config):
    """The stages up to distances.npz, from what the run in that folder has kept."""
    with quiet():
        run = prepare(config)
        return run, measure_distances(run, pick_landmarks(run))


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    """A run by pseudo-atoms."""
    return embedded(config_of(workdir, tmp_path_factory.mktemp("by_pseudo_atoms")))


@pytest.fixture
def copied(folder, tmp_path):
    """What it has kept, for another run to go on from."""
    return shutil.copytree(folder, tmp_path / "again", symlinks=True)


def arrays(path):
    with np.load(path) as found:
        return {name: found[name] for name in found.files}


def results_of(workdir, folder):
    with quiet():
        run = prepare(config_of(workdir, folder))
    return Results.load(run.workdir, MetricFolder(folder, run.workdir.epoch))


def test_distances_are_those_of_the_models(folder):
    found, models = arrays(folder / "distances.npz"), arrays(folder / "models_fitted.npz")
    fits = models["is_fitted"]
    np.testing.assert_array_equal(models["landmark_rows"][fits], found["landmark_rows"])
    expected = atom_distances(torch.from_numpy(models["coordinates"][fits]))
    for name in ("distances", "rotations", "raw_distances"):
        np.testing.assert_allclose(found[name], getattr(expected, name), atol=1e-4)
    assert np.isinf(found["second_peak_gaps"]).all() and found["distances"].dtype == np.float32
    np.testing.assert_array_equal(found["fit_correlations"], models["correlations"][fits])
    assert fits.all() and found["fit_correlations"].min() > 0.9


def test_motions_of_the_demo_are_told_from_its_rotations(folder):
    """In z they are one: the molecule turns by an angle that its poses don't know."""
    found = arrays(folder / "distances.npz")
    assert (found["distances"] ** 2).sum() < 0.3 * (found["raw_distances"] ** 2).sum()


def atoms_of(path):
    return [
        np.array([site.atom.pos.tolist() for site in model.all()])
        for model in gemmi.read_structure(str(path))
    ]


@pytest.mark.parametrize("flip", [False, True])
def test_the_models_lie_in_the_volumes_as_they_are_written(workdir, folder, tmp_path, flip):
    """The medoid's, which all others are laid on, against its volume in an .mrc file's frame."""
    models, distances = arrays(folder / "models_fitted.npz"), arrays(folder / "distances.npz")
    medoid = int(distances["distances"].sum(axis=1).argmin())
    with quiet():
        run = prepare(config_of(workdir, tmp_path / "flipped", *(["--flip"] if flip else [])))
    fitted = measured_models(run, models)
    save_models(run, fitted, models["landmark_rows"], medoid)
    volume = run.stream.volumes(run.workdir.latents[models["landmark_rows"][[medoid]]])
    volume = volume.flip(1) if flip else volume
    atoms = atoms_of(run.folder.models_fitted_pdb)[medoid]
    beads = torch.from_numpy(atoms / run.apix_at_box(24) - 12).float()[None]
    weights = torch.from_numpy(models["weights"]).float()
    width = float(models["width_in_voxels"][0])
    window = run.stream.window.flip(0) if flip else run.stream.window
    found = float(correlation(beads, weights, width, volume, window)[0])
    assert found == pytest.approx(models["correlations"][medoid], abs=0.005)


def measured_models(run, models):
    from cryodrgn_metric.fitted_models import fitting_of

    width = float(models["width_in_voxels"][0])
    fitting = fitting_of(run, models["rest"], models["weights"], width)
    return FittedModels(
        fitting, models["coordinates"], models["correlations"], models["strains"], ""
    )


def test_every_landmark_that_fits_is_a_model_of_the_pdb(folder):
    models = arrays(folder / "models_fitted.npz")
    found = atoms_of(folder / "models_fitted.pdb")
    assert len(found) == models["is_fitted"].sum()
    assert {len(one) for one in found} == {len(models["rest"])}


def test_the_other_atom_distance_fits_nothing_again(workdir, copied, caplog):
    logger = logging.getLogger("cryodrgn_metric")
    logger.addHandler(caplog.handler)
    before = arrays(copied / "models_fitted.npz")
    run, measured = measured_again(config_of(workdir, copied, "--atom-distance", "drmsd"))
    logger.removeHandler(caplog.handler)
    assert run.reused == ["volumes", "distances", "models"]
    expected = atom_distances(torch.from_numpy(before["coordinates"]), "drmsd")
    np.testing.assert_allclose(measured.pairs.distances, expected.distances, atol=1e-4)
    np.testing.assert_array_equal(measured.pairs.raw_distances, measured.pairs.distances)


def test_so3_goes_on_from_the_same_volumes_and_leaves_no_models(workdir, copied):
    given = config_of(workdir, copied)
    run, measured = measured_again(replace(given, distances=DistanceConfig()))
    assert run.reused == ["volumes", "distances"] and measured.models is None
    assert not (copied / "models_fitted.npz").exists()
    assert "fit_correlations" not in arrays(copied / "distances.npz")


class TestModelFile:
    @pytest.fixture
    def pdb(self, folder, tmp_path):
        """The demo's own molecule, as its pseudo-atoms tell it, turned and far away."""
        models = arrays(folder / "models_fitted.npz")
        turned = Rotation.random(random_state=4).apply(models["rest"]) + [50, 60, -70]
        residues = [("A", "ALA", number) for number in range(1, len(turned) + 1)]
        write_models(tmp_path / "own.pdb", turned[None], residues, ["own"])
        return tmp_path / "own.pdb"

    def test_it_is_placed_and_fitted(self, workdir, folder, copied, pdb):
        run, measured = measured_again(config_of(workdir, copied, "--model", str(pdb)))
        models = arrays(copied / "models_fitted.npz")
        assert models["residue_names"][0] == "ALA" and (models["weights"] == 1).all()
        assert np.median(models["correlations"]) > 0.95 and run.inputs["model"] == pdb
        upper = np.triu_indices(30, 1)
        expected = arrays(folder / "distances.npz")["distances"][upper]
        assert np.corrcoef(measured.pairs.distances[upper], expected)[0, 1] > 0.95

    def test_another_file_of_the_same_name_is_fitted_anew(self, workdir, copied, pdb):
        config = config_of(workdir, copied, "--model", str(pdb))
        run, _ = measured_again(config)
        assert "models" not in run.reused
        run, _ = measured_again(config)
        assert "models" in run.reused
        lines = pdb.read_text().splitlines()
        del lines[5]  # one bead fewer
        pdb.write_text("\n".join(lines) + "\n")
        run, _ = measured_again(config)
        assert run.reused == ["volumes", "distances"]

    def test_flip_means_that_the_model_has_the_hand_of_written_volumes(
        self, workdir, tmp_path, pdb
    ):
        given = ("--model", str(pdb))
        with quiet():
            found = [
                prepare(config_of(workdir, tmp_path / "out", *given, *more)).model.positions
                for more in ((), ("--flip",))
            ]
        np.testing.assert_array_equal(found[1], found[0] * [1, 1, -1])

    def test_one_that_is_larger_than_the_box_is_refused(self, workdir, pdb, capsys):
        options = ("--model", str(pdb), "--Apix", "0.5", "-o", str(pdb.parent / "out"))
        with pytest.raises(SystemExit) as stop:
            run(workdir, *ATOMS, *options)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and "does not fit into the box" in said and "--Apix" in said
        assert not (pdb.parent / "out").exists()

    def test_one_of_another_molecule_is_refused(self, workdir, copied, tmp_path):
        """By what it explains of the landmark in the middle."""
        rod = np.outer(np.arange(60) - 30, [0.8, 0.6, 0]) * 1.2
        residues = [("A", "ALA", number) for number in range(60)]
        write_models(tmp_path / "rod.pdb", rod[None], residues, ["a straight line"])
        config = config_of(workdir, copied, "--model", str(tmp_path / "rod.pdb"))
        with pytest.raises(VolumeError, match="does not fit the landmark in the middle"):
            measured_again(config)

    def test_an_unreadable_one_is_a_refusal_of_the_command(self, workdir, tmp_path, capsys):
        with pytest.raises(SystemExit) as stop:
            run(workdir, *ATOMS, "--model", tmp_path / "none.pdb", "-o", tmp_path / "out")
        assert stop.value.code == 2
        assert "none.pdb is not a readable .pdb or .cif file" in capsys.readouterr().err


class TestWhatDoesNotFit:
    def least(self, folder, count, monkeypatch):
        """Raise what is asked of a fit, so that `count` landmarks are below it."""
        correlations = np.sort(arrays(folder / "distances.npz")["fit_correlations"])
        limit = float(correlations[count - 1 : count + 1].mean())
        monkeypatch.setattr("cryodrgn_metric.fitted_models.LEAST_CORRELATION", limit)

    def test_a_few_are_left_out(self, workdir, copied, monkeypatch):
        self.least(copied, 3, monkeypatch)
        run, measured = measured_again(config_of(workdir, copied))
        assert len(measured.landmarks) == 27 and measured.features.shape[-1] == 27
        saved, models = arrays(copied / "distances.npz"), arrays(copied / "models_fitted.npz")
        assert saved["distances"].shape == (27, 27) and len(models["coordinates"]) == 30
        left = set(models["landmark_rows"][~models["is_fitted"]])
        assert len(left) == 3 and not left & set(saved["landmark_rows"])
        assert run.scores["fits"]["left_out"] == 3

    def test_more_than_a_tenth_end_the_run(self, workdir, copied, monkeypatch):
        self.least(copied, 4, monkeypatch)
        with pytest.raises(VolumeError, match="moving atoms cannot express") as refusal:
            measured_again(config_of(workdir, copied))
        assert "does not fit 4 of 30 volumes" in str(refusal.value)
        assert "--distance so3" in str(refusal.value)

    def test_a_squeezed_model_does_not_fit(self, workdir, copied, monkeypatch):
        strains = np.sort(arrays(copied / "distances.npz")["fit_strains"])
        limit = float(strains[-3:-1].mean())
        monkeypatch.setattr("cryodrgn_metric.fitted_models.MOST_STRAIN", limit)
        _, measured = measured_again(config_of(workdir, copied))
        assert len(measured.landmarks) == 28

    def test_volumes_without_a_molecule_are_refused(self, vae_workdir, tmp_path, capsys):
        """Two epochs of training leave a spike at the origin."""
        with pytest.raises(SystemExit) as stop:
            run(vae_workdir, "--distance", "atoms", "-o", tmp_path / "out")
        assert stop.value.code == 2
        assert "voxels of the reference volume stand out" in capsys.readouterr().err


class TestPaths:
    def test_their_volumes_are_compared_by_models(self, folder):
        for name in ("pc1", "path_0_1"):
            path = arrays(folder / f"analyze.120/{name}/path.npz")
            assert path["fit_correlations"].min() > 0.9
            found = path["distances"]
            assert 1 < found.max() < 60 and (np.diag(found) == 0).all()
            assert np.median(np.diagonal(found, 1)) < 0.6 * found[0, -1]

    def test_one_that_is_added_later_is_compared_alike(self, workdir, folder, copied):
        """From models_fitted.npz alone, as `cryodrgn_metric report --path` does."""
        shutil.rmtree(copied / "analyze.120/path_0_1")
        with quiet():
            summary = add_path(prepare(config_of(workdir, copied)), 0, 1)
        ours, theirs = (arrays(one / "analyze.120/path_0_1/path.npz") for one in (copied, folder))
        np.testing.assert_array_equal(ours["rows"], theirs["rows"])
        np.testing.assert_allclose(ours["distances"], theirs["distances"], atol=0.02)
        assert summary.end_to_end == pytest.approx(float(theirs["distances"][0, -1]), abs=0.02)

    def test_without_the_models_it_is_refused(self, workdir, copied):
        (copied / "models_fitted.npz").unlink()
        with quiet(), pytest.raises(ArgumentError, match=r"models_fitted\.npz is not of a"):
            add_path(prepare(config_of(workdir, copied)), 0, 1)


class TestReport:
    def test_units_and_words_are_those_of_models(self, workdir, folder):
        results = results_of(workdir, folder)
        report = report_of(results)
        section = fidelity_section(results)
        assert "fits" in {picture.name for picture in section.pictures}
        assert "contrast" not in {picture.name for picture in section.pictures}
        assert "all fit" in " ".join(section.paragraphs) and "in Å" in " ".join(section.paragraphs)
        assert re.search(r"median of \d+\.\d Å \(\d+\.\d voxels\)", report.verdict[2])
        assert report.facts["distance"].startswith("atoms (rmsd)")
        assert {"models_fitted.npz", "models_fitted.pdb"} <= {one.path for one in report.files}
        figures = [*section.pictures, *motion_section(results).pictures]
        figures += rotation_section(results).pictures
        said = " ".join(
            label
            for picture in figures
            for axis in picture.figure.axes
            for label in (axis.get_xlabel(), axis.get_ylabel())
        )
        assert "density units" not in said and "measured Δ (Å)" in said
        assert "RMSD as the models lie (Å)" in said

    @pytest.mark.slow
    def test_by_drmsd_no_rotation_is_spoken_of_as_hidden(self, workdir, copied):
        made = embedded(config_of(workdir, copied, "--atom-distance", "drmsd"))
        results = results_of(workdir, made)
        section = rotation_section(results)
        assert "raw_distance" not in {picture.name for picture in section.pictures}
        assert "no rotation changes" in section.paragraphs[0]
        assert "no rotation enters it" in report_of(results).verdict[1]


@pytest.mark.slow
def test_the_whole_command_with_a_model_report_and_notebook(workdir, folder, tmp_path):
    """As a user types it; the model is hashed among the inputs."""
    models = arrays(folder / "models_fitted.npz")
    residues = [("A", "ALA", number) for number in range(1, len(models["rest"]) + 1)]
    write_models(tmp_path / "own.pdb", models["rest"][None], residues, ["own"])
    run(workdir, *ATOMS, "--model", tmp_path / "own.pdb", "-o", tmp_path / "out", small=FEW)
    saved = yaml.safe_load((tmp_path / "out/metric_embed.yaml").read_text())
    assert len(saved["sha256"]["own.pdb"]) == 64
    assert saved["config"]["distances"]["model"] == str(tmp_path / "own.pdb")
    assert (tmp_path / "out/figures/fits.png").is_file()
    assert "models_fitted.pdb" in (tmp_path / "out/report.html").read_text()


def test_density_of_the_other_sign_is_refused(workdir, copied):
    """--invert makes what is positive negative."""
    with pytest.raises(VolumeError, match="density is negative .* Leave out --invert"):
        measured_again(config_of(workdir, copied, "--invert"))
