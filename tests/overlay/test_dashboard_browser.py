"""A running `cryodrgn dashboard`, as a person sees it in Chromium."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

CRYODRGN = shutil.which("cryodrgn", path=str(Path(sys.executable).parent))


@contextlib.contextmanager
def dashboard(workdir):
    """`cryodrgn dashboard WORKDIR` on a free port; the address that it answers at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [CRYODRGN, "dashboard", str(workdir), "--no-browser", "--port", str(port)]
    with open(workdir.parent / "dashboard.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_it_answers(address, server)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def wait_until_it_answers(address, server, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, "the dashboard has ended"
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=5).read()
            return
        time.sleep(0.5)
    raise TimeoutError(f"nothing answers at {address}")
