"""A real enzyme between closed and open (tests/data/adk_path.py): its atoms, and their density.

Nothing here uses the package: these are the independent routes that it must agree with.
"""

from pathlib import Path

import numpy as np
from finufft import nufft3d1

DATA = Path(__file__).parent / "data" / "adk_path.npz"
BOX, APIX = 40, 2.5
MOLMAP = 1 / (np.pi * np.sqrt(2))  # standard deviation over resolution
LID = range(122, 160)  # residues of the domain that opens most


class Enzyme:
    """Adenylate kinase along its path."""

    def __init__(self):
        with np.load(DATA) as kept:
            self.numbers, self.electrons = kept["numbers"].astype(int), kept["electrons"]
            self.names, self.residues = kept["names"], kept["residues"]
            steps = kept["coordinates"] / 100.0
        self.steps = steps - steps[len(steps) // 2].mean(axis=0)

    def __len__(self):
        return len(self.steps)

    def beads(self, step):
        """Centroids of the residues, (214, 3) in Å."""
        rows = self.numbers - self.numbers.min()
        sums = np.zeros((rows.max() + 1, 3))
        np.add.at(sums, rows, self.steps[step])
        return sums / np.bincount(rows)[:, None]

    def density(self, step, turn=None, without=(), resolution=5.0, box=BOX, apix=APIX):
        """Electron density [z, y, x] of all atoms, turned about the origin.

        Gaussians as ChimeraX's molmap makes them, cut to the ball of frequencies that the box
        holds: a rotation of the atoms is exactly one of the density.
        """
        kept = ~np.isin(self.numbers, list(without))
        atoms = self.steps[step][kept]
        atoms = 2 * np.pi / box * (atoms if turn is None else atoms @ turn.T) / apix
        charges = self.electrons[kept].astype(complex)
        waves = nufft3d1(
            *np.ascontiguousarray(atoms.T[::-1]), charges, (box,) * 3, isign=-1, eps=1e-6
        )
        axis = np.arange(box) - box // 2
        squared = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2) / box**2
        sigma = MOLMAP * resolution / apix
        waves *= np.exp(-2 * (np.pi * sigma) ** 2 * squared) * (squared < 0.25)
        volume = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(waves))).real
        return volume.astype(np.float32)

    def write_pdb(self, path, step, turn=None, shift=(0.0, 0.0, 0.0)):
        """All atoms as a .pdb file, wherever they shall lie."""
        atoms = self.steps[step] if turn is None else self.steps[step] @ turn.T
        rows = zip(self.names, self.residues, self.numbers, atoms + shift, strict=True)
        lines = [
            f"ATOM  {i % 100000:5d}  {name:<3s} {residue:3s} A{number:4d}    "
            f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           {name[0]}"
            for i, (name, residue, number, (x, y, z)) in enumerate(rows, start=1)
        ]
        path.write_text("\n".join([*lines, "END", ""]))


def superposed_rmsd(fixed, moving):
    """By Kabsch's formula in numpy, reflections excluded."""
    fixed, moving = fixed - fixed.mean(0), moving - moving.mean(0)
    left, strengths, right = np.linalg.svd(fixed.T @ moving)
    strengths[2] *= np.sign(np.linalg.det(left @ right))
    squared = (fixed**2).sum() + (moving**2).sum() - 2 * strengths.sum()
    return float(np.sqrt(max(squared, 0.0) / len(fixed)))
