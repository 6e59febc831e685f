"""The executed notebook, in the manner of cryoDRGN's own: template, settings, pictures."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import nbformat

from cryodrgn_metric.artifacts import save_text
from cryodrgn_metric.errors import brief
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.report.execution import execute

__all__ = ["filled_template", "write_notebook"]

logger = logging.getLogger(__name__)

TEMPLATE = "cryoDRGN_metric_embed_template.ipynb"
MARK = "cryodrgn_metric"  # in the metadata: by it, our own notebook is known again
WIDGETS = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"


def write_notebook(
    folder: MetricFolder,
    workdir: Path,
    kmeans: int,
    *,
    also_into: Path | None = None,
    threads: int | None = None,
    timeout_in_seconds: float = 600,
) -> None:
    """Write cryoDRGN_metric_embed.ipynb, executed, so that it opens with its pictures.

    It is made from the saved files of a run, by this Python. Where it cannot be executed, or a
    cell of it fails, it is written all the same, and a warning says how to execute it. A notebook
    that somebody has gone on from (its cells are not those that were written) stays as it is.

    Arguments:
        folder: Where the run's files are, and the notebook goes.
        workdir: The workdir that was embedded.
        kmeans: The number of clusters, K of analyze.N/kmeansK.
        also_into: Another folder beside metric_embed.N that gets the same file: the user's
            analyze.N. None where -o has moved the output.
        threads: How many the kernel may use; None: as many as its libraries like.
        timeout_in_seconds: After which an execution is given up.

    Raises:
        OutputError: The disk is full or read-only.

    Source:
        cryoDRGN's templates (cryodrgn/templates/*.ipynb), which ``analyze`` fills by replacing
        text.

    Example:
        >>> folder = MetricFolder(Path("00_vae/metric_embed.49"), epoch=49)
        >>> write_notebook(folder, Path("00_vae"), kmeans=20)  # doctest: +SKIP
    """
    places = [path / folder.notebook.name for path in (folder.path, also_into) if path]
    targets = [path for path in places if not _is_the_users(path)]
    for path in set(places) - set(targets):
        logger.warning("%s has been edited, and stays as it is: remove it for a new one.", path)
    if not targets:
        return
    notebook = filled_template(folder, workdir, kmeans)
    failure = execute(notebook, folder.path, threads, timeout_in_seconds) or _error_in(notebook)
    text = nbformat.writes(_settled(notebook)) + "\n"
    for path in targets:
        save_text(path, text)
    if failure:
        logger.warning(
            "%s was written, but not all of it is executed: %s. To execute it, type: jupyter "
            "nbconvert --to notebook --execute --inplace %s",
            folder.notebook,
            failure,
            folder.notebook,
        )


def filled_template(folder: MetricFolder, workdir: Path, kmeans: int) -> nbformat.NotebookNode:
    """The notebook before it is executed: the template with its settings.

    Arguments:
        folder: Where the run's files are.
        workdir: The workdir that was embedded. Where the folder is in its usual place within it,
            the notebook says `WORKDIR = '..'`, and works in any folder of the workdir.
        kmeans: The number of clusters.

    Returns:
        A notebook whose cells hold no output.

    Example:
        >>> folder = MetricFolder(Path("00_vae/metric_embed.49"), epoch=49)
        >>> notebook = filled_template(folder, Path("00_vae"), kmeans=20)
        >>> next(c for c in notebook.cells if c.id == "settings").source.splitlines()[1:4]
        ["WORKDIR = '..'", 'EPOCH = 49 # change me if necessary!', 'KMEANS = 20']
    """
    source = resources.files("cryodrgn_metric.report") / "templates" / TEMPLATE
    notebook: nbformat.NotebookNode = nbformat.reads(source.read_text("utf-8"), as_version=4)
    settings = {"EPOCH = None": f"EPOCH = {folder.epoch}", "KMEANS = None": f"KMEANS = {kmeans}"}
    usual = MetricFolder.beside(workdir, folder.epoch).path
    if os.path.realpath(folder.path) != os.path.realpath(usual):
        settings["WORKDIR = '..'"] = f"WORKDIR = {os.path.abspath(workdir)!r}"
        settings["METRIC = f'{WORKDIR}/metric_embed{suffix}'"] = (
            f"METRIC = {os.path.abspath(folder.path)!r}"
        )
    for cell in notebook.cells:
        for blank, value in settings.items():
            cell.source = cell.source.replace(blank, value)
    notebook.metadata[MARK] = {"cells": _digest(notebook)}
    return notebook


def _digest(notebook: nbformat.NotebookNode) -> str:
    """Of what was typed, not of what came out."""
    sources = "\0".join(cell.source for cell in notebook.cells)
    return hashlib.sha256(sources.encode()).hexdigest()


def _is_the_users(path: Path) -> bool:
    """Whether there is something that `write_notebook` did not write, or that was edited since."""
    if not os.path.lexists(path):
        return False
    try:
        notebook = nbformat.read(path, as_version=4)
        return bool(notebook.metadata[MARK]["cells"] != _digest(notebook))
    except Exception:  # whatever it is, it is not ours
        return True


def _error_in(notebook: nbformat.NotebookNode) -> str | None:
    """The first error among the outputs."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                return brief(f"cell {cell.id!r} ended with {output.ename}: {output.evalue}")
    return None


# -- what is stored of it


def _settled(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without widgets that no output shows, and without names drawn at random.

    Each plotly widget carries 5 MB of JavaScript; and the same results make the same file.
    """
    for data in _widget_outputs(notebook):  # what Jupyter shows of a notebook it doesn't trust yet
        data["text/plain"] = "(interactive: run this cell)"
    saved = notebook.metadata.get("widgets", {}).get(WIDGETS)
    shown: dict[str, Any] = {}
    if saved:
        shown = _shown_models(notebook, saved["state"])
        saved["state"] = shown
    text = json.dumps(notebook)
    drawn = [*shown, *re.findall(r'"uid": "([0-9a-f-]{36})"', text)]
    names = {name: f"{number:032x}" for number, name in enumerate(dict.fromkeys(drawn))}
    text = re.sub(
        r"[0-9a-f]{8}-?(?:[0-9a-f]{4}-?){3}[0-9a-f]{12}",
        lambda found: names.get(found[0], found[0]),
        text,
    )
    settled: nbformat.NotebookNode = nbformat.reads(text, as_version=4)
    return settled


def _widget_outputs(notebook: nbformat.NotebookNode) -> list[Any]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.data for output in outputs if VIEW in output.get("data", {})]


def _shown_models(notebook: nbformat.NotebookNode, state: dict[str, Any]) -> dict[str, Any]:
    """Models of widgets that an output shows, and those that they are made of, in that order."""
    waiting = [data[VIEW]["model_id"] for data in _widget_outputs(notebook)]
    shown: dict[str, Any] = {}
    for name in waiting:  # grows while it is read
        if name in state and name not in shown:
            shown[name] = _restorable(state[name])
            parts = {key: part for key, part in state[name]["state"].items() if key != "_esm"}
            waiting += re.findall("IPY_MODEL_([0-9a-f]{32})", json.dumps(parts))
    return shown


def _restorable(model: dict[str, Any]) -> dict[str, Any]:
    """Without buffers of messages that are past: for one, JupyterLab gives up on all widgets."""

    def has_place(path: list[str | int]) -> bool:
        holder = model["state"]
        for key in path[:-1]:
            try:
                holder = holder[key]
            except (KeyError, IndexError, TypeError):
                return False
        return isinstance(holder, dict | list)

    if "buffers" not in model:
        return model
    return model | {"buffers": [one for one in model["buffers"] if has_place(one["path"])]}
