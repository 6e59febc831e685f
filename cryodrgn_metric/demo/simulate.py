"""The particles of the demo: projections of the molecule, which also turns behind the poses' back.

Particle i is molecule.atoms(motion_i, state_i), turned about y by an angle that the poses don't
know (uniform within NUISANCE_RANGE), then by its pose, projected along z, multiplied by the CTF
and covered with white noise. The poses are uniform over SO(3), so that every pixel of Fourier
space is seen at every nuisance angle. A phase plate keeps the low frequencies in the images,
as the large defocus of real micrographs would at a larger box.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cryodrgn_metric.demo import molecule
from cryodrgn_metric.runlog import logging_kept

__all__ = [
    "APIX_IN_ANGSTROMS",
    "NUISANCE_RANGE_IN_DEGREES",
    "PARTICLES",
    "SNR",
    "Draw",
    "ctf_parameters",
    "draw",
    "images",
    "project",
    "simulate",
    "turned_atoms",
]

PARTICLES = 6000
APIX_IN_ANGSTROMS = 6.0
NUISANCE_RANGE_IN_DEGREES = (-60.0, 60.0)  # a standard deviation of 35 degrees
SNR = 10.0
_DEFOCUS_RANGE_IN_ANGSTROMS = (3000.0, 8000.0)
_OPTICS = {4: 0.0, 5: 300.0, 6: 2.7, 7: 0.1, 8: 90.0}  # column: astigmatism, kV, Cs, w, phase

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Draw:
    """What differs from particle to particle: the truth, and the known pose and defocus."""

    motion: NDArray[np.int64]  # (N,) motion level
    state: NDArray[np.int64]  # (N,) whether the part is there
    nuisance_in_degrees: Array  # (N,) turn about y that the poses don't know
    poses: Array  # (N, 3, 3) what cryoDRGN is told
    defocus_in_angstroms: Array  # (N,)


def draw(count: int, seed: int) -> tuple[Draw, np.random.Generator]:
    """Draw the particles; the generator comes back where the noise of the images starts."""
    rng = np.random.default_rng(seed)
    motion = rng.integers(0, molecule.MOTION_LEVELS, count)
    state = rng.integers(0, molecule.STATES, count)
    nuisance = rng.uniform(*NUISANCE_RANGE_IN_DEGREES, count)
    quaternions = np.random.RandomState(seed).normal(size=(count, 4))
    poses = Rotation.from_quat(quaternions).as_matrix()
    defocus = rng.uniform(*_DEFOCUS_RANGE_IN_ANGSTROMS, count)
    return Draw(motion, state, nuisance, poses, defocus), rng


def turned_atoms(particles: Draw, index: int) -> Array:
    """Atoms of one particle in the frame of its pose: the molecule after its nuisance turn."""
    turn = Rotation.from_euler("y", particles.nuisance_in_degrees[index], degrees=True)
    coords = molecule.atoms(int(particles.motion[index]), int(particles.state[index]))
    return np.asarray(turn.apply(coords))


def project(coords: Array, box: int = molecule.BOX) -> Array:
    """Noise-free image [y, x] of atoms seen along z (up to the constant of a line integral)."""
    offsets = (np.arange(box) - box // 2)[:, None, None] - coords[None, :, :2]
    x, y = np.moveaxis(np.exp(-(offsets**2) / (2.0 * molecule.SIGMA**2)), 2, 0)
    return np.asarray(y @ x.T)


def ctf_parameters(particles: Draw) -> NDArray[np.float32]:
    """(N, 9) rows of cryoDRGN's ctf.pkl."""
    parameters = np.zeros((len(particles.motion), 9), np.float32)
    parameters[:, 0], parameters[:, 1] = molecule.BOX, APIX_IN_ANGSTROMS
    parameters[:, 2] = parameters[:, 3] = particles.defocus_in_angstroms
    for column, value in _OPTICS.items():
        parameters[:, column] = value
    return parameters


def images(particles: Draw, rng: np.random.Generator, snr: float = SNR) -> NDArray[np.float32]:
    """(N, box, box) images with CTF and noise; `snr` is a ratio of variances."""
    parameters = ctf_parameters(particles)
    clean = np.stack([_clean_image(particles, i, row) for i, row in enumerate(parameters)])
    noise = rng.normal(0.0, clean.std() / np.sqrt(snr), clean.shape)
    return np.asarray(clean + noise.astype(np.float32))


def simulate(folder: str | Path, count: int = PARTICLES, seed: int = 0) -> Draw:
    """Write particles.mrcs, poses.pkl (without the nuisance turn) and ctf.pkl into `folder`."""
    folder = Path(folder)
    particles, rng = draw(count, seed)
    with mrcfile.new(folder / "particles.mrcs", overwrite=True) as stack:
        stack.set_data(images(particles, rng))
    shifts = np.zeros((count, 2), np.float32)
    with open(folder / "poses.pkl", "wb") as file:
        pickle.dump((particles.poses.astype(np.float32), shifts), file)
    with open(folder / "ctf.pkl", "wb") as file:
        pickle.dump(ctf_parameters(particles), file)
    return particles


def _clean_image(
    particles: Draw, index: int, parameters: NDArray[np.float32]
) -> NDArray[np.float32]:
    image = project(turned_atoms(particles, index) @ particles.poses[index].T)
    spectrum = np.fft.fft2(image) * _ctf(parameters)
    return np.asarray(np.fft.ifft2(spectrum).real, dtype=np.float32)


def _ctf(parameters: NDArray[np.float32]) -> Array:
    with logging_kept():  # and imported late: cryodrgn takes seconds to import
        from cryodrgn.ctf import compute_ctf

    frequency = np.fft.fftfreq(molecule.BOX) / APIX_IN_ANGSTROMS
    grid = np.stack(np.meshgrid(frequency, frequency), -1).reshape(-1, 2)
    values = compute_ctf(torch.tensor(grid, dtype=torch.float32), *torch.tensor(parameters[2:]))
    return np.asarray(values.numpy().reshape(molecule.BOX, molecule.BOX))
