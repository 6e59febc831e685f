"""The whole report of real runs: by the command itself, again from what is saved, side by side."""

import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PARTICLES, quiet
from running import FEW, hashes, run, unchanged
from scipy.spatial.transform import Rotation

import cryodrgn_metric as cm
from cryodrgn_metric import script
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.errors import ArgumentError, MetricError, UnsafeFileError
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.report.comparison_section import comparison_section
from cryodrgn_metric.report.gallery import report_of
from cryodrgn_metric.report.page import page_of
from cryodrgn_metric.report.results import Results
from cryodrgn_metric.reporting import ReportConfig, report
from cryodrgn_metric.workdir import open_workdir

ALWAYS = {
    "shepard",
    "fidelity",
    "h_psi",
    "contrast",
    "reach",
    "learning_curves",
    "intrinsic_dimension",
    "raw_distance",
    "rotation_angles",
    "far_in_z",
    "near_in_z",
    "z_metric_kmeans",
    "z_metric_hdbscan",
    "density",
    "negative_log_density",
    "stretch",
    "paths",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, vae_workdir):
    """A workdir with an analyze.2, embedded by the real command, report and notebook included."""
    workdir = tmp_path_factory.mktemp("report") / "00_vae"
    shutil.copytree(vae_workdir, workdir)
    (workdir / "analyze.2").mkdir()
    (workdir / "analyze.2" / "umap.pkl").write_bytes(b"the user's own")
    run(workdir, "--epoch", "2", small=FEW)
    return workdir


@pytest.fixture
def embedded(made, tmp_path):
    """A copy, to be changed."""
    return shutil.copytree(made, tmp_path / "00_vae", symlinks=True)


def folder_of(workdir):
    return MetricFolder.beside(workdir, 2)


def figures_of(workdir):
    return {path.stem for path in folder_of(workdir).figures.glob("*.png")}


def again(workdir, **options):
    with unchanged(workdir), quiet():
        return report(ReportConfig(str(workdir), **options))


def test_the_run_writes_figures_page_and_notebook(made):
    folder = folder_of(made)
    of_paths = {name for name in figures_of(made) if re.match(r"pc\d|path_\d", name)}
    assert figures_of(made) - of_paths == ALWAYS | {"representatives"}
    assert {"pc1_volumes", "pc2_differences", "pc1_steps"} <= of_paths
    page = folder.page.read_text()
    assert page.count("<figure") == len(figures_of(made))
    assert folder.notebook.is_file()
    guests = {path.name for path in (made / "analyze.2").iterdir()}
    assert guests == {"umap.pkl", folder.notebook.name, "metric_z.pkl", "metric_labels.pkl"}
    assert (made / "analyze.2" / folder.notebook.name).read_bytes() == folder.notebook.read_bytes()


def test_the_page_lists_files_that_are_there(made):
    folder = folder_of(made)
    shown = report_of(Results.load(open_workdir(made, 2), folder))
    names = {entry.path for entry in shown.files}
    assert {"z_metric.pkl", "metric_embed.yaml", "figures", folder.notebook.name} <= names
    assert all((folder.path / name).exists() for name in names)


def test_verdict_and_sections_come_in_the_promised_order(made):
    shown = report_of(Results.load(open_workdir(made, 2), folder_of(made)))
    assert len(shown.verdict) == len(shown.grades) == 3
    anchors = [section.anchor for section in shown.sections]
    assert anchors == ["fidelity", "rotation", "dimension", "landscape", "motion", "clusters"]
    for section in shown.sections:
        for picture in section.pictures:
            assert len(re.findall(r"[.:;](?: |$)", picture.caption)) >= 2, picture.name
    free_energy = next(p for p in shown.sections[3].pictures if p.name == "negative_log_density")
    assert "not a free energy" in free_energy.caption


def test_the_report_is_made_again_from_what_is_saved(embedded):
    folder = folder_of(embedded)
    page, drawn = folder.page.read_bytes(), figures_of(embedded)
    for path in (folder.page, folder.notebook, *folder.figures.iterdir()):
        path.unlink()
    for path in (*folder.models.iterdir(), embedded / "weights.2.pkl"):
        path.write_bytes(b"")  # no model can be read: nothing is computed
    before = hashes(embedded)
    folder.figure("comparison_maps").write_bytes(b"of a report with --compare")
    again(embedded, epoch=2)
    assert folder.page.read_bytes() == page and figures_of(embedded) == drawn
    after = hashes(embedded)
    new = {"metric_embed.2/report.html", "metric_embed.2/cryoDRGN_metric_embed.ipynb"}
    new |= {f"metric_embed.2/figures/{name}.png" for name in figures_of(embedded)}
    assert set(after) - set(before) == new
    lock = "metric_embed.2/metric_embed.lock"  # signed by whoever wrote last
    assert {name for name in before if before[name] != after[name]} <= {lock}


@pytest.fixture(scope="module")
def extended(made, tmp_path_factory):
    """The report again, with all that can be asked for at once; and what was asked for."""
    place = tmp_path_factory.mktemp("extended")
    workdir = shutil.copytree(made, place / "00_vae", symlinks=True)
    words, numbers = place / "class.pkl", place / "ctf.pkl"
    words.write_bytes(pickle.dumps(["open", "closed"] * (PARTICLES // 2)))
    numbers.write_bytes(pickle.dumps(np.random.default_rng(0).normal(size=(PARTICLES, 2))))
    other = place / "other" / "metric_embed.2"
    run(workdir, "--epoch", "2", "--dim", "3", "-o", other)
    there = {path.name for path in folder_of(workdir).paths()}
    pairs = [(a, b) for a in range(4) for b in range(a)]
    pair = next(pair for pair in pairs if "path_{}_{}".format(*sorted(pair)) not in there)
    again(
        workdir,
        epoch=2,
        paths=(pair,),
        covariates=(str(words), str(numbers)),
        other=str(other),
    )
    return SimpleNamespace(workdir=workdir, pair=pair, there=there, other=other)


def test_a_path_is_added(extended):
    folder = folder_of(extended.workdir)
    new = folder.cluster_path(*extended.pair)
    assert new.table.is_file() and new.movie.is_file() and new.volume(1).is_file()
    assert f"{new.name}_volumes" in figures_of(extended.workdir)
    summary = json.loads(folder.summary.read_text())
    assert {path["name"] for path in summary["paths"]} == extended.there | {new.name}
    labels = pickle.loads(folder.cluster_labels(4).read_bytes())
    ends = np.loadtxt(new.indices, dtype=int)[[0, -1]]
    assert labels[ends].tolist() == list(extended.pair)


def test_covariates_colour_the_scatter(extended):
    page = folder_of(extended.workdir).page.read_text()
    for name in ("class", "ctf 1", "ctf 2", "local stretch", "HDBSCAN cluster"):
        assert f">{name}</option>" in page or f'"{name}"' in page, name


def test_two_runs_stand_side_by_side(extended):
    page = folder_of(extended.workdir).page.read_text()
    assert "How does it compare?" in page and f"They share {PARTICLES:,} particles" in page
    drawn = figures_of(extended.workdir)
    assert {"comparison_shepard", "comparison_distances", "comparison_maps"} <= drawn


def test_angles_are_those_of_the_rotations(made):
    results = Results.load(open_workdir(made, 2), folder_of(made))
    angles = np.array([0, 1e-4, 90, 179.9])  # degrees
    axis = np.array([1, 2, 2]) / 3
    turns = Rotation.from_rotvec(np.radians(angles)[:, None] * axis).as_matrix()
    known = replace(results, landmarks={"rotations": turns.reshape(2, 2, 3, 3)})
    np.testing.assert_allclose(known.angles_in_degrees, angles.reshape(2, 2), atol=1e-9)


def test_a_report_needs_no_torch():
    """It takes longer to import than all sections to make."""
    program = "import sys, cryodrgn_metric.reporting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.slow
def test_without_asking_for_it_the_comparison_goes(extended):
    again(extended.workdir, epoch=2)
    drawn = figures_of(extended.workdir)
    assert not any(name.startswith("comparison") for name in drawn)
    assert "path_{}_{}_steps".format(*extended.pair) in drawn  # what was added stays


def test_a_run_agrees_with_itself(made):
    results = Results.load(open_workdir(made, 2), folder_of(made))
    said = " ".join(comparison_section(results, results).paragraphs)
    assert "Spearman correlation of 1.000" in said and "adjusted Rand index of 1.00" in said


@pytest.mark.parametrize("pair", [(0, 0), (0, 9), (-1, 2)])
def test_a_path_needs_two_clusters(made, pair):
    with pytest.raises(ArgumentError, match="two different clusters from 0 to 3"):
        again(made, epoch=2, paths=(pair,))


def test_nothing_is_reported_of_other_latents(embedded):
    with (embedded / "z.2.pkl").open("ab") as file:
        file.write(b" ")  # behind what is read
    with pytest.raises(MetricError, match="it has changed since"):
        again(embedded, epoch=2)


def test_a_path_is_refused_once_the_model_has_changed(embedded):
    with (embedded / "config.yaml").open("a") as file:
        file.write("# trained again\n")
    with pytest.raises(MetricError, match="are not those that"):
        again(embedded, epoch=2, paths=((0, 1),))


@pytest.mark.parametrize(
    "value", [np.zeros(PARTICLES - 1), {"a": 1}, np.zeros((PARTICLES, 2, 2)), ["a"]]
)
def test_a_covariate_has_a_row_for_every_particle(made, tmp_path, value):
    path = tmp_path / "value.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(ArgumentError, match=rf"value.pkl: expected an array .*\({PARTICLES},\)"):
        again(made, epoch=2, covariates=(str(path),))


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_hostile_file_among_the_results_is_refused(embedded, monkeypatch):
    """Before the notebook, whose kernel reads pickles as cryoDRGN does."""
    monkeypatch.chdir(embedded.parent)
    folder_of(embedded).umap.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(UnsafeFileError, match="umap.pkl"):
        again(embedded, epoch=2)
    assert not (embedded.parent / "pwned").exists()


def test_compare_needs_a_finished_run(made, tmp_path):
    with pytest.raises(ArgumentError, match="holds no finished run"):
        again(made, epoch=2, other=str(tmp_path))


def test_a_workdir_that_was_not_embedded_is_told_so(vae_workdir, capsys):
    with pytest.raises(SystemExit) as error:
        script.main(["report", str(vae_workdir), "--epoch", "1"])
    assert error.value.code == 2
    assert "Type `cryodrgn metric_embed" in capsys.readouterr().err


def test_numbers_that_are_undefined_are_said(made):
    """As where all volumes are alike: null in the files, "undefined" in the report."""
    results = Results.load(open_workdir(made, 2), folder_of(made))
    fidelity, summary = copy.deepcopy(results.fidelity), copy.deepcopy(results.summary)
    for scores in (fidelity["z"], fidelity["z_metric"], fidelity["h_psi"]):
        scores.update((name, None) for name in scores if name != "learning_curve")
    summary["contrast"] = dict.fromkeys(summary["contrast"])
    summary["rotation"]["share"] = None
    alike = replace(results, fidelity=fidelity, summary=summary)
    page = page_of(report_of(alike, other=alike))
    assert "undefined" in page


def test_one_dimension_and_particles_of_a_subset(workdir_of, tmp_path):
    """d' = 1, --ind in training, no volumes: whatever has no place is left out, nothing fails."""
    workdir = shutil.copytree(workdir_of("ind"), tmp_path / "ind")
    run(workdir, "--dim", "1", "--skip-vol")
    opened = open_workdir(workdir)
    shown = report_of(Results.load(opened, MetricFolder(opened.outdir, opened.epoch)))
    drawn = {picture.name for section in shown.sections for picture in section.pictures}
    assert drawn >= ALWAYS and "representatives" not in drawn
    assert set(shown.scatter.particles) == set(opened.particle_indices)


def test_unnumbered_files_get_a_report_and_no_overlay(vae_workdir, tmp_path):
    workdir = shutil.copytree(vae_workdir, tmp_path / "00_vae")
    for path in [*workdir.glob("z.*.pkl"), *workdir.glob("weights.*.pkl")]:
        path.unlink()
    (workdir / "analyze").mkdir()
    run(workdir, small=FEW)
    folder = MetricFolder(workdir / "metric_embed", None)
    assert folder.page.is_file() and folder.notebook.is_file()
    assert not folder.config.exists() and not list((workdir / "analyze").iterdir())
    assert report(ReportConfig(str(workdir))) == folder.page


def test_four_dimensions_of_unit_volumes(embedded, tmp_path):
    run(embedded, "--epoch", "2", "--dim", "4", "--scale", "unit", "-o", tmp_path / "out")
    results = Results.load(open_workdir(embedded, 2), MetricFolder(tmp_path / "out", 2))
    shown = report_of(results)
    drawn = {picture.name for section in shown.sections for picture in section.pictures}
    assert "contrast" not in drawn and "z_metric_umap" not in drawn  # it was skipped
    assert [f"PC{i} of z'" in shown.scatter.axes for i in range(1, 6)] == [True] * 4 + [False]
    assert "Norms were divided out" in " ".join(shown.sections[0].paragraphs)


def test_transport_is_told_in_angstroms(embedded, tmp_path):
    """The whole command by another distance, which is the public function's."""
    run(embedded, "--epoch", "2", "--distance", "transport", "-o", tmp_path / "out")
    results = Results.load(open_workdir(embedded, 2), MetricFolder(tmp_path / "out", 2))
    rows, contour = results.landmarks["landmark_rows"], results.parameters["contour"]
    with quiet():
        decoder = Decoder.from_workdir(results.workdir, device="cpu")
    expected = cm.transport_distances(
        decoder.decode(results.workdir.latents[rows[:6]]),
        contour=contour,
        apix_in_angstroms=results.parameters["apix_in_angstroms"],
    )
    np.testing.assert_allclose(
        results.landmarks["distances"][:6, :6], expected.distances.numpy(), rtol=0.02, atol=1e-3
    )
    shown = report_of(results)
    drawn = {picture.name: picture for section in shown.sections for picture in section.pictures}
    assert "contrast" not in drawn
    assert "how far mass has moved" in " ".join(shown.sections[0].paragraphs)
    labels = [axis.get_xlabel() for axis in drawn["shepard"].figure.axes]
    assert "measured Δ (Å)" in labels and "density units" not in "".join(labels)
    assert drawn["z_metric_kmeans"].figure.axes[0].get_xlabel() == "z' 1 (Å)"
    assert "radius of gyration" in shown.verdict[2]
    assert f"of density above {contour:.3g}" in shown.facts["distance"]
