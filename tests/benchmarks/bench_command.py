"""The whole command, beside cryoDRGN's two landscape commands with as many decoded volumes.

Both start from nothing in every round, minutes each.
"""

import shutil
import time
from pathlib import Path
from statistics import median

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
ROUNDS = 5

# What the workdir is trained with: images, epochs, width of the nets
TRAINING = {False: (2000, 8, 256), True: (60, 1, 32)}


def test_whole_command(benchmark, record, quick, request, tmp_path, monkeypatch):
    images, epochs, width = TRAINING[quick]
    name = f"benchmarks-vae-{images}-{epochs}-{width}"
    trained = trained_workdir(request.config.cache.mkdir(name), images, epochs, width)
    particles, landmarks = (2000, 60) if quick else (PARTICLES, LANDMARKS)
    rounds = 1 if quick else ROUNDS
    ours = with_particles(trained, tmp_path / "ours", particles, epochs)
    theirs = with_particles(trained, tmp_path / "theirs", particles, epochs)
    landscape = Landscape(theirs, epochs, landmarks // 2, monkeypatch)
    options = ["--landmarks", landmarks, "--skip-umap", "-d", BOX]

    def from_nothing():
        landscape.measure()  # in turns
        shutil.rmtree(MetricFolder.beside(ours, epochs).path, ignore_errors=True)
        return (ours, *options), {"small": ()}

    benchmark.pedantic(run, setup=from_nothing, rounds=rounds)
    figures = _figures(benchmark.stats.stats, landscape) + _stages(ours, epochs)
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
        self.seconds: list[float] = []
        self.without_umap: list[float] = []
        self._umap_seconds = 0.0
        latents = open_workdir(workdir, epoch).latents
        (workdir / f"analyze.{epoch}").mkdir()
        save_pickle(
            workdir / f"analyze.{epoch}" / "umap.pkl", np.ascontiguousarray(latents[:, :2])
        )
        fit_transform = umap.UMAP.fit_transform

        def timed(*arguments, **options):
            start = time.perf_counter()
            found = fit_transform(*arguments, **options)
            self._umap_seconds += time.perf_counter() - start
            return found

        monkeypatch.setattr(umap.UMAP, "fit_transform", timed)

    def measure(self) -> None:
        shutil.rmtree(self.workdir / f"landscape.{self.epoch}", ignore_errors=True)
        self._umap_seconds = 0.0
        start = time.perf_counter()
        for command in ("analyze_landscape", "analyze_landscape_full"):
            volumes = ["-N", self.volumes_each, "-d", BOX]
            run_cryodrgn(command, self.workdir, self.epoch, *volumes)
        self.seconds.append(time.perf_counter() - start)
        self.without_umap.append(self.seconds[-1] - self._umap_seconds)


def _figures(ours, landscape: Landscape) -> list[Figure]:
    """Of pytest-benchmark's statistics of ours, and of theirs."""
    return [
        Figure(
            "all of it",
            ours.median / 60,
            "min",
            target=10,
            direction="at most",
            reference="analyze_landscape and analyze_landscape_full",
            reference_value=median(landscape.seconds) / 60,
            rounds=ours.rounds,
        ),
        Figure(
            "beside them without their UMAP",
            ours.median / 60,
            "min",
            reference="the same, but for UMAP.fit_transform",
            reference_value=median(landscape.without_umap) / 60,
            rounds=ours.rounds,
        ),
    ]


def _stages(workdir: Path, epoch: int) -> list[Figure]:
    """Where the time goes, as the last command says itself in fidelity.json."""
    scores = load_yaml(MetricFolder.beside(workdir, epoch).fidelity)
    return [
        Figure(f"of which {stage}", seconds, "s")
        for stage, seconds in scores["timings_in_seconds"].items()
    ]
