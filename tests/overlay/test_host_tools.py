"""Stock cryoDRGN opens the overlay: its filter, dashboard, notebooks, and smaller tools."""

import argparse
import base64
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import mrcfile
import nbclient
import nbformat
import numpy as np
import pytest
from conftest import CHOSEN, PARTICLES, TILT_PARTICLES, quiet, run_cryodrgn
from matplotlib.backend_bases import MouseButton, MouseEvent
from overlaid import CLUSTERS, Overlaid
from running import hashes

from cryodrgn_metric.runlog import logging_kept

with logging_kept():  # to import cryoDRGN silences the loggers there are
    import cryodrgn
    from cryodrgn import utils
    from cryodrgn.commands import filter as cryodrgn_filter
    from cryodrgn.commands_utils import plot_classes
    from cryodrgn.dashboard.app import create_app
    from cryodrgn.dashboard.data import load_experiment, particle_image_array
GUESTS = {"analyze.2/metric_z.pkl", "analyze.2/metric_labels.pkl"}
# by the kind of workdir: whether cryoDRGN has analysed it, and --dim
SETTINGS = {
    "ind": (True, 3),
    "tilt": (True, 2),
    "zdim_1": (True, 1),
    "zdim_2": (False, 2),
    "dec": (False, 4),
    "abinit": (False, 3),
}


def each(*names):
    """Parametrize by these of SETTINGS; every further one costs a training and an embedding."""
    quick = ("ind", "tilt")
    slow = pytest.mark.slow
    values = [n if n in quick else pytest.param(n, marks=slow) for n in names or SETTINGS]
    return pytest.mark.parametrize("name", values)


@pytest.fixture(scope="module")
def overlaid(tmp_path_factory, workdir_of):
    """overlaid(name): one of SETTINGS with its overlay, made once; written to by no test."""
    made = {}

    def once(name):
        if name not in made:
            analysed, dimension = SETTINGS[name]
            parent = tmp_path_factory.mktemp(name)
            made[name] = Overlaid(workdir_of(name), parent, dimension, analysed)
        return made[name]

    return once


@pytest.fixture
def copied(overlaid, tmp_path):
    """copied(name): the overlay in a copy of the whole workdir, for tools that write there."""

    def copy(name):
        shutil.copytree(overlaid(name).workdir, tmp_path / "00_vae", symlinks=True)
        return tmp_path / "00_vae" / "metric_embed.2"

    return copy


# -- the user's workdir


@each()
def test_only_the_promised_names_appear(name, overlaid):
    made = overlaid(name)
    after = hashes(made.workdir)
    assert {path: after.get(path) for path in made.before} == made.before
    new = {path for path in after if not path.startswith("metric_embed.2/")} - set(made.before)
    assert new == (GUESTS if SETTINGS[name][0] else set())


def test_the_users_default_clusters_are_still_the_users(overlaid, tmp_path, monkeypatch):
    """host.md 3.3 b: a further kmeans folder in analyze.N would take the place of -k -1."""
    made = overlaid("ind")
    theirs = utils.load_pkl(made.workdir / "analyze.2" / "kmeans3" / "labels.pkl")
    figure = get(client_of(made.workdir), "/api/scatter", x="z0", y="labels")
    np.testing.assert_array_equal(coordinates(figure)[:, 1], theirs)
    table, _ = filtered(monkeypatch, made.workdir, tmp_path)
    np.testing.assert_array_equal(table.labels, theirs)
    umap = utils.load_pkl(made.workdir / "analyze.2" / "umap.pkl")
    np.testing.assert_array_equal(table[["UMAP1", "UMAP2"]], umap)


# -- cryodrgn filter


def filtered(monkeypatch, workdir, folder, *options):
    """`cryodrgn filter`, with a lasso around the left half of what it plots.

    Returns the table that it plots, and the particles that it saved in `folder`.
    """
    tables, done = [], []

    class Watched(cryodrgn_filter.SelectFromScatter):
        def __init__(self, data_table, pre_indices=None):
            tables.append(data_table)
            data_table.attrs["chosen before"] = pre_indices
            super().__init__(data_table, pre_indices)

    def draw_lasso_once():  # instead of a window, in which the user would
        if not done:
            done.append(True)
            lasso_left_half(tables[0])

    monkeypatch.setattr(cryodrgn_filter, "SelectFromScatter", Watched)
    monkeypatch.setattr(plt, "show", draw_lasso_once)
    parser = argparse.ArgumentParser()
    cryodrgn_filter.add_args(parser)
    with quiet():
        arguments = [str(workdir), "--force", "--sel-dir", str(folder), *options]
        cryodrgn_filter.main(parser.parse_args(arguments))
    plt.close("all")
    return tables[0], utils.load_pkl(folder / "indices.pkl")


def lasso_left_half(table):
    """Press, drag and release the mouse, as matplotlib hears of it."""
    figure = plt.gcf()
    figure.canvas.draw()
    axes = next(a for a in figure.axes if a.get_xlabel() == "UMAP1")
    left, bottom = axes.transAxes.transform((0.005, 0.005))
    _, top = axes.transAxes.transform((0.995, 0.995))
    middle, _ = axes.transData.transform((halfway(table), 0))
    corners = [(left, bottom), (middle, bottom), (middle, top), (left, top), (left, bottom)]
    names = ["button_press_event", *["motion_notify_event"] * 3, "button_release_event"]
    for name, (x, y) in zip(names, corners, strict=True):
        MouseEvent(name, figure.canvas, x, y, button=MouseButton.LEFT)._process()


def halfway(table):
    """Between two particles, where the gap is widest near the middle: no pixel decides."""
    values = np.sort(np.unique(table.UMAP1))
    inner = values[len(values) // 4 : 3 * len(values) // 4]
    widest = np.argmax(np.diff(inner))
    return inner[widest : widest + 2].mean()


NUMBERS = {"ind": CHOSEN, "tilt": np.arange(TILT_PARTICLES)}


@each()
def test_filter_selects_by_z_metric(name, overlaid, tmp_path, monkeypatch):
    made = overlaid(name)
    table, selected = filtered(monkeypatch, made.path, tmp_path)
    np.testing.assert_array_equal(table[["UMAP1", "UMAP2"]], made.view)
    np.testing.assert_array_equal(table.labels, made.labels)
    left = made.view[:, 0] < halfway(table)
    assert 0 < left.sum() < len(left)
    numbers = NUMBERS.get(name, np.arange(PARTICLES))
    np.testing.assert_array_equal(np.sort(selected), np.sort(numbers[left]))


def test_filter_with_epoch_and_clusters(overlaid, tmp_path, monkeypatch):
    made = overlaid("ind")
    options = ["--epoch", "2", "-k", str(CLUSTERS)]
    table, _ = filtered(monkeypatch, made.path, tmp_path, *options)
    np.testing.assert_array_equal(table.labels, made.labels)


def test_filter_starts_from_the_particles_of_a_cluster(overlaid, tmp_path, monkeypatch):
    """Its --plot-inds counts rows of z: particles, unless --ind chose some for the training."""
    made = overlaid("tilt")
    members = made.folder.cluster_members(CLUSTERS, 1)
    table, _ = filtered(monkeypatch, made.path, tmp_path, "--plot-inds", str(members))
    chosen = np.flatnonzero(made.labels == 1)
    np.testing.assert_array_equal(table.attrs["chosen before"], chosen)


# -- cryodrgn_utils plot_classes, cryodrgn graph_traversal


@each("ind", "tilt", "dec", "abinit")
def test_plot_classes(name, copied):
    """Of two latents or one it plots nothing, in any workdir."""
    overlay = copied(name)
    labels = overlay / "analyze.2" / f"kmeans{CLUSTERS}" / "labels.pkl"
    before = set(hashes(overlay.parent))
    parser = argparse.ArgumentParser()
    plot_classes.add_args(parser)
    with quiet():
        plot_classes.main(parser.parse_args([str(overlay), "2", "--labels", str(labels)]))
    new = set(hashes(overlay.parent)) - before
    assert new and all(path.startswith("metric_embed.2/analyze.2/") for path in new)
    assert {Path(path).suffix for path in new} == {".png"}


@each("ind", "zdim_1")
def test_graph_traversal(name, overlaid, tmp_path):
    """A path along neighbours in z', between two particles far apart, but no outliers."""
    made = overlaid(name)
    order = np.argsort(made.z_metric[:, 0])
    ends = order[[len(order) // 5, -len(order) // 5]].tolist()
    out = ["--outind", tmp_path / "ind.txt", "-o", tmp_path / "path.txt"]
    neighbors = ["--max-neighbors", 60, "--avg-neighbors", 50]  # so few particles have gaps
    run_cryodrgn("graph_traversal", made.folder.z_metric, "--anchors", *ends, *neighbors, *out)
    rows = np.loadtxt(tmp_path / "ind.txt", dtype=int)
    assert [rows[0], rows[-1]] == ends
    path = np.loadtxt(tmp_path / "path.txt", ndmin=2).reshape(len(rows), -1)
    np.testing.assert_allclose(path, made.z_metric[rows], rtol=1e-6)


# -- cryodrgn dashboard, what it answers; test_dashboard_browser.py looks at it


def client_of(workdir):
    with quiet():
        return create_app(str(workdir)).test_client()


def get(client, address, **query):
    with quiet():
        reply = client.get(address, query_string=query)
    assert reply.status_code == 200, reply.get_data(as_text=True)
    return reply.get_json(force=True)


def coordinates(figure):
    """(N, 2 or 3) of the first trace of a plotly figure."""
    trace = figure["data"][0]
    return np.column_stack([array_of(trace[axis]) for axis in "xyz" if axis in trace])


def array_of(values):
    """Numbers as plotly sends them: a list, or base64 of their bytes."""
    if isinstance(values, list):
        return np.array(values)
    return np.frombuffer(base64.b64decode(values["bdata"]), np.dtype(values["dtype"]))


@each()
def test_the_dashboard_plots_z_metric_as_umap(name, overlaid):
    made = overlaid(name)
    client = client_of(made.path)
    shown = get(client, "/api/scatter", x="UMAP1", y="UMAP2", color="labels")
    np.testing.assert_allclose(coordinates(shown), made.view, rtol=1e-6)
    labels = get(client, "/api/scatter", x="labels", y="z0")
    np.testing.assert_array_equal(coordinates(labels)[:, 0], made.labels)


@each()
def test_the_3d_page_plots_z_metric(name, overlaid):
    made = overlaid(name)
    dimension = SETTINGS[name][1]
    address = "/api/scatter3d_z_landscape_full"
    shown = coordinates(get(client_of(made.path), address, color="landscape_vol_cluster"))
    assert shown.shape == (len(made.labels), 3)
    seen = min(dimension, 3)
    np.testing.assert_allclose(shown[:, :seen], made.z_metric[:, :seen], rtol=1e-6)
    assert not shown[:, seen:].any()


@pytest.mark.parametrize("page", ["/", "/explorer", "/landscape-full-3d", "/pairplot"])
@each()
def test_pages_of_the_dashboard_open(name, page, overlaid):
    with quiet():
        reply = client_of(overlaid(name).path).get(page)
    assert reply.status_code == 200
    if page == "/explorer":
        assert ("Tilt-series data" in reply.get_data(as_text=True)) == (name == "tilt")
    if page == "/landscape-full-3d":
        assert "landscape_vol_PC3" in reply.get_data(as_text=True)


@each("ind", "zdim_1", "zdim_2", "dec", "abinit")
def test_the_dashboard_shows_the_users_images(name, overlaid, stack):
    """Its config.yaml leads to the stack, and rows of z to the right images in it."""
    images = mrcfile.read(stack.particles)
    with quiet():
        experiment = load_experiment(str(overlaid(name).path))
        for row in (0, 5, 99):
            image = particle_image_array(experiment, row)
            np.testing.assert_array_equal(image, images[NUMBERS.get(name, range(PARTICLES))[row]])


@each("ind", "tilt")
def test_guests_load_as_covariates(name, overlaid):
    """In the dashboard of the user's own workdir, whose file browser opens in analyze.2."""
    made = overlaid(name)
    client = client_of(made.workdir)
    listed = get(client, "/api/list_server_files", kinds="pkl")
    assert listed["dir"] == str(made.workdir / "analyze.2")
    names = {entry["name"] for entry in listed["entries"]}
    assert {"metric_z.pkl", "metric_labels.pkl"} <= names
    columns = []
    for guest in ("metric_z", "metric_labels"):
        path = made.workdir / "analyze.2" / f"{guest}.pkl"
        with quiet():
            reply = client.post("/api/load_covariate_pkl", json={"path": str(path)})
        assert reply.status_code == 200, reply.get_data(as_text=True)
        columns += reply.get_json()["columns"]
    dimension = SETTINGS[name][1]
    assert columns == [*(f"metric_z_{i}" for i in range(dimension)), "metric_labels"]
    shown = coordinates(get(client, "/api/scatter", x="metric_z_0", y="metric_labels"))
    expected = np.column_stack([made.z_metric[:, 0], made.labels])
    np.testing.assert_allclose(shown, expected, rtol=1e-6)


# -- the notebooks of cryodrgn analyze


def placed(overlay, name):
    """A notebook of cryoDRGN's own, where and as `cryodrgn analyze` would write it."""
    template = Path(cryodrgn._ROOT) / "templates" / f"{name}_template.ipynb"
    notebook = nbformat.read(template, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("EPOCH = None", "EPOCH = 2")
        cell.source = cell.source.replace("KMEANS = None", f"KMEANS = {CLUSTERS}")
    path = overlay / "analyze.2" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ind", "cryoDRGN_figures"),
        ("ind", "cryoDRGN_filtering"),
        ("ind", "cryoDRGN_viz"),
        ("tilt", "cryoDRGN_figures"),
        ("tilt", "cryoDRGN_ET_viz"),
        ("dec", "cryoDRGN_viz"),
    ],
)
def test_notebooks_of_cryodrgn_run(kind, name, copied):
    overlay = copied(kind)
    path = placed(overlay, name)
    users = {p: d for p, d in hashes(overlay.parent).items() if not p.startswith("metric_embed")}
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    after = hashes(overlay.parent)
    assert {p: d for p, d in after.items() if not p.startswith("metric_embed")} == users
