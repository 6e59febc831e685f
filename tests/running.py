"""Runs the real command in this process, and watches that nothing of the user's changes."""

import argparse
import contextlib
import hashlib
import os
from pathlib import Path

from conftest import quiet

from cryodrgn_metric import command

FEW = ("--landmarks", "60", "--ksample", "4", "--skip-umap", "--threads", "1", "--ensemble", "1")
SMALL = (*FEW, "--skip-report")
GUESTS = ("cryoDRGN_metric_embed.ipynb", "metric_labels.pkl", "metric_z.pkl")


def hashes(folder):
    """Every file below a folder by its relative name, with the SHA-256 of what it holds."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def unchanged(folder):
    """Assert that a block changes nothing in a workdir but what is promised.

    That is our own metric_embed folders, and three names in an analyze.N that was there.
    """
    guests = {
        Path(folder, there.name, name)
        for there in Path(folder).glob("analyze*")
        for name in GUESTS
    }

    def users():
        return {
            name: (digest, os.stat(Path(folder, name)).st_mtime_ns)
            for name, digest in hashes(folder).items()
            if not name.startswith("metric_embed") and Path(folder, name) not in guests
        }

    before = users()
    try:
        yield
    finally:
        assert users() == before


def options_of(workdir, *options):
    """The parsed command line of `cryodrgn metric_embed WORKDIR OPTIONS`."""
    parser = argparse.ArgumentParser()
    command.add_args(parser)
    return parser.parse_args([str(workdir), *map(str, options)])


def run(workdir, *options, small=SMALL):
    """`cryodrgn metric_embed WORKDIR OPTIONS`; the workdir must come out as it went in."""
    watched = unchanged(workdir) if os.path.isdir(workdir) else contextlib.nullcontext()
    with watched, quiet():
        command.main(options_of(workdir, *small, *options))
