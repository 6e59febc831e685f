"""Landmarks of a workdir, measured once for all studies that ask for them."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.workdirs import Size, default_workdir
from shipped import DEMO

from cryodrgn_metric.config import EmbedConfig, LandmarkConfig, VolumeConfig
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.measurement import measure_distances, pick_landmarks
from cryodrgn_metric.run import prepare
from cryodrgn_metric.threads import limited_to

SEED = 0
BOX = 32  # voxels, at which volumes are compared
LANDMARKS = 400
STAGES = ("volumes", "distances")
SCRATCH = Path(tempfile.gettempdir()) / "cryodrgn_metric_studies"


@dataclass(frozen=True)
class Case:
    """One workdir, its latents, and Delta among its landmarks.

    Arguments:
        name: As tables call it.
        z: Of all particles. (N, d)
        rows: Of z, the landmarks. (L,)
        train, test: Numbers of landmarks.
        validation: Those that stop h_psi.
        distances: Delta. (L, L)
        seconds: That decoding and comparing took, by stage.
    """

    name: str
    z: np.ndarray
    rows: np.ndarray
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    distances: np.ndarray
    seconds: dict[str, float]

    def among(self, chosen: np.ndarray) -> np.ndarray:
        """Delta among some landmarks, float64."""
        return self.distances[np.ix_(chosen, chosen)].astype(np.float64)

    def distance_net(self) -> DistanceNet:
        """h_psi, trained as the command trains it."""
        net = DistanceNet(progress=False, seed=SEED, device="cpu")
        return net.fit(
            self.z[self.rows], self.distances, train=self.train, validation=self.validation
        )


def cases_of(argv: Sequence[str] | None, description: str | None) -> list[Case]:
    """The demo, a train_dec decoder of a hinged molecule, and every --workdir NAME=FOLDER."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--workdir", metavar="NAME=FOLDER", action="append", default=[])
    named = dict(text.split("=", 1) for text in parser.parse_args(argv).workdir)
    SCRATCH.mkdir(exist_ok=True)
    others = {"hinges": _hinges()} | {n: Path(f) for n, f in named.items()}
    return [demo_case(SCRATCH), *(_measured(n, workdir, SCRATCH) for n, workdir in others.items())]


def demo_case(scratch: Path) -> Case:
    """The shipped workdir: an arm that swings, a part that comes off; box 32, 6,000 particles.

    Arguments:
        scratch: Where it is copied to, and measured unless it is already.
    """
    folder = scratch / "demo_workdir"
    if not folder.exists():
        shutil.copytree(DEMO, folder)
    return _measured("demo", folder, scratch)


def _hinges() -> Path:
    """A decoder that was fitted to a molecule with two hinges and a ligand; 500 particles."""
    size = Size(box=BOX, zdim=4, layers=2, width=128, steps=1200)
    return default_workdir(SCRATCH / "hinges_workdir", size)


def _measured(name: str, workdir: Path, scratch: Path) -> Case:
    """From an earlier study; remove the scratch folder to measure again."""
    path = scratch / f"{name}.npz"
    if not path.exists():
        np.savez(path, **_measure(workdir, scratch / f"{name}_out"))
    with np.load(path) as saved:
        arrays = dict(saved)
    clock = {stage: float(arrays.pop(f"seconds_{stage}")) for stage in STAGES}
    return Case(name=name, seconds=clock, **arrays)


def _measure(workdir: Path, outdir: Path) -> dict[str, np.ndarray]:
    config = EmbedConfig(
        str(workdir),
        outdir=str(outdir),
        seed=SEED,
        landmarks=LandmarkConfig(LANDMARKS),
        volumes=VolumeConfig(downsample=BOX),
    )
    with limited_to(1):
        run = prepare(config)
        run.folder.path.mkdir(exist_ok=True)
        run.folder.lock.touch()
        measured = measure_distances(run, pick_landmarks(run))
    marks = measured.landmarks
    arrays = {
        "z": run.workdir.latents,
        "rows": marks.indices,
        "train": marks.train,
        "validation": marks.validation,
        "test": marks.test,
        "distances": measured.pairs.distances,
    }
    return arrays | {f"seconds_{stage}": np.array(run.watch.seconds[stage]) for stage in STAGES}
