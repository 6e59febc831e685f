"""Deterministic ensembles of volumes: a hinged molecule of Gaussian atoms, a ligand at its rim.

Energy falls with resolution as it does in density that was learned from images: every atom is a
Gaussian of one and a half voxels at box 64, and there are hundreds of them, so that a volume has
structure at every degree up to the rim.
"""

from __future__ import annotations

import numpy as np
import torch
from gaussian_atoms import compact, render
from scipy.spatial.transform import Rotation

from cryodrgn_metric.so3.conventions import WINDOW_RADIUS, spherical_window, windowed

ATOMS = 400
REACH = 0.36  # of the box: the farthest atom, inside the window's plateau
SIGMA = 1.5 / 64  # of the box
LIGAND_ATOMS = 8
HINGES = 3  # degrees of freedom
LARGEST_ANGLE_IN_DEGREES = 25.0


def molecule(motion: np.ndarray, ligand: bool = True) -> np.ndarray:
    """Atoms (n, 3) in boxes from the origin, with every hinge turned by its angle in degrees.

    Arguments:
        motion: (HINGES,), one domain each.
        ligand: A cluster of a few atoms at the rim is there.
    """
    generator = np.random.default_rng(5)
    atoms = compact(ATOMS, REACH, generator)
    domains = np.array_split(np.argsort(atoms[:, 0]), HINGES + 1)
    for angle, domain in zip(motion, domains[:HINGES], strict=True):
        axis = generator.normal(size=3)
        turn = Rotation.from_rotvec(np.deg2rad(angle) * axis / np.linalg.norm(axis))
        hinge = 0.5 * atoms[domain].mean(axis=0)
        atoms[domain] = turn.apply(atoms[domain] - hinge) + hinge
    direction = np.array([0.48, 0.6, 0.64])
    bound = REACH * direction + 0.02 * generator.normal(size=(LIGAND_ATOMS, 3))
    return np.concatenate([atoms, bound]) if ligand else atoms


def ensemble(count: int, box: int, largest_angle: float = LARGEST_ANGLE_IN_DEGREES):
    """(count, box, box, box) float32 windowed volumes: random motion, ligand and orientation."""
    generator = np.random.default_rng(11)
    motions = generator.uniform(-largest_angle, largest_angle, (count, HINGES))
    ligands = generator.uniform(size=count) < 0.5
    turns = Rotation.random(count, random_state=11)
    drawn = [
        rendered(turn.apply(molecule(motion, ligand)), box)
        for motion, ligand, turn in zip(motions, ligands, turns, strict=True)
    ]
    return prepared(torch.from_numpy(np.stack(drawn)))


def small_differences(count: int, box: int):
    """`ensemble` of hinges that turn by a few degrees: what lmax must resolve."""
    return ensemble(count, box, largest_angle=4.0)


def rendered(atoms: np.ndarray, box: int) -> np.ndarray:
    """Density [z, y, x] of atoms in boxes."""
    return render(box * atoms, box, SIGMA * box).astype(np.float32)


def prepared(volumes: torch.Tensor) -> torch.Tensor:
    """Windowed, as volumes are compared."""
    return windowed(volumes, spherical_window(volumes.shape[-1], WINDOW_RADIUS))


def opposite_ends(angle: float, box: int):
    """Two volumes (2, box, box, box), the first hinge at -angle and +angle, turned at random."""
    turns = Rotation.random(2, random_state=12)
    motions = [np.array([end, 0.0, 0.0]) for end in (-angle, angle)]
    drawn = [
        rendered(turn.apply(molecule(motion)), box)
        for motion, turn in zip(motions, turns, strict=True)
    ]
    return prepared(torch.from_numpy(np.stack(drawn)))


def band_limited(volumes: torch.Tensor) -> torch.Tensor:
    """Cut to the Fourier ball |k| <= n/2 - 1, in which our distance compares volumes."""
    box = volumes.shape[-1]
    axis = torch.fft.fftfreq(box, 1 / box)
    squared = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    spectrum = torch.fft.fftn(volumes, dim=(-3, -2, -1))
    spectrum *= squared <= (box / 2 - 1) ** 2
    return torch.fft.ifftn(spectrum, dim=(-3, -2, -1)).real.contiguous()
