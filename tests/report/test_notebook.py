"""The notebook opens with its pictures, runs again wherever it lies, and leaves nothing behind."""

import ast
import base64
import contextlib
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib import resources
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import CHOSEN
from nbclient import NotebookClient
from running import hashes, run

from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.report import notebook as notebook_module
from cryodrgn_metric.report.gallery import report_of
from cryodrgn_metric.report.notebook import filled_template, write_notebook
from cryodrgn_metric.report.results import Results
from cryodrgn_metric.workdir import open_workdir

TEMPLATE = resources.files("cryodrgn_metric.report") / "templates" / notebook_module.TEMPLATE
NAME = "cryoDRGN_metric_embed.ipynb"
KMEANS = 4  # of running.SMALL


def read(path):
    return nbformat.read(path, as_version=4)


def source_of(notebook, name):
    return next(cell.source for cell in notebook.cells if cell.id == name)


def outputs_of(notebook, kind=None):
    found = [(cell.id, o) for cell in notebook.cells for o in cell.get("outputs", ())]
    return [(name, o) for name, o in found if kind in (None, o.output_type)]


def figure_cells(notebook):
    """Cells that draw, by their names in the template."""
    return {cell.id for cell in notebook.cells if cell.id.endswith("-figure")}


def pictures_of(notebook):
    """All that is shown as PNG, by the name of the cell, in their order."""
    found = {}
    for name, output in outputs_of(notebook):
        if "image/png" in output.get("data", {}):
            found.setdefault(name, []).append(base64.b64decode(output.data["image/png"]))
    return found


def page_of(workdir, folder):
    """The figures and captions of report.html, by section."""
    report = report_of(Results.load(open_workdir(str(workdir), 2), folder))
    return {section.anchor: section for section in report.sections}


# -- the template


def settings_of(path, epoch, workdir):
    return source_of(filled_template(MetricFolder(path, epoch), workdir, 7), "settings")


def values_of(settings):
    values = {}
    exec(settings, values)
    return {name: values[name] for name in ("WORKDIR", "EPOCH", "KMEANS", "METRIC", "ANALYSIS")}


def test_in_its_usual_place_it_names_the_workdir_as_cryodrgns_templates_do(tmp_path):
    settings = settings_of(tmp_path / "metric_embed.3", 3, tmp_path)
    assert "WORKDIR = '..'" in settings and str(tmp_path) not in settings
    assert values_of(settings) == {
        "WORKDIR": "..",
        "EPOCH": 3,
        "KMEANS": 7,
        "METRIC": "../metric_embed.3",
        "ANALYSIS": "../metric_embed.3/analyze.3",
    }


def test_unnumbered_epochs_have_unnumbered_folders(tmp_path):
    values = values_of(settings_of(tmp_path / "metric_embed", None, tmp_path))
    assert values["EPOCH"] is None and values["METRIC"] == "../metric_embed"
    assert values["ANALYSIS"] == "../metric_embed/analyze"


def test_elsewhere_it_names_both_folders_in_full(tmp_path):
    values = values_of(settings_of(tmp_path / "it's here", 3, tmp_path / "workdir"))
    assert values["WORKDIR"] == str(tmp_path / "workdir")
    assert values["METRIC"] == str(tmp_path / "it's here")
    assert values["ANALYSIS"] == str(tmp_path / "it's here" / "analyze.3")


def test_the_template_is_valid_and_empty_and_explains_every_figure():
    template = nbformat.reads(TEMPLATE.read_text("utf-8"), as_version=4)
    nbformat.validate(template)
    assert not outputs_of(template)
    assert {cell.execution_count for cell in template.cells if cell.cell_type == "code"} == {None}
    assert max(Counter(cell.id for cell in template.cells).values()) == 1
    for before, cell in zip(template.cells, template.cells[1:], strict=False):
        if cell.id in figure_cells(template):
            assert before.cell_type == "markdown" and before.source.count(".") >= 2, cell.id
        if cell.cell_type == "code":
            ast.parse(cell.source)
            assert ("plt.show()" in cell.source) == (cell.id in figure_cells(template))


# -- what can't be executed


def test_an_execution_is_bounded_and_the_notebook_is_written_all_the_same(tmp_path, caplog):
    folder = MetricFolder(tmp_path / "metric_embed.3", 3)
    folder.path.mkdir()
    write_notebook(folder, tmp_path, 7, also_into=tmp_path, timeout_in_seconds=0.5)
    assert "took more than" in caplog.text and f"--inplace {folder.notebook}" in caplog.text
    assert source_of(read(folder.notebook), "settings") == settings_of(folder.path, 3, tmp_path)
    assert set(hashes(tmp_path)) == {NAME, f"metric_embed.3/{NAME}"}
    nbformat.validate(read(tmp_path / NAME))


def test_a_notebook_that_was_edited_stays(tmp_path, caplog):
    """Also one that merely has the name; ours, executed again by its reader, is replaced."""
    folder = MetricFolder(tmp_path / "metric_embed.3", 3)
    folder.path.mkdir()
    (tmp_path / NAME).write_text("mine")
    write_notebook(folder, tmp_path, 7, also_into=tmp_path, timeout_in_seconds=0.1)
    assert (tmp_path / NAME).read_text() == "mine"
    assert f"{tmp_path / NAME} has been edited" in caplog.text

    ours = read(folder.notebook)
    cell = next(cell for cell in ours.cells if cell.cell_type == "code")
    cell.execution_count = 5
    nbformat.write(ours, folder.notebook)
    write_notebook(folder, tmp_path, 8, timeout_in_seconds=0.1)
    assert "KMEANS = 8" in source_of(read(folder.notebook), "settings")

    ours.cells[0].source += "What I think of it."
    nbformat.write(ours, folder.notebook)
    write_notebook(folder, tmp_path, 9, timeout_in_seconds=0.1)
    assert read(folder.notebook) == ours


KILLED = """
import os, signal, sys, threading
from pathlib import Path
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.report.notebook import write_notebook
from cryodrgn_metric.termination import Terminated, terminable
folder = MetricFolder(Path(sys.argv[1]), 3)
try:
    with terminable():
        threading.Timer(float(sys.argv[2]), os.kill, (os.getpid(), signal.SIGTERM)).start()
        write_notebook(folder, folder.path.parent, 7)
except Terminated:
    sys.exit(75)
"""


def processes_with(text):
    """Numbers of the processes whose environment or command holds `text`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for name in ("environ", "cmdline"):
                if text.encode() in (folder / name).read_bytes():
                    found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for the kernel in /proc")
@pytest.mark.parametrize("seconds", [0.05, 0.5, 3.0])  # before, while, after the kernel starts
def test_sigterm_ends_the_kernel_too(tmp_path, seconds):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "metric_embed.3").mkdir()
    start = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "metric_embed.3"), str(seconds)],
        env=os.environ | {"TMPDIR": str(tmp_path / "scratch")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 75, ended.stderr
    assert "Traceback" not in ended.stderr
    assert time.monotonic() - start < 30
    assert not processes_with(str(tmp_path))
    assert not hashes(tmp_path)  # nor is a notebook half-written, or its scratch left


@pytest.mark.slow
def test_a_cell_that_fails_costs_its_own_picture_only(tmp_path, caplog):
    folder = MetricFolder(tmp_path / "metric_embed.3", 3)
    folder.path.mkdir()
    write_notebook(folder, tmp_path, 7)
    written = read(folder.notebook)
    errors = [name for name, _ in outputs_of(written, "error")]
    assert errors[0] == "load-results" and "'load-results' ended with" in caplog.text


# -- a run's


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, vae_workdir):
    """A workdir that has been analysed and embedded, and its notebooks; and what it was before."""
    workdir = tmp_path_factory.mktemp("notebook") / "workdir"
    shutil.copytree(vae_workdir, workdir)
    (workdir / "analyze.2").mkdir()
    (workdir / "analyze.2" / "umap.pkl").write_bytes(b"the user's own")
    run(workdir, "--epoch", 2)
    folder = MetricFolder.beside(workdir, 2)
    before = hashes(workdir)
    write_notebook(folder, workdir, KMEANS, also_into=workdir / "analyze.2", threads=1)
    return workdir, folder, before


def execute(path, changes=(), added=""):
    """Run a notebook as its reader does, top to bottom in its own folder."""
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
        for old, new in changes:
            cell.source = cell.source.replace(old, new)
    notebook.cells.append(nbformat.v4.new_code_cell(added))
    client = NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}})
    return client.execute(env=os.environ | {"PYTHONWARNINGS": "error::FutureWarning"})


@pytest.mark.slow
def test_it_opens_with_its_pictures(embedded):
    workdir, folder, _ = embedded
    written = read(folder.notebook)
    nbformat.validate(written)
    assert not outputs_of(written, "error")
    assert {o.name for _, o in outputs_of(written, "stream")} == {"stdout"}
    said = " ".join(o.text for _, o in outputs_of(written, "stream"))
    assert "200 particles, 3 dimensions of z, 2 of z'" in said
    assert "dataframe" in {n for n, o in outputs_of(written) if "text/html" in o.get("data", {})}


@pytest.mark.slow
def test_its_figures_and_words_are_those_of_the_page(embedded):
    """To the byte: one piece of code draws both, from the same saved numbers."""
    workdir, folder, _ = embedded
    written = read(folder.notebook)
    pictures, sections = pictures_of(written), page_of(workdir, folder)
    own = figure_cells(written)
    assert set(pictures) == own | {f"{name}-section" for name in sections}
    assert all(picture.startswith(b"\x89PNG") for name in own for picture in pictures[name])
    for name, section in sections.items():
        assert pictures[f"{name}-section"] == [picture.png for picture in section.pictures]
        said = [
            o.data["text/markdown"]
            for cell, o in outputs_of(written, "display_data")
            if cell == f"{name}-section" and "text/markdown" in o.data
        ]
        assert said[0] == "\n\n".join(section.paragraphs)
        assert [picture.caption for picture in section.pictures] == [
            words for words in said[1:] if not words.startswith("**")
        ]
        captions = [f"**{table.caption}**" for table in section.tables]
        assert captions == [words.split("\n")[0] for words in said[1:] if words.startswith("**")]


@pytest.mark.slow
def test_only_the_two_notebooks_are_new_and_they_are_one(embedded):
    workdir, folder, before = embedded
    names = {f"analyze.2/{NAME}", f"metric_embed.2/{NAME}"}
    after = hashes(workdir)
    assert {name: digest for name, digest in after.items() if name not in names} == before
    assert len({after[name] for name in names}) == 1


@pytest.mark.slow
def test_it_names_no_place_of_this_machine_and_stays_small(embedded):
    workdir, folder, _ = embedded
    text = folder.notebook.read_text("utf-8")
    for place in (
        workdir,
        Path(sys.prefix),
        Path.home(),
        Path(notebook_module.__file__).parents[2],
    ):
        assert str(place) + os.sep not in text
    assert folder.notebook.stat().st_size < 10e6


@pytest.mark.slow
def test_every_widget_it_shows_is_stored_with_its_parts(embedded):
    _, folder, _ = embedded
    written = read(folder.notebook)
    models = written.metadata.widgets[notebook_module.WIDGETS]["state"]
    views = [o.data for _, o in outputs_of(written) if notebook_module.VIEW in o.get("data", {})]
    assert len(views) == 3  # the menus, the scatter, the count
    assert {data[notebook_module.VIEW]["model_id"] for data in views} <= set(models)
    used = set(notebook_module._shown_models(written, models))
    assert used == set(models)
    figures = [m for m in models.values() if "plotly" in str(m["state"].get("_anywidget_id"))]
    assert len(figures) == 1
    assert {b["path"][0] for b in figures[0]["buffers"]} == {"_widget_data"}
    assert figures[0]["state"]["_widget_layout"]["xaxis"]["title"]["text"] == "UMAP1"
    assert figures[0]["state"]["_widget_layout"]["yaxis"]["title"]["text"] == "UMAP2"


@pytest.mark.slow
def test_the_same_results_make_the_same_file(embedded, tmp_path):
    workdir, folder, _ = embedded
    first = folder.notebook.read_bytes()
    write_notebook(folder, workdir, KMEANS, threads=1)
    assert folder.notebook.read_bytes() == first


SELECTED = """
from plotly.callbacks import BoxSelector, LassoSelector
left, right = df['UMAP1'].min() - 1, df['UMAP1'].median() # between two particles of 200
low, high = df['UMAP2'].min() - 1, df['UMAP2'].max() + 1
half = (df['UMAP1'] > left) & (df['UMAP1'] < right) & (df['UMAP2'] > low) & (df['UMAP2'] < high)
select_within(None, None, BoxSelector(xrange=(left, right), yrange=(low, high)))
assert list(ind_selected) == list(np.flatnonzero(half)), (ind_selected, half.sum())
corners = dict(xs=[left, right, right, left], ys=[low, low, high, high])
select_within(None, None, LassoSelector(**corners))
assert list(ind_selected) == list(np.flatnonzero(half))
assert selected.value == f'{half.sum()} particles selected' and half.sum() > 50 == len(drawn)
assert {'z_metric_0', 'z_metric_1', 'labels', 'hdbscan', 'particle', 'stretch'} <= set(df.columns)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["metric_embed.2", "analyze.2"])
def test_it_runs_again_where_it_lies_and_writes_nothing(embedded, place):
    """The second time with fewer points shown than there are; all are selected from."""
    workdir, folder, _ = embedded
    before = hashes(workdir)
    changes, added = (
        ([("MOST = 20_000", "MOST = 50")], SELECTED) if "analyze" in place else ((), "")
    )
    again = execute(workdir / place / NAME, changes, added)
    assert not outputs_of(again, "error")
    assert {o.name for _, o in outputs_of(again, "stream")} == {"stdout"}
    assert set(pictures_of(again)) >= figure_cells(again)
    assert hashes(workdir) == before


@pytest.mark.slow
def test_elsewhere_with_little_to_show(workdir_of, tmp_path):
    """-o, one dimension, no volumes, a subset of particles."""
    workdir = workdir_of("ind")
    run(workdir, "--epoch", 2, "-o", tmp_path / "out", "--dim", 1, "--skip-vol")
    folder = MetricFolder(tmp_path / "out", 2)
    write_notebook(folder, workdir, KMEANS)
    written = read(folder.notebook)
    assert not outputs_of(written, "error")
    assert {"fidelity-section", "landscape-section", "color-figure"} <= set(pictures_of(written))
    said = " ".join(o.text for _, o in outputs_of(written, "stream"))
    assert "--skip-vol" in said and str(tmp_path) not in said

    # what is saved counts as the original stack does, and nothing is overwritten
    save = [("SAVE_PATH = None", "SAVE_PATH = 'ind_keep.pkl'")]
    added = "import pathlib; pathlib.Path('selected.txt').write_text(str(list(ind_selected)))"
    execute(folder.notebook, save, added)
    rows = ast.literal_eval((folder.path / "selected.txt").read_text().replace("np.int64", ""))
    kept = pickle.loads((folder.path / "ind_keep.pkl").read_bytes())
    assert len(kept) and np.array_equal(kept, CHOSEN[rows])
    with pytest.raises(Exception, match="FileExistsError.*ind_keep.pkl is there already"):
        execute(folder.notebook, save)
