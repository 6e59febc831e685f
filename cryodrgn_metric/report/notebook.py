"""The executed notebook, in the manner of cryoDRGN's own: template, settings, pictures."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TimeOut
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from cryodrgn_metric.artifacts import save_text
from cryodrgn_metric.errors import brief
from cryodrgn_metric.metric_folder import MetricFolder

__all__ = ["filled_template", "write_notebook"]

logger = logging.getLogger(__name__)

TEMPLATE = "cryoDRGN_metric_embed_template.ipynb"
WIDGETS = "application/vnd.jupyter.widget-state+json"
VIEW = "application/vnd.jupyter.widget-view+json"
LONGEST_SOCKET_FOLDER = 80  # of the 104 bytes that a socket's name may have, on macOS
JUPYTER = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
FOLDERS = ("IPYTHONDIR", "MPLCONFIGDIR", *JUPYTER)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


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
    cell of it fails, it is written all the same, and a warning says how to execute it.

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
    notebook = filled_template(folder, workdir, kmeans)
    failure = _execute(notebook, folder.path, threads, timeout_in_seconds) or _error_in(notebook)
    text = nbformat.writes(_settled(notebook)) + "\n"
    for path in filter(None, (folder.path, also_into)):
        save_text(path / folder.notebook.name, text)
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
    return notebook


# -- execution


def _execute(
    notebook: nbformat.NotebookNode, folder: Path, threads: int | None, timeout_in_seconds: float
) -> str | None:
    """Fill in the outputs, in place; what kept it from that, or None."""
    if importlib.util.find_spec("ipykernel") is None:
        return "ipykernel is not installed (pip install ipykernel)"
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="metric_embed_") as scratch:
        work = _execute_in_kernel(notebook, folder, Path(scratch), threads)
        try:
            _wait_for(work, timeout_in_seconds)
        except TimeOut:
            return f"it took more than {timeout_in_seconds:g} s"
        except Exception as error:  # of nbclient, zmq, traitlets: no reason to lose a run of hours
            return brief(f"{type(error).__name__}: {error}")
    logger.info("Notebook: %.1f s", time.perf_counter() - start)
    return None


def _wait_for(work: Coroutine[Any, Any, None], timeout_in_seconds: float) -> None:
    """Run it in a thread, where nbclient can't put its own handlers of SIGTERM and SIGINT.

    What interrupts the waiting (the timeout, Ctrl-C, `Terminated`) cancels it, which ends its
    kernel.
    """
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="notebook") as pool:
            future = pool.submit(loop.run_until_complete, task)
            try:
                future.result(timeout_in_seconds)
            except BaseException:
                loop.call_soon_threadsafe(task.cancel)
                raise
    finally:
        loop.close()


async def _execute_in_kernel(
    notebook: nbformat.NotebookNode, folder: Path, scratch: Path, threads: int | None
) -> None:
    manager = AsyncKernelManager(
        kernel_spec_manager=_ThisPython(),
        connection_file=str(scratch / "kernel.json"),
        transport=_transport(scratch),
    )
    client = NotebookClient(
        notebook,
        km=manager,
        resources={"metadata": {"path": str(folder)}},
        timeout=None,
        startup_timeout=120,
        allow_errors=True,  # what one cell lacks must not cost all that follow
        record_timing=False,
        shutdown_kernel="immediate",
    )
    try:
        await client.async_execute(
            cleanup_kc=True,
            env=_environment(scratch, threads),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        if manager.has_kernel:
            await manager.shutdown_kernel(now=True)


def _transport(scratch: Path) -> str:
    """Sockets in the file system, which others on the machine can't listen to, where they fit."""
    return "ipc" if os.name == "posix" and len(str(scratch)) < LONGEST_SOCKET_FOLDER else "tcp"


class _ThisPython(KernelSpecManager):
    """The interpreter that runs this, whatever kernels the user has installed under its name."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3 (ipykernel)", language="python")


def _environment(scratch: Path, threads: int | None) -> dict[str, str]:
    """This process's, but for threads, and for folders where a kernel would leave things."""
    folders = {name: str(scratch / name.lower()) for name in FOLDERS}
    settings = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # a user may have set Agg
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    os.mkdir(folders["MPLCONFIGDIR"])
    for fonts in Path(matplotlib.get_cachedir()).glob("fontlist-*.json"):  # seconds to make anew
        shutil.copy(fonts, folders["MPLCONFIGDIR"])
    limits = {} if threads is None else dict.fromkeys(THREADS, str(threads))
    return os.environ | folders | settings | limits


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
