"""A run with --map flow: straight lines on disk, in the report, and gone with the flow."""

import json
import shutil
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
from conftest import quiet
from running import SMALL, options_of, run, unchanged

from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.options import embed_config
from cryodrgn_metric.pipeline import embed
from cryodrgn_metric.reporting import ReportConfig, report
from cryodrgn_metric.safe_files.pickles import load_pickle
from cryodrgn_metric.workdir import open_workdir

NAMES = ("straight1", "straight2", "straight3")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, vae_workdir):
    copy = tmp_path_factory.mktemp("straight") / "workdir"
    shutil.copytree(vae_workdir, copy)
    return copy


def embedded(workdir, out, *options):
    """A run whose map is trained for a moment only."""
    typed = options_of(workdir, *SMALL, "-d", 16, "--landmarks", 40, "-o", out, *options)
    config = embed_config(typed)
    quick = replace(config.metric_map, steps=100, width=32, depth=2)
    with unchanged(workdir), quiet():
        return embed(replace(config, metric_map=quick))


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    return embedded(workdir, tmp_path_factory.mktemp("straight") / "out", "--map", "flow")


def table_of(folder, name):
    with np.load(folder / "analyze.2" / name / "path.npz") as saved:
        return dict(saved)


def test_dimension_is_that_of_z_and_z_comes_back(folder, workdir):
    latents = open_workdir(str(workdir), 2).latents
    z_metric = load_pickle(folder / "z_metric.pkl")
    assert z_metric.shape == latents.shape and z_metric.dtype == np.float32
    found = MetricMap.load(folder / "models", "cpu")
    assert np.array_equal(found.transform(latents).astype(np.float32), z_metric)
    spread = latents.std()
    assert np.abs(found.inverse(found.transform(latents)) - latents).max() < 1e-4 * spread
    numbers = json.loads((folder / "report.json").read_text())["f_xi"]["flow"]
    assert numbers["round_trip"] < 1e-4 and numbers["condition_median"] >= 1


def test_lines_join_the_ends_of_paths_at_equal_steps(folder, workdir):
    latents = open_workdir(str(workdir), 2).latents
    z_metric = load_pickle(folder / "z_metric.pkl").astype(float)
    for number, name in enumerate(NAMES, start=1):
        line, path = table_of(folder, name), table_of(folder, f"pc{number}")
        ends = z_metric[path["rows"][[0, -1]]]
        points, every = line["z_metric"].astype(float), np.linspace(*ends, 10)
        kept = [np.abs(every - point).max(axis=1).argmin() for point in points]
        np.testing.assert_allclose(points, every[kept], atol=1e-5)
        assert kept[0] == 0 and kept[-1] == 9 and len(set(kept)) == len(kept)
        apart = np.linalg.norm(points[:, None] - z_metric, axis=-1)
        np.testing.assert_array_equal(line["rows"], apart.argmin(axis=1))
        np.testing.assert_allclose(line["distance_to_particles"], apart.min(axis=1), atol=1e-5)
        z = np.loadtxt(folder / "analyze.2" / name / "z_values.txt")
        # no decoder was asked for more than half a range outside
        assert (z >= latents.min(0) - np.ptp(latents, 0) / 2 - 1e-4).all()
        # of the line, not of particles; the ends are particles, to the float32 digits of z'
        np.testing.assert_allclose(z[[0, -1]], latents[path["rows"][[0, -1]]], atol=1e-2)
        again = MetricMap.load(folder / "models", "cpu").transform(z)
        np.testing.assert_allclose(again, points, atol=1e-3 * np.abs(points).max())


def test_volumes_are_those_of_the_line_turned(folder, workdir):
    """Same norm and same distances as V(z) of z_values.txt, decoded on their own."""
    place = folder / "analyze.2" / "straight1"
    with quiet():
        decoder = Decoder.from_workdir(open_workdir(str(workdir), 2), "cpu")
        z = np.loadtxt(place / "z_values.txt").astype(np.float32)
        plain = decoder.decode(z, 16).numpy()
    written = np.stack([mrcfile.read(path) for path in sorted(place.glob("vol_*.mrc"))])
    assert written.shape == plain.shape
    norms = [np.linalg.norm(one.reshape(len(one), -1), axis=1) for one in (written, plain)]
    # what turning a box leaves in its corners
    np.testing.assert_allclose(*norms, rtol=0.05)


def test_lines_go_with_the_flow(folder, workdir, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folder, out, symlinks=True)
    embedded(workdir, out)
    assert not list((out / "analyze.2").glob("straight*"))
    assert load_pickle(out / "z_metric.pkl").shape[1] == 2
    assert "flow" not in json.loads((out / "report.json").read_text())["f_xi"]


def test_what_no_flow_can_do_is_refused_at_once(workdir, workdir_of, tmp_path, capsys):
    for place, options in ((workdir, ("--dim", 4)), (workdir_of("zdim_1"), ())):
        with pytest.raises(SystemExit) as stop:
            run(place, "--map", "flow", *options, "-o", tmp_path / "out")
        assert stop.value.code == 2 and not (tmp_path / "out").exists()
        assert "--map mlp" in capsys.readouterr().err


@pytest.mark.slow
def test_the_report_says_what_the_flow_did(folder, workdir, tmp_path):
    """Page, figures and executed notebook of a flow."""
    out = tmp_path / "out"
    shutil.copytree(folder, out, symlinks=True)
    with quiet():
        report(ReportConfig(str(workdir), 2, str(out)))
    page = (out / "report.html").read_text()
    assert "straight line between the ends of pc1" in page
    assert "condition number of the Jacobian" in page and "those of z, moved by the flow" in page
    notebook = (out / "cryoDRGN_metric_embed.ipynb").read_text()
    assert "straight line between the ends of pc1" in notebook
    assert (out / "figures" / "straight1_steps.png").is_file()
