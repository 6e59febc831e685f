"""Workdirs that cryoDRGN has analysed and the real command has embedded, for cryoDRGN's tools."""

import shutil
from pathlib import Path

from conftest import run_cryodrgn
from running import hashes, run

from cryodrgn_metric import open_workdir
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.runlog import logging_kept

with logging_kept():  # to import cryoDRGN silences the loggers there are
    from cryodrgn import utils

CLUSTERS = 4  # of z', as running.SMALL has it; of z, by cryoDRGN's analysis, 3
ANALYSIS = ["--pc", 2, "--n-per-pc", 2, "--ksample", 3]


class Overlaid:
    """A copy of a workdir with an overlay, and what was in it before.

    Arguments:
        workdir: the copy.
        folder: its MetricFolder.
        before: the hashes of its files when metric_embed had not yet run.
    """

    def __init__(self, source, parent, dimension=3, analysed=True, options=()):
        self.workdir = Path(shutil.copytree(source, parent / "00_vae"))
        if analysed:
            # it takes a umap.pkl that is there: what is in it is of no matter, and ten seconds are
            (self.workdir / "analyze.2").mkdir()
            latents = open_workdir(self.workdir).latents
            utils.save_pkl(latents[:, :2], self.workdir / "analyze.2" / "umap.pkl")
            run_cryodrgn("analyze", self.workdir, 2, *ANALYSIS)
        self.before = hashes(self.workdir)
        run(self.workdir, "--dim", dimension, *options)
        self.folder = MetricFolder(self.workdir / "metric_embed.2", 2)

    @property
    def path(self):
        """metric_embed.2, itself a workdir."""
        return self.folder.path

    @property
    def z_metric(self):
        return utils.load_pkl(self.folder.z_metric)

    @property
    def labels(self):
        return utils.load_pkl(self.folder.cluster_labels(CLUSTERS))

    @property
    def view(self):
        return utils.load_pkl(self.folder.umap)
