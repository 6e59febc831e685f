"""The demo's workdir, as the package carries it."""

import shutil
from pathlib import Path

import cryodrgn_metric

DEMO = Path(cryodrgn_metric.__file__).parent / "demo" / "data" / "workdir"


def copied_demo(folder):
    """A copy of it in a folder: its volumes turn by an angle that its poses don't know."""
    return Path(shutil.copytree(DEMO, Path(folder) / "workdir"))
