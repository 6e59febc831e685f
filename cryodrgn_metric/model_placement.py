"""Where a model lies in a volume: the reference fit, from which all others start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from cryodrgn_metric.atomic_model import AtomicModel, contour_of, pseudo_atoms
from cryodrgn_metric.bead_density import correlation, rendered
from cryodrgn_metric.distances.api import align, pairwise_distances
from cryodrgn_metric.flexible_fitting import Fits, FlexibleFitting
from cryodrgn_metric.so3.conventions import WINDOW_RADIUS, spherical_window, windowed

__all__ = ["ModelFits", "fit_models", "place_model"]

NARROWEST, WIDEST = 0.5, 1.2  # of a bead: in voxels, and in spacings
FIRST_WIDTH = 0.5  # in spacings, while it isn't known
FEWEST_SHELLS = 4.0
_AT_ONCE = 8


def place_model(
    model: AtomicModel | None,
    volume: Tensor,
    window: Tensor,
    apix_in_angstroms: float,
    max_frequency: float | None = None,
    seed: int = 0,
) -> tuple[FlexibleFitting, Fits]:
    """Fit a model into a volume: its orientation by an exhaustive search, then flexibly.

    The search is `align` of the model's simulated density, its centroid on the volume's, at the
    resolution of two beads and at half of it; the better of both, turned and shifted a little
    more, is bent. What comes of it is at rest in all further fits: with springs of the file's own
    conformation, those far from it would be held back. The width of a bead is that of the highest
    correlation.

    Arguments:
        model: Wherever it lies; None: pseudo-atoms are made from the volume.
        volume: (n, n, n), windowed; density of the molecule positive.
        window: (n, n, n).
        apix_in_angstroms: Size of a voxel.
        max_frequency: Radius of the ball of the volume in Fourier voxels; None: the whole.
        seed: Of the pseudo-atoms.

    Returns:
        What fits the model to other volumes, at rest in this one (in Å from the origin voxel); and
        how it fits this one, its strain that of the model as it came.

    Raises:
        VolumeError: The volume is too empty to make a model from it.
    """
    made = model or pseudo_atoms(volume.cpu().numpy(), apix_in_angstroms, seed)
    fitting = FlexibleFitting(made, apix_in_angstroms, window, FIRST_WIDTH, max_frequency)
    fitting = replace(fitting, width_in_voxels=FIRST_WIDTH * fitting.spacing_in_voxels)
    if model is None:
        start = torch.from_numpy(made.positions)[None]
    else:
        start = _placed_rigidly(fitting, volume)
    fitting = _with_best_width(fitting, volume, start)
    found = fitting.fit(volume[None], start)
    fitting = _with_best_width(fitting, volume, found.positions)
    found = fitting.judged(volume[None], found.positions)
    rest = found.positions[0].double().cpu().numpy()
    return replace(fitting, model=replace(made, positions=rest)), found


def _placed_rigidly(fitting: FlexibleFitting, volume: Tensor) -> Tensor:
    box, apix = volume.shape[-1], fitting.apix_in_angstroms
    centre = _centre_of(volume)
    positions = torch.from_numpy(fitting.model.positions).to(volume)
    positions = (positions - positions.mean(dim=0)) / apix
    weights = torch.from_numpy(fitting.model.weights).to(volume)
    density = rendered(positions[None], weights, fitting.width_in_voxels, box)[0]
    centred = _shifted(volume, -centre)
    finest = min(box / 2 - 1, fitting.max_frequency or box, box / (2 * fitting.spacing_in_voxels))
    starts = []
    for frequency in (finest, finest / 2):
        found = align(centred.cpu(), density.cpu(), max_frequency=max(frequency, FEWEST_SHELLS))
        starts.append(apix * (positions @ found.rotation.to(positions).mT + centre))
    fits = fitting.fit_rigidly(volume.expand(len(starts), -1, -1, -1), torch.stack(starts))
    return fits.positions[[int(fits.correlations.argmax())]]


def _centre_of(volume: Tensor) -> Tensor:
    """The centroid, x, y, z in voxels from the origin voxel, of what is above the contour."""
    mass = (volume - contour_of(volume.cpu().numpy())).clamp(min=0)
    axis = torch.arange(len(volume), dtype=volume.dtype, device=volume.device) - len(volume) // 2
    sides = [mass.sum(dim=tuple({0, 1, 2} - {side})) @ axis for side in (2, 1, 0)]
    centre: Tensor = torch.stack(sides) / mass.sum()
    return centre


def _shifted(volume: Tensor, shift: Tensor) -> Tensor:
    """A windowed volume moved by a few voxels, by the phases of its Fourier transform."""
    frequencies = torch.fft.fftfreq(len(volume), dtype=volume.dtype, device=volume.device)
    x, y, z = (frequencies * one for one in shift)
    turns = z[:, None, None] + y[:, None] + x
    spectrum = torch.fft.fftn(volume) * torch.polar(torch.ones_like(turns), -2 * np.pi * turns)
    moved: Tensor = torch.fft.ifftn(spectrum).real
    return moved


def _with_best_width(
    fitting: FlexibleFitting, volume: Tensor, positions: Tensor
) -> FlexibleFitting:
    beads = positions.to(volume) / fitting.apix_in_angstroms
    weights = torch.from_numpy(fitting.model.weights).to(volume)

    def loss(width: float) -> float:
        found = correlation(
            beads, weights, width, volume[None], fitting.window, fitting.max_frequency
        )
        return -float(found[0])

    most = max(WIDEST * fitting.spacing_in_voxels, 2 * NARROWEST)
    best = minimize_scalar(loss, bounds=(NARROWEST, most), method="bounded")
    return replace(fitting, width_in_voxels=float(best.x))


@dataclass(frozen=True)
class ModelFits:
    """One model, fitted to many volumes.

    Arguments:
        coordinates: x, y, z in Å from the origin voxel of each volume. (L, A, 3)
        correlations: With each volume; below 0.8 a model doesn't fit. (L,)
        strains: By which share its springs are longer or shorter, RMS; above 0.18 it is squeezed
            into what it can't explain. (L,)
        reference: The volume that the model was placed in, from which all fits start.
        model: At rest there.
    """

    coordinates: npt.NDArray[np.float32]
    correlations: npt.NDArray[np.float32]
    strains: npt.NDArray[np.float32]
    reference: int
    model: AtomicModel


def fit_models(
    volumes: npt.NDArray[Any],
    apix_in_angstroms: float,
    model: AtomicModel | None = None,
    *,
    window: float = WINDOW_RADIUS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> ModelFits:
    """Fit a model of beads to volumes; `atom_distances` then compares them by it.

    The medoid of `pairwise_distances` is the reference: the model is placed in it, or made from
    it, and bent into every volume from there, after that volume's rotation.

    Arguments:
        volumes: (L, n, n, n) density [z, y, x], of the molecule positive.
        apix_in_angstroms: Size of a voxel.
        model: From `read_model`, wherever it lies; None: pseudo-atoms.
        window: Start of the window's fall-off as a fraction of the half box.
        seed: Of the pseudo-atoms.
        device: Where volumes are compared and models fitted.

    Raises:
        VolumeError: A volume can't be compared, or is too empty to make a model from it.

    Example:
        >>> axis = np.arange(16) - 8
        >>> body = np.exp(-(axis[:, None, None] ** 2 + axis[:, None] ** 2 / 2 + axis**2 / 4) / 8)
        >>> fits = fit_models(np.stack([body, np.roll(body, 1, axis=2)]), 4.0)
        >>> fits.coordinates.shape[::2], bool(fits.correlations.min() > 0.9)
        ((2, 3), True)
    """
    pairs = pairwise_distances(volumes, window=window, device=device)
    reference = int(pairs.distances.sum(axis=1).argmin())
    soft = spherical_window(volumes.shape[-1], window)
    seen = windowed(torch.from_numpy(np.array(volumes, dtype=np.float32)), soft).to(device)
    fitting, _ = place_model(model, seen[reference], soft, apix_in_angstroms, seed=seed)
    turns = torch.from_numpy(pairs.rotations[:, reference]).double()
    starts = torch.from_numpy(fitting.model.positions) @ turns.mT
    found = [
        fitting.fit(some, start)
        for some, start in zip(seen.split(_AT_ONCE), starts.split(_AT_ONCE), strict=True)
    ]
    return ModelFits(
        coordinates=torch.cat([one.positions for one in found]).cpu().numpy(),
        correlations=torch.cat([one.correlations for one in found]).cpu().numpy(),
        strains=torch.cat([one.strains for one in found]).cpu().numpy(),
        reference=reference,
        model=fitting.model,
    )
