"""Running a notebook: a kernel of this Python, bounded, that leaves nothing behind."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TimeOut
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from cryodrgn_metric.errors import brief

__all__ = ["execute"]

logger = logging.getLogger(__name__)

LONGEST_SOCKET_FOLDER = 80  # of the 104 bytes that a socket's name may have, on macOS
JUPYTER = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
FOLDERS = ("IPYTHONDIR", "MPLCONFIGDIR", *JUPYTER)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def execute(
    notebook: nbformat.NotebookNode, folder: Path, threads: int | None, timeout_in_seconds: float
) -> str | None:
    """Fill in the outputs, in place.

    Arguments:
        notebook: To be executed by a kernel of this very Python.
        folder: Where it is executed; nothing is written there.
        threads: How many the kernel may use; None: as many as its libraries like.
        timeout_in_seconds: After which it is given up.

    Returns:
        What kept it from that, in words, or None. An error in a cell is among its outputs.
    """
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
    with open(os.devnull, "wb") as nothing:
        try:
            await client.async_execute(
                cleanup_kc=True,
                env=_environment(scratch, threads),
                stdout=nothing,
                stderr=nothing,
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
