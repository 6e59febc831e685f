"""Deterministic ensembles of volumes: a hinged molecule of Gaussian atoms, a ligand at its rim.

Energy falls with resolution as it does in density that was learned from images: every atom is a
Gaussian of one and a half voxels at box 64, and there are hundreds of them, so that a volume has
structure at every degree up to the rim. Hinges turn by a few degrees only: small differences need
the highest degrees, so what is timed is the hard case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from gaussian_atoms import compact
from scipy.spatial.transform import Rotation

from cryodrgn_metric.distances.base import PILOT_COUNT
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.distances.streaming import VOLUMES_PER_BATCH
from cryodrgn_metric.so3.conventions import spherical_window, windowed
from cryodrgn_metric.threads import map_in_threads

ATOMS = 400
REACH = 0.36  # of the box: the farthest atom, inside the window's plateau
SIGMA = 1.5 / 64  # of the box
LIGAND_ATOMS = 8
HINGES = 3  # degrees of freedom
LARGEST_ANGLE_IN_DEGREES = 5.0


# -- molecules


def molecule(angles_in_degrees: np.ndarray, ligand: bool = True) -> np.ndarray:
    """Atoms (n, 3) in boxes from the origin.

    Arguments:
        angles_in_degrees: (HINGES,), by which one domain each is turned.
        ligand: A cluster of a few atoms at the rim is there.
    """
    generator = np.random.default_rng(5)
    atoms = compact(ATOMS, REACH, generator)
    domains = np.array_split(np.argsort(atoms[:, 0]), HINGES + 1)
    for angle, domain in zip(angles_in_degrees, domains[:HINGES], strict=True):
        axis = generator.normal(size=3)
        turn = Rotation.from_rotvec(np.deg2rad(angle) * axis / np.linalg.norm(axis))
        hinge = 0.5 * atoms[domain].mean(axis=0)
        atoms[domain] = turn.apply(atoms[domain] - hinge) + hinge
    rim = REACH * np.array([0.48, 0.6, 0.64])
    bound = rim + 0.02 * generator.normal(size=(LIGAND_ATOMS, 3))
    return np.concatenate([atoms, bound]) if ligand else atoms


def conformations(count: int) -> Iterator[np.ndarray]:
    """Atoms of `count` molecules: random hinges, half of them with the ligand, turned anyhow."""
    generator = np.random.default_rng(11)
    largest = LARGEST_ANGLE_IN_DEGREES
    angles = generator.uniform(-largest, largest, (count, HINGES))
    ligands = generator.uniform(size=count) < 0.5
    for motion, ligand, turn in zip(
        angles, ligands, Rotation.random(count, random_state=11), strict=True
    ):
        yield turn.apply(molecule(motion, bool(ligand)))


def rendered(atoms: np.ndarray, box: int) -> torch.Tensor:
    """Density (box, box, box) [z, y, x] float32 of atoms in boxes."""
    axis = (np.arange(box) - box // 2)[:, None, None] / box
    factors = np.exp(-((axis - atoms) ** 2) / (2 * SIGMA**2)).astype(np.float32)
    x, y, z = torch.from_numpy(factors).unbind(-1)
    planes = (z[:, None] * y).flatten(0, 1)
    return (planes @ x.mT).view(box, box, box)


def ensemble(count: int, box: int) -> torch.Tensor:
    """(count, box, box, box) windowed volumes, held in memory."""
    return windowed(
        torch.stack([rendered(atoms, box) for atoms in conformations(count)]), _window(box)
    )


@lru_cache
def _window(box: int) -> torch.Tensor:
    return spherical_window(box).float()


# -- volumes on disk, so that only a batch of them is in memory


@dataclass(frozen=True)
class SavedVolumes:
    """An ensemble in a file, not windowed yet: read in batches, as the command decodes."""

    path: Path
    box: int
    count: int

    @classmethod
    def make(cls, folder: Path, box: int, count: int) -> SavedVolumes:
        path = folder / f"volumes.{box}.f32"
        with path.open("wb") as file:
            for atoms in conformations(count):
                rendered(atoms, box).numpy().tofile(file)
        return cls(path, box, count)

    def read(self, first: int, last: int) -> torch.Tensor:
        """Windowed volumes first .. last - 1."""
        size = self.box**3
        values = np.fromfile(self.path, np.float32, (last - first) * size, offset=4 * first * size)
        read = torch.from_numpy(values).view(-1, self.box, self.box, self.box)
        return windowed(read, _window(self.box))


def calibrated(volumes: SavedVolumes) -> RotationDistance:
    """Delta, with lmax and the radial tolerance found on ten volumes, and its tables built."""
    distance = RotationDistance(volumes.box)
    pilots = np.linspace(0, volumes.count - 1, PILOT_COUNT).round().astype(int)
    features = [distance.full_features(volumes.read(row, row + 1)) for row in pilots]
    distance.calibrate(torch.cat(features, dim=-1))
    distance.features(volumes.read(0, 1))
    return distance


def features_of(volumes: SavedVolumes, distance: RotationDistance) -> torch.Tensor:
    """Read, windowed and expanded in batches and threads as the command does it."""

    def expand(first: int) -> torch.Tensor:
        last = min(first + VOLUMES_PER_BATCH, volumes.count)
        return distance.features(volumes.read(first, last))

    starts = range(0, volumes.count, VOLUMES_PER_BATCH)
    return torch.cat(list(map_in_threads(expand, starts, torch.device("cpu"))), dim=-1)
