"""The whole command, beside cryoDRGN's two landscape commands with as many decoded volumes.

The references are measured once, as the command is: minutes each.
"""

import time
from pathlib import Path

import numpy as np
import umap
from conftest import run_cryodrgn
from running import run

from benchmarks.record import Figure
from benchmarks.workdirs import trained_workdir, with_particles
from cryodrgn_metric.artifacts import save_pickle
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.safe_files.yaml_files import load_yaml
from cryodrgn_metric.workdir import open_workdir

BOX = 64
LANDMARKS = 500
PARTICLES = 100_000

# What the workdir is trained with: images, epochs, width of the nets
TRAINING = {False: (2000, 8, 256), True: (60, 1, 32)}


def test_whole_command(benchmark, record, quick, request, tmp_path, monkeypatch):
    images, epochs, width = TRAINING[quick]
    name = f"benchmarks-vae-{images}-{epochs}-{width}"
    trained = trained_workdir(request.config.cache.mkdir(name), images, epochs, width)
    particles, landmarks = (2000, 60) if quick else (PARTICLES, LANDMARKS)
    ours = with_particles(trained, tmp_path / "ours", particles, epochs)
    theirs = with_particles(trained, tmp_path / "theirs", particles, epochs)
    landscape = Landscape(theirs, epochs, landmarks // 2, monkeypatch)
    landscape.measure()
    options = ["--landmarks", landmarks, "--skip-umap", "-d", BOX]
    benchmark.pedantic(run, (ours, *options), {"small": ()}, rounds=1)
    figures = _figures(benchmark.stats.stats.median, landscape) + _stages(ours, epochs)
    settings = {"D": BOX, "L": landmarks, "N": particles, "width of the nets": width}
    settings["lmax"] = load_yaml(MetricFolder.beside(ours, epochs).parameters)["lmax"]
    settings["volumes of the reference"] = 2 * (landmarks // 2)
    assert not record("command", "whole command", figures, settings)


class Landscape:
    """analyze_landscape and analyze_landscape_full, half of the volumes each.

    The first copies the UMAP of `cryodrgn analyze`, which is not counted: two axes of z stand in.
    The second makes one of its own, which can't be left out; so its seconds are kept apart.
    """

    def __init__(self, workdir: Path, epoch: int, volumes_each: int, monkeypatch) -> None:
        self.workdir, self.epoch, self.volumes_each = workdir, epoch, volumes_each
        self.seconds = self.umap_seconds = 0.0
        latents = open_workdir(workdir, epoch).latents
        (workdir / f"analyze.{epoch}").mkdir()
        save_pickle(
            workdir / f"analyze.{epoch}" / "umap.pkl", np.ascontiguousarray(latents[:, :2])
        )
        fit_transform = umap.UMAP.fit_transform

        def timed(*arguments, **options):
            start = time.perf_counter()
            found = fit_transform(*arguments, **options)
            self.umap_seconds += time.perf_counter() - start
            return found

        monkeypatch.setattr(umap.UMAP, "fit_transform", timed)

    def measure(self) -> None:
        start = time.perf_counter()
        for command in ("analyze_landscape", "analyze_landscape_full"):
            volumes = ["-N", self.volumes_each, "-d", BOX]
            run_cryodrgn(command, self.workdir, self.epoch, *volumes)
        self.seconds = time.perf_counter() - start


def _figures(seconds: float, landscape: Landscape) -> list[Figure]:
    without = landscape.seconds - landscape.umap_seconds
    return [
        Figure(
            "all of it",
            seconds / 60,
            "min",
            target=10,
            direction="at most",
            reference="analyze_landscape and analyze_landscape_full",
            reference_value=landscape.seconds / 60,
        ),
        Figure(
            "beside them without their UMAP",
            seconds / 60,
            "min",
            reference="the same, but for UMAP.fit_transform",
            reference_value=without / 60,
        ),
    ]


def _stages(workdir: Path, epoch: int) -> list[Figure]:
    """Where the time goes, as the command says itself in fidelity.json."""
    scores = load_yaml(MetricFolder.beside(workdir, epoch).fidelity)
    return [
        Figure(f"of which {stage}", seconds, "s")
        for stage, seconds in scores["timings_in_seconds"].items()
    ]
